"""Grading stored responses again: figures counted by hand, disagreements, and what the command refuses."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from reft_jax import rescore
from reft_jax.rewards.estimates import pass_at_k, wilson

SENTENCE = "Therefore, the answer is: "
DATA = {"task": "gsm8k", "cot": "nl", "matcher": "reft", "append_prefix": "everywhere"}
VERIFIER = {"timeout_s": 20.0, "memory_mb": 256, "workers": 1, "max_gold_failures": 0.02, "sandbox": "auto"}


def line(item, k, response, status, *, gold="42", mode="greedy", split="test", **more):
    base = {
        "item_id": item,
        "k": k,
        "prefix": "",
        "response": response,
        "extracted": None,
        "status": status,
        "gold": gold,
    }
    return base | {"split": split, "mode": mode} | more


def too_long(item, mode):
    return line(item, 0, None, "too_long", gold=None, mode=mode)


def said(*answers):
    return [SENTENCE + answer for answer in answers]


def make(folder, labels, *, data=DATA, stages=None, results=None):
    for label, lines in labels.items():
        (folder / label).mkdir(parents=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        (folder / label / "predictions.jsonl").write_text(text, encoding="utf-8")
    config = {"seed": 0, "data": data, "verifier": VERIFIER, "stages": stages or {"reft": {"kind": "reft"}}}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    if results is None:
        results = {label: {"source": label, "accuracy": 0.5, "step": 1} for label in labels}
    (folder / "results.json").write_text(json.dumps({"seed": 0, "stages": results}))
    return folder


GREEDY = [
    line("g_0", 0, SENTENCE + "42", "correct"),
    line("g_1", 0, SENTENCE + "$42", "correct"),
    line("g_2", 0, "I think\n#### 42", "no_answer"),
    line("g_3", 0, SENTENCE + "41", "wrong"),
    too_long("g_4", "greedy"),
    line("d_0", 0, SENTENCE + "42", "correct", split="dev"),
]
VOTES = {"g_0": ("7", "42", "42.0", "7.0"), "g_1": ("7", "42", "42", "8"), "g_2": ("none", "no", "-", "?")}
STATUSES = {"7": "wrong", "7.0": "wrong", "8": "wrong", "42": "correct", "42.0": "correct"}
SAMPLED = [
    line(item, k, SENTENCE + answer, STATUSES.get(answer, "no_answer"), mode="sampled")
    for item, answers in VOTES.items()
    for k, answer in enumerate(answers)
] + [too_long("g_4", "sampled")]


def ask(workdir, *arguments):
    return rescore.main([str(workdir), *arguments])


def test_figures_are_those_counted_by_hand(tmp_path, capsys):
    """g_0: 7, 42, 42.0, 7.0 is a tie that the lowest index, 7, wins; g_1: 42; g_2: nobody votes; g_4: too long to be asked."""
    make(tmp_path / "w", {"reft": [*GREEDY, *reversed(SAMPLED)]})
    assert ask(tmp_path / "w", "--write") == 0
    figures = json.loads((tmp_path / "w" / "results.json").read_text())["stages"]["reft"]
    assert figures["accuracy"] == 0.5  # what the run wrote is kept
    half = 1.959964 * (4 * 0.25**2 / 3 / 4) ** 0.5  # of 0.5, 0.5, 0 and 0
    assert figures["rescored"]["reft"] == {
        "split": "test",
        "accuracy": 0.4,
        "ci95": list(wilson(2, 5)),
        "num_questions": 5,
        "num_correct": 2,
        "avg@4": 0.25,
        "avg@4_ci95": [0.0, pytest.approx(0.25 + half)],
        "maj@4": 0.25,
        "maj@4_ci95": list(wilson(1, 4)),
        "pass@4": 0.5,
        "pass@4_ci95": list(wilson(2, 4)),
        "num_sampled_questions": 4,
    }
    printed, errors = capsys.readouterr()
    assert (
        re.search(
            r"reft +40\.0 \(11\.8-76\.9\) +25\.0 \(0\.0-53\.3\) +25\.0 \(4\.6-69\.9\) +50\.0 \(15\.0-85\.0\)", printed
        )
        and not errors
    )
    assert "graded otherwise" not in printed


def test_fewer_samples_vote_with_the_first_and_pass_with_all(tmp_path):
    make(tmp_path / "w", {"reft": [*GREEDY, *reversed(SAMPLED)]})
    assert ask(tmp_path / "w", "--k=3", "--write") == 0
    figures = json.loads((tmp_path / "w" / "results.json").read_text())["stages"]["reft"]["rescored"]["reft"]
    assert figures["maj@3"] == 0.5  # 7, 42, 42.0 is 42 now
    assert figures["pass@3"] == pytest.approx(2 * pass_at_k(4, 2, 3) / 4) == pytest.approx(0.5)
    assert ask(tmp_path / "w", "--k=1", "--write") == 0
    figures = json.loads((tmp_path / "w" / "results.json").read_text())["stages"]["reft"]["rescored"]["reft"]
    assert (figures["maj@1"], figures["pass@1"]) == (0.0, 0.25)


def test_another_matcher_and_the_disagreements(tmp_path, capsys):
    make(tmp_path / "w", {"base": GREEDY, "reft": GREEDY[:1]}, stages={})
    before = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
    assert ask(tmp_path / "w", "--all-matchers", "--limit-disagreements=1") == 0
    printed = capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
    assert printed.count("in % with 95 % intervals") == 6 and "matcher reft (the run's)" in printed
    strict = printed[printed.index("matcher gsm8k_strict") :]
    assert re.search(r"base +20\.0 .*\nreft +0\.0 ", strict)
    counts = printed[printed.index("of 7, that one matcher") :]
    # reft: 42, $42 (and dev's 42) right; strict: #### 42 alone; flexible: all four; the authors' code refuses $42.
    assert re.search(r"reft +1 +1 +5 +0 +- +1\n", counts) and re.search(r"gsm8k_strict +4 +4 +- +5 +5 +4\n", counts)
    assert re.search(
        r"gsm8k_flexible against gsm8k_strict: the first 1 of 4 .*\n\n.*\n-+\ng_0 +base +42 +42\+ +no_answer\n", printed
    )
    assert "math against reft:" not in printed


def test_without_a_limit_no_items_are_listed_and_one_matcher_has_no_such_table(tmp_path, capsys):
    make(tmp_path / "w", {"base": GREEDY})
    assert ask(tmp_path / "w", "--all-matchers", "--limit-disagreements=0") == 0
    assert " against " not in capsys.readouterr().out
    assert ask(tmp_path / "w", "--matcher", "gsm8k_flexible") == 0
    printed = capsys.readouterr().out
    assert "calls right" not in printed and re.search(r"matcher gsm8k_flexible, .*\n\n.*\n-+\nbase +60\.0", printed)


BODY = "    return 6 * 7"
PROGRAMS = {"task": "svamp", "cot": "program"}


@pytest.mark.parametrize(
    ("prefix", "response", "status"),
    [
        ('def solution():\n    """How many?"""\n', BODY, "correct"),
        ("def solution():\n", BODY, "correct"),
        ("", "def solution():\n" + BODY, "correct"),
        ("", BODY, "error"),
    ],
)
def test_a_program_gets_back_what_stood_in_the_prompt(tmp_path, capsys, prefix, response, status):
    make(tmp_path / "w", {"one": [line("s_0", 0, response, status, prefix=prefix)]}, data=DATA | PROGRAMS)
    assert ask(tmp_path / "w", "--all-matchers") == 0
    printed = capsys.readouterr().out
    assert (
        printed.count("100.0 (" if status == "correct" else "0.0 (0.0-79.3)") == 6 and "graded otherwise" not in printed
    )


def test_programs_are_run_once_for_all_matchers(tmp_path, monkeypatch):
    from reft_jax.rewards import score
    from reft_jax.rewards.program import ProgramResult

    ran = []

    def run(programs, **limits):
        ran.extend(programs)
        assert limits == {key: VERIFIER[key] for key in ("timeout_s", "memory_mb", "workers")}
        return [ProgramResult("ok", "42")] * len(programs)

    monkeypatch.setattr(score, "run_programs", run)
    lines = [line(item, 0, BODY, "correct", prefix="def solution():\n") for item in ("s_0", "s_1")]
    make(tmp_path / "w", {"one": lines}, data=DATA | PROGRAMS)
    assert ask(tmp_path / "w", "--all-matchers") == 0
    assert ran == ["def solution():\n" + BODY]


def test_a_run_from_before_and_a_matcher_of_ones_own(tmp_path, capsys):
    make(tmp_path / "w", {"base": GREEDY})
    data = {"name": "gsm8k"} | {key: value for key, value in DATA.items() if key != "task"}
    config = {"seed": 0, "data": data, "rewards": VERIFIER, "stages": {"reft": {"kind": "reft"}}}
    (tmp_path / "w" / "config.json").write_text(json.dumps({"config": config}))
    assert ask(tmp_path / "w") == 0
    assert "matcher reft (the run's)" in (printed := capsys.readouterr().out) and "graded otherwise" not in printed
    own = tmp_path / "my.py"
    own.write_text("from reft_jax.rewards.matchers.gsm8k_strict import MATCHER as MATCHER\n")
    assert ask(tmp_path / "w", f"--matcher={own}") == 0
    assert re.search(r"my.py, in %.*\n\n.*\n-+\nbase +20\.0 ", capsys.readouterr().out)
    assert ask(tmp_path / "w", f"--matcher={tmp_path}/none.py") == 2
    assert "none.py: cannot be read" in capsys.readouterr().err


def test_a_response_that_is_graded_otherwise_than_then_is_named(tmp_path, capsys):
    make(tmp_path / "w", {"base": [line("g_0", 0, SENTENCE + "42", "wrong"), *GREEDY[1:]]})
    assert ask(tmp_path / "w") == 0
    assert "note: base: 1 of 6 responses are graded otherwise" in (printed := capsys.readouterr().out)
    assert "g_0 k=0 (test, greedy): wrong, now correct" in printed


def test_choices_and_expressions(tmp_path, capsys):
    lines = [line("m_0", 0, SENTENCE + "(B)", "correct", gold="b")]
    make(tmp_path / "w", {"base": lines}, data=DATA | {"task": "mathqa"})
    assert ask(tmp_path / "w", "--all-matchers") == 0
    printed = capsys.readouterr().out
    assert "gsm8k" not in printed and re.search(
        r"reft against reft_paper.*\n\n.*\n-+\nm_0 +base +b +b\+ +\(b\)\n", printed
    )
    lines = [line("e_0", 0, "\\boxed{\\sin^2 x + \\cos^2 x}", "correct", gold="1")]
    make(tmp_path / "v", {"base": lines}, data=DATA | {"task": "math", "matcher": "math"})
    assert ask(tmp_path / "v") == 0
    assert re.search(r"base +100\.0", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "WORKDIR is missing"),
        (
            ["{w}", "--matcher=rft"],
            "'rft' is no file of rewards/matchers; did you mean 'reft'.*legal are .*reft, reft_paper",
        ),
        (["{w}", "--matcher=reft", "--all-matchers"], "exclude each other"),
        (["{w}", "--k=0"], "--k: got '0'; it must be a whole number from 1"),
        (["{w}", "--k=many"], "--k: got 'many'"),
        (["{w}", "--k=5"], r"--k=5: .*/reft/predictions.jsonl holds 4 samples of a question; k can be 1 to 4"),
        (["{w}", "--k"], "--k needs a value"),
        (["{w}", "--write=yes"], "--write takes no value"),
        (["{w}", "--quick"], "unknown argument '--quick'"),
        (["{w}", "-k", "3"], "unknown argument '-k'"),
        (["{w}", "{w}"], "one WORKDIR at a time"),
        (["{w}/none"], "none: there is no such folder"),
        (["{w}/reft"], "config.json: there is no such file"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    make(tmp_path / "w", {"reft": [*GREEDY, *SAMPLED]})
    assert (
        ask(*(argument.format(w=tmp_path / "w") for argument in arguments)) == 2 if arguments else rescore.main([]) == 2
    )
    printed, errors = capsys.readouterr()
    assert not printed and re.search(message, errors) and errors.partition("usage:\n")[0].count("\n") == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("base/predictions.jsonl", '{"item_id": "a"}\n', r"predictions.jsonl:1: lacks k, prefix, response"),
        ("base/predictions.jsonl", "[1]\n", r"predictions.jsonl:1: is no JSON object"),
        ("base/predictions.jsonl", '{"item_id": ', r"predictions.jsonl:1: not JSON"),
        ("config.json", "{}", r"config.json: lacks 'config'"),
        ("config.json", "[]", r"config.json: holds '\[\]'; a JSON object is expected"),
        ("config.json", '{"config": null}', r"config.json: has null, or another value, where a group should be"),
        ("config.json", '{"config": {"data": null, "verifier": {}}}', r"config.json: has null"),
        ("results.json", "{", r"results.json:1: malformed JSON"),
        ("results.json", '{"stages": null}', r"results.json: stages is not a group of labels"),
        ("results.json", '{"stages": {"base": null}}', r"results.json: stages is not a group of labels"),
        (
            "base/predictions.jsonl",
            json.dumps(GREEDY[0] | dict(item_id=None, k=None)),
            r"predictions.jsonl:1: got item_id None and k None; they must be a text and a whole number",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, capsys, file, text, message):
    make(tmp_path, {"base": GREEDY})
    (tmp_path / file).write_text(text)
    assert ask(tmp_path) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_workdir_without_predictions_or_without_samples(tmp_path, capsys):
    make(tmp_path / "w", {"base": GREEDY})
    assert ask(tmp_path / "w", "--k=4") == 2
    assert "base/predictions.jsonl holds no samples, only greedy responses" in capsys.readouterr().err
    (tmp_path / "w" / "base" / "predictions.jsonl").unlink()
    assert ask(tmp_path / "w") == 2
    assert "no <label>/predictions.jsonl" in capsys.readouterr().err


def test_the_command_itself_and_ctrl_c(tmp_path):
    make(tmp_path / "w", {"base": GREEDY})
    command = [sys.executable, "-m", "reft_jax.rescore", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "base" in done.stdout and not done.stderr
    slow = [line(f"s_{i}", 0, f"def solution():\n    while True: pass  # {i}", "timeout") for i in range(64)]
    make(tmp_path / "v", {"base": slow}, data=DATA | PROGRAMS)
    process = subprocess.Popen(
        [*command[:-1], str(tmp_path / "v")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and not (children.exists() and children.read_text()):  # until programs are run
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and not printed and errors == "\ninterrupted: nothing was changed\n"


def test_responses_of_a_checkpoint_that_is_no_longer_there_are_named(tmp_path, capsys):
    results = {label: {"source": label, "accuracy": 0.5, "measured": {label: "a" * 32}} for label in ("sft", "reft")}
    make(tmp_path / "w", {label: GREEDY for label in results}, results=results)
    for label, given in (("sft", "a"), ("reft", "b")):
        (tmp_path / "w" / label / "DONE").write_text(json.dumps({"fingerprint": given * 32}))
    assert ask(tmp_path / "w") == 0
    out = capsys.readouterr().out
    assert [text for text in out.splitlines() if "no longer there" in text] == [
        "note: reft: its responses are of a checkpoint that is no longer there; the run's command measures what is there now"
    ]
