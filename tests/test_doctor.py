"""The doctor: every bad record of a file is named with line and field, whatever came before it, and the census counts right."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from tokenizers import normalizers

from reft_jax import doctor
from reft_jax.data import files
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import InputError
from tests import runs
from tests.tiny import read, shared_data

SHIPPED = "arithmetic_base"


def row(i, **changes):
    made = {
        "item_id": f"svamp_{i}",
        "question": f"How many are {i}?",
        "answer_cot": f"def solution():\n    return {i}",
        "answer_value": f"{i}.0",
    }
    made |= changes
    return {key: value for key, value in made.items() if value is not None}


def write(path, rows, *, as_list=False):
    texts = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    path.write_text("[\n" + ",\n".join(texts) + "\n]" if as_list else "\n".join(texts))
    return str(path)


def told(capsys, *argv):
    """(exit code, standard output, standard error) of the command."""
    code = doctor.main([str(arg) for arg in argv])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, out.out, out.err


def found(capsys, *argv):
    """The findings as (line, kind, field), the census of the only file, and the problems."""
    code, out, _ = told(capsys, *argv, "--json")
    result = json.loads(out)
    (census,) = result["files"].values()
    assert code == (1 if result["findings"] else 0)
    places = [(f["line"], f["kind"], f["field"]) for f in result["findings"]]
    return places, census, [f["problem"] for f in result["findings"]]


BAD = [
    row(0),
    row(1, question=None, answer_value="many"),
    '{"item_id": "svamp_2", ',
    row(3, item_id="svamp_0"),
    [1, 2],
    row(5, answer_cot="Some."),
    row(6, question=" "),
    row(7),
    row(8, answer_cot=None, item_id=True),
]
EXPECTED = [
    (2, "record", "question"),
    (2, "record", "answer_value"),
    (3, "record", ""),
    (4, "record", "item_id"),
    (5, "record", ""),
    (6, "record", "answer_cot"),
    (7, "record", "question"),
    (9, "record", "item_id"),
    (9, "record", "answer_cot"),
]


@pytest.mark.parametrize("as_list", [False, True])
def test_every_bad_record_and_field_is_named(tmp_path, capsys, as_list):
    path = write(tmp_path / "a.json", BAD, as_list=as_list)
    places, census, problems = found(capsys, path)
    # The broken element of a list swallows the beginning of what follows, and no more.
    assert sorted(places) == sorted((line + as_list, *rest) for line, *rest in EXPECTED)
    assert (census["records"], census["refused"]) == (2, 7) and census["programs"] == {"correct": 2}
    assert all(problem and "\n" not in problem for problem in problems)


def test_reading_for_training_stops_at_the_first_of_the_same_complaints(tmp_path):
    path = write(tmp_path / "a.json", BAD)
    complaints = []
    read("svamp", path, cot="program", complaints=complaints)
    with pytest.raises(files.RecordError) as caught:
        read("svamp", path, cot="program")
    assert str(caught.value) == str(complaints[0]) and len(complaints) == len(EXPECTED)
    write(tmp_path / "a.json", BAD[:2] + BAD[3:])
    with pytest.raises(files.RecordError) as caught:
        read("svamp", path, cot="program")
    assert str(caught.value) == str(complaints[1])


@pytest.mark.parametrize(
    "text, line",
    [
        ("", 1),
        ("[]", 1),
        ('[{"a": 1', 1),
        ('[{"a": 1}\n', 2),
        ("[" * 100_000, 1),
        ('{"a": 1}\n{"a"', 2),
        ('[1,,{"a": 2}', 1),
    ],
)
def test_files_that_end_early_are_findings_not_crashes(tmp_path, capsys, text, line):
    path = tmp_path / "a.json"
    path.write_text(text)
    places, _, _ = found(capsys, path, "--task=svamp")
    assert (line, "record", "") in places


def test_bytes_that_are_no_text(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(row(0)).encode() + b'\n{"a": "\xff"}\n' + json.dumps(row(1, question=5)).encode())
    places, census, _ = found(capsys, path)
    assert (2, "record", "") in places and (3, "record", "question") in places and census["records"] == 1


def test_questions_that_stand_twice_or_in_test(tmp_path, capsys):
    path = write(tmp_path / "a.json", [row(0), row(1, question="how many are 0 ?"), row(2)])
    test = write(
        tmp_path / "test.json", [row(9, question="Other?"), row(8, question="HOW many are 2"), row(7, answer_value="x")]
    )
    code, out, _ = told(capsys, path, f"--test={test}")
    assert code == 1
    assert f"{path}:2: question: the question stands at {path}:1 already, with another answer, 0.0 and not 1.0" in out
    assert f"{test}:2: overlap: the question stands in the training data at {path}:3 too" in out
    assert f"{test}:3: record: answer_value is " in out
    assert "3 findings: 1 question, 1 record, 1 overlap" in out and "also in --test           1 of its 2" in out


def test_programs_are_run_and_their_ends_told_apart(tmp_path, capsys):
    cots = ["return 0", "return 5", "return 1 / 0", "return None", "import os\n    return os.listdir('/')"]
    rows = [row(i, answer_cot=f"def solution():\n    {body}") for i, body in enumerate(cots)]
    path = write(tmp_path / "a.json", rows)
    places, census, problems = found(capsys, path)
    assert places == [(i, "answer", "answer_cot") for i in (2, 3, 4, 5)]
    assert census["programs"] == {"correct": 1, "wrong": 1, "error": 1, "no_answer": 1, "blocked": 1}
    assert problems[0].startswith("the program gives 5 and the label is 1.0")
    assert "ZeroDivisionError" in problems[1] and census["with_docstring"] == 0.0


def test_answers_that_cots_give_themselves(tmp_path, capsys):
    ends = ["Therefore, the answer is <0>.", "the answer is: 7", "So it is 2.", "The answer is unknown."]
    path = write(tmp_path / "a.json", [row(i, answer_cot=f"Some steps.\n{end}") for i, end in enumerate(ends)])
    places, census, problems = found(capsys, path)
    assert places == [(2, "answer", "answer_cot")] and "the answer 7 and the label is 1.0" in problems[0]
    assert census["cot"] == "nl" and census["own_answers"] == {"agree": 1, "differ": 1, "none": 2}


def test_token_lengths_by_tokenizer(tmp_path, capsys):
    path = write(tmp_path / "a.json", [row(i, question="How many? " + "word " * i) for i in range(30)])
    places, census, problems = found(capsys, path, "--tokenizer=bpe", "--tokenizer=tiny", "--max-prompt=60")
    assert census["tokens"]["bpe"] == census["tokens"]["tiny"]
    prompts = census["tokens"]["bpe"]["prompt"]
    assert prompts["min"] < prompts["median"] < 60 < prompts["p99"] <= prompts["max"]
    assert {kind for _, kind, _ in places} == {"length"} and len(places) % 2 == 0 and places[-1][0] == 30
    assert "over --max-prompt=60" in problems[0]
    assert census["characters"]["question"] == {
        "min": 10,
        "median": 10 + 5 * 14,
        "p99": 10 + 5 * 29,
        "max": 10 + 5 * 29,
    }
    # A tokenizer that normalizes names the records and the characters.
    built = tokenizers.build_bpe(["def solution():\n    return 1 + 2"] * 3, 300)
    built.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizers.save(built, tmp_path / "normalizing")
    square = write(tmp_path / "b.json", [row(0), row(1, question="How many m²?"), row(2)])
    places, _, problems = found(capsys, square, f"--tokenizer={tmp_path / 'normalizing'}")
    assert places == [(2, "text", "")], problems
    assert "normalizing does not give back its text: '²' (U+00B2) becomes '2'; write it without them" in problems[0]
    # A tokenizer that cannot spell the text names the records.
    places, _, problems = found(capsys, path, f"--tokenizer={SHIPPED}")
    assert len(places) == 30 and "no token for" in problems[0]


def test_published_forms_and_answers_are_told(tmp_path, capsys):
    mathqa = {"Problem": "Half of 8?", "Rationale": '"4. answer is b"', "options": "a ) 3 , b ) 4 / 5", "correct": "b"}
    path = write(tmp_path / "m.json", [mathqa, mathqa | {"Problem": "Other?", "correct": "c"}], as_list=True)
    places, census, problems = found(capsys, path)
    assert (census["task"], census["cot"], census["answers"]) == ("mathqa", "nl", {"letter": 1})
    assert places == [(3, "record", "options")] and "has no 'c' )" in problems[0]
    twice = mathqa | {"Problem": "Half of that?", "options": "a ) 8 / 10 , b ) 4 / 5"}
    places, _, problems = found(capsys, write(tmp_path / "t.json", [mathqa, twice], as_list=True))
    assert places == [(3, "question", "question")] and "right letter b stands under a too" in problems[0]
    _, census, _ = found(capsys, write(tmp_path / "n.json", [mathqa]), "--task=mathqa-numeric")
    assert census["answers"] == {"fraction": 1}
    original = {"question": "Q?", "answer": "x\n#### 1,125"}
    path = write(tmp_path / "g.json", [original, original | {"question": 5, "answer": "no"}])
    places, census, _ = found(capsys, path)
    assert census["task"] == "gsm8k" and census["answers"] == {"whole": 1}
    assert places == [(2, "record", "question"), (2, "record", "answer")]


def test_expressions_are_compared_as_mathematics(tmp_path, capsys):
    rows = [
        row(0, item_id="math_0", answer_value="\\frac{1}{2}", answer_cot="So the answer is 0.5."),
        row(1, item_id="math_1", answer_value="2x", answer_cot="So the answer is x."),
        row(2, item_id="math_2", answer_value="x", question="How many are 0 ?", answer_cot="It is so."),
        row(3, item_id="math_3", answer_value="$", answer_cot="It is so."),
    ]
    places, census, problems = found(capsys, write(tmp_path / "a.json", rows))
    assert places == [(4, "record", "answer_value"), (3, "question", "question"), (2, "answer", "answer_cot")]
    assert "another answer, \\frac{1}{2} and not x" in problems[1] and "the answer x and the label is 2x" in problems[2]
    assert (census["task"], census["answers"]) == ("math", {"expression": 3})
    assert census["own_answers"] == {"agree": 1, "differ": 1, "none": 1}
    programs = ["return 0.5", "return '2*x'", "return 3"]
    rows = [r | {"answer_cot": f"def solution():\n    {body}"} for r, body in zip(rows, programs, strict=False)]
    places, census, _ = found(capsys, write(tmp_path / "p.json", rows))
    assert census["programs"] == {"correct": 2, "wrong": 1} and places[-1] == (3, "answer", "answer_cot")


def test_a_task_of_ones_own(tmp_path, capsys):
    own = tmp_path / "my.py"
    own.write_text("from reft_jax.tasks.svamp import Task as Task\n")
    places, census, _ = found(capsys, write(tmp_path / "a.json", [row(0, item_id="mine_1")]), f"--task={own}")
    assert not places and census["task"] == str(own) and census["programs"] == {"correct": 1}
    own.write_text("class Task:\n    kind = 'number'\n")
    code, _, err = told(capsys, tmp_path / "a.json", f"--task={own}")
    assert code == 2 and "or a file of your own (my.py) whose Task has a read" in err


@pytest.mark.parametrize("argv, part", [
    ([], "FILE is missing"),
    (["a.json", "--tests=b"], "unknown argument '--tests'; did you mean '--test'?"),
    (["a.json", "--task=gsm"], "--task: got 'gsm'; legal are gsm8k, math, mathqa, mathqa-numeric, svamp"),
    (["a.json", "--task=arithmetic"], "--task: got 'arithmetic'; legal are gsm8k"),
    (["a.json", "--task=no.py"], "no.py: cannot be read"),
    (["a.json", "--cot=python"], "--cot: got 'python'"),
    (["a.json", "--max-prompt=x", "--tokenizer=bpe"], "--max-prompt: got 'x'"),
    (["a.json", "--max-prompt=3"], "name a --tokenizer"),
    (["a.json", "--test"], "--test needs a value"),
    (["/no/such/file.json"], "cannot read the data file /no/such/file.json"),
])  # fmt: skip
def test_wrong_usage_and_missing_files(capsys, argv, part):
    code, out, err = told(capsys, *argv)
    assert code == 2 and not out and err.startswith("error: ") and part in err


def test_what_cannot_be_told_must_be_said(tmp_path, capsys):
    path = write(tmp_path / "a.json", [row(0, item_id="mine_1")])
    code, _, err = told(capsys, path)
    assert code == 2 and "--task=gsm8k|math|mathqa|mathqa-numeric|svamp" in err
    assert told(capsys, path, "--task=svamp")[:2] == (0, told(capsys, path, "--task=svamp")[1])
    code, _, err = told(capsys, path, "--task=svamp", "--tokenizer=codellama_7b")
    assert code == 2 and "codellama_7b" in err and SHIPPED in err
    assert told(capsys, path, "--task=svamp", f"--test={tmp_path / 'no.json'}")[0] == 2


def test_ctrl_c_is_one_line(tmp_path):
    path = write(tmp_path / "a.json", [row(i, answer_cot="def solution():\n    while True: pass") for i in range(200)])
    command = [sys.executable, "-m", "reft_jax.doctor", path]
    process = subprocess.Popen(
        command, cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    begun, children = time.monotonic(), pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("no /proc with a process's children here")
    while not children.read_text() and time.monotonic() - begun < 60:  # until it runs programs
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert err.strip() == "stopped by Ctrl-C; nothing was written"


def test_published_files(capsys):
    root = shared_data()
    svamp = root / "svamp_nl.json"
    places, census, _ = found(capsys, svamp, f"--test={root / 'svamp_test_set.json'}")
    assert (census["records"], census["overlap"]["shared"]) == (3076, 0)
    assert census["own_answers"] == {"agree": 3074, "differ": 2, "none": 0}
    assert [line for line, kind, _ in places if kind == "answer"] == [5486, 11768]
    gsm8k = root / "gsm8k"
    code, out, _ = told(capsys, gsm8k / "train.jsonl", gsm8k / "test.jsonl", f"--test={root / 'gsm8k_test_set.json'}")
    assert code == 1 and f"{root / 'gsm8k_test_set.json'}:2: overlap: " in out and "1319 findings: 1319 overlap" in out


def test_options_are_those_of_the_config():
    with pytest.raises(InputError):
        doctor.parse(["--json"])
    assert doctor.parse(["a", "b", "--max-response=3", "--tokenizer=x", "--json"]) == doctor.Options(
        ("a", "b"), tokenizers=("x",), max_response=3, json=True
    )
