"""The demo's smoke run, end to end: every file of a workdir, the same on several devices, and nothing done twice."""

import json
import math
import re

import pytest

from reft_jax.advantages import gae
from reft_jax.losses.policy import Loss as Policy
from reft_jax.recipe import load
from reft_jax.rewards import score
from reft_jax.run import jax_settings
from reft_jax.stages.reft import PPO
from tests import runs

SFT_METRICS = {"sft/loss", "grad/norm", "params/norm", "time/update_s"}
REFT_METRICS = {
    "reward/mean", "reward/accuracy", "kl/mean", "entropy/mean", "ppo/policy_loss", "ppo/value_loss", "ppo/clip_fraction",
    "ppo/first_ratio_error", "ppo/explained_variance", "grad/norm", "params/norm", "sample/length_mean", "sample/length_max",
    "time/sample_s", "time/reward_s", "time/update_s", "rate/sample_tokens_per_s",
}  # fmt: skip
SAMPLE_FIELDS = {
    "step",
    "item_id",
    "question",
    "response",
    "extracted",
    "status",
    "score",
    "kl",
    "logp",
    "ref_logp",
    "value",
    "adv",
}
PREDICTION_FIELDS = {"item_id", "k", "response", "extracted", "status", "gold"}
NUM_STEPS = {"warmup": 8, "sft": 16, "reft": 4}  # 64 questions: 2 and 4 epochs by 16, 2 epochs by 32
K = 4


@pytest.fixture(scope="module")
def workdir():
    return runs.unbroken()


# ------------------------------------------------------------------ files


def test_every_file_of_a_workdir_is_there(workdir):
    names = {"config.json", "results.json", "report.html", "tokenizer", "plots", *runs.STAGES, *runs.LABELS}
    assert names <= {path.name for path in workdir.iterdir()}
    for stage in runs.STAGES:
        json.loads((workdir / stage / "DONE").read_text())
    for stage, last in NUM_STEPS.items():
        steps = sorted(int(path.name) for path in (workdir / stage / "checkpoints").iterdir())
        assert steps[-1] == last and len(steps) <= 3  # the last two and the best
    assert {"accuracy.png", "reft.png", "results.png"} <= {path.name for path in (workdir / "plots").iterdir()}
    for path in (workdir / "plots").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    assert not list(workdir.rglob("*.tmp"))


def test_config_json_says_what_ran_on_what(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    _, tree = load(str(runs.ROOT / runs.SMOKE))
    decided = dict(bos="off", line_end="prefix")  # what auto means of a shipped model
    assert stored["config"] == json.loads(json.dumps(tree | {"data": tree["data"] | decided}))
    assert list(stored["config"]["stages"]) == list(runs.STAGES)
    assert stored["packages"]["jax"] and stored["packages"]["orbax-checkpoint"] and len(stored["devices"]) == 1
    assert stored["own_files"] == {}  # no choice is a file of the user's own
    assert stored["git_commit"] is None or len(stored["git_commit"]) == 40


def test_the_tokenizer_loads_with_transformers(workdir):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(workdir / "tokenizer"), local_files_only=True)
    text = "def solution():\n    v0 = 5 + 3\n    return v0"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_terminal_shows_progress_table_and_paths(workdir):
    text = runs.log(workdir)
    for part in ["warmup: step 8/8", "reft: step 4/4", "gold check: 64 of 64", "95 % interval", f"results: {workdir / 'results.json'}",
                 f"report: {workdir / 'report.html'}", f"plot: {workdir / 'plots' / 'accuracy.png'}"]:  # fmt: skip
        assert part in text
    assert "Traceback" not in text and "Warning" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)  # it goes to a file: no control characters


def test_the_first_lines_say_what_runs_on_what(workdir):
    lines = runs.log(workdir).splitlines()[:11]
    patterns = [
        rf"run      {workdir}, commit (unknown|[0-9a-f]{{12}}), jax \S+",
        r"devices  1 x cpu, [0-9.]+ [GT]B of memory; mesh: data 1, fsdp 1, tensor 1",
        r"model    arithmetic_base: 427,008 parameters, 1.71 MB in float32, computes in float32",
        r"tokens   vocabulary 195, ends: <eos> \(1\)",
        r"data     arithmetic \(program\): 64 train, 32 dev, 32 test questions",
        r"memory   about [0-9.]+ MB at most, in updates of reft, of [0-9.]+ [GT]B",
        r"stages   warmup: to do",
        r"         sft: to do",
        r"         reft: to do",
        r"         evaluate: 4 of 4 checkpoints to evaluate",
        r"note     gold check: 64 of 64 training answers grade as correct",
    ]
    for pattern, line in zip(patterns, lines, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize("stage", NUM_STEPS)
def test_event_files_hold_the_metrics(workdir, stage):
    written = runs.lines(workdir / stage / "metrics.jsonl")
    drawn = runs.event_file(workdir / stage)
    assert [event.keys() for event in drawn] == [line.keys() for line in written]
    for event, line in zip(drawn, written, strict=True):
        assert event == pytest.approx(line, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("stage", ["warmup", "sft"])
def test_metrics_of_sft(workdir, stage):
    lines = runs.lines(workdir / stage / "metrics.jsonl")
    first = 1 if stage == "warmup" else NUM_STEPS["warmup"] + 1  # the second goes on where the first ended
    assert [line["step"] for line in lines] == [s for s in range(first, NUM_STEPS[stage] + 1) if s % 2 == 0]
    for line in lines:
        assert SFT_METRICS <= line.keys() and math.isclose(line["epoch"], line["step"] * 16 / 64)
        assert ("eval/dev_accuracy" in line) == (line["step"] % 4 == 0)
    assert lines[-1]["sft/loss"] < 1


def test_metrics_of_reft(workdir):
    first, *lines = runs.lines(workdir / "reft" / "metrics.jsonl")
    assert first["step"] == 0 and 0 <= first["eval/dev_accuracy"] <= 1  # where the warm-up stands
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert REFT_METRICS | {f"status/{status}" for status in score.STATUSES} <= line.keys()
        assert all(isinstance(value, int | float) for value in line.values())
        assert math.isclose(sum(line[f"status/{status}"] for status in score.STATUSES), 1, abs_tol=1e-6)
        assert 0 <= line["ppo/clip_fraction"] <= 1 and line["entropy/mean"] > 0 and line["grad/norm"] > 0
        assert line["reward/right"] == pytest.approx(line["reward/accuracy"])  # a mean of each reward term
        assert line["reward/mean"] == pytest.approx(line["reward/right"] + 0.1 * line["reward/partial"], abs=1e-6)
    assert lines[0]["time"] < lines[-1]["time"]


def test_monitors_stand_in_metrics_and_results(workdir):
    """Every step's, from all of its 32 responses; the gap where there is a check; and each evaluated split's."""
    ours = {f"monitor/{name}" for name in ("literal_program", "repeated_ngrams", "length_ratio")}
    _, *lines = runs.lines(workdir / "reft" / "metrics.jsonl")
    for line in lines:
        gap = {"monitor/train_dev_gap"} if "eval/dev_accuracy" in line else set()
        assert {key for key in line if key.startswith("monitor/")} == ours | gap
        assert (32 * line["monitor/literal_program"]) % 1 == 0 and 0 <= line["monitor/repeated_ngrams"] < 1
        assert 0.2 < line["monitor/length_ratio"] < 5
        assert not gap or line["monitor/train_dev_gap"] == line["reward/accuracy"] - line["eval/dev_accuracy"]
    assert "monitor/train_dev_gap" in lines[-1]
    for result in json.loads((workdir / "results.json").read_text())["stages"].values():
        assert ours <= result["monitors"].keys() | {"monitor/length_ratio"} and ours <= result["dev"]["monitors"].keys()


def test_the_first_step_starts_from_the_reference(workdir):
    first = runs.lines(workdir / "reft" / "metrics.jsonl")[1]
    assert first["kl/mean"] == 0
    assert first["ppo/first_ratio_error"] < 1e-5
    assert first["sample/logp_gap_max"] < 1e-3  # the sampler's log-probs are the training forward's
    samples = [line for line in runs.lines(workdir / "reft" / "samples.jsonl") if line["step"] == 1]
    assert samples and all(line["kl"] == 0 and line["logp"] == line["ref_logp"] for line in samples)
    later = runs.lines(workdir / "reft" / "metrics.jsonl")[-1]
    assert later["kl/mean"] != 0 and later["ppo/first_ratio_error"] < 1e-5


def test_samples_hold_the_numbers_of_every_token(workdir):
    samples = runs.lines(workdir / "reft" / "samples.jsonl")
    assert [line["step"] for line in samples] == sorted(line["step"] for line in samples)
    assert {line["step"] for line in samples} == {1, 2, 3, 4}
    for line in samples:
        assert SAMPLE_FIELDS <= line.keys()
        length = len(line["logp"])
        assert length >= 1 and all(len(line[key]) == length for key in ("tokens", "ref_logp", "value", "adv"))
        assert max(line["logp"]) <= 0 and math.isclose(
            line["kl"], sum(line["logp"]) - sum(line["ref_logp"]), abs_tol=1e-3
        )
        assert line["score"] == (
            1.0 if line["status"] == "correct" else pytest.approx(0.1) if line["extracted"] is not None else 0.0
        )
        assert "".join(token for token in line["tokens"] if token != "<eos>") == line["response"]


# ------------------------------------------------------------------ results


def test_results_can_be_recomputed_from_the_predictions(workdir):
    stages = json.loads((workdir / "results.json").read_text())["stages"]
    assert list(stages) == list(runs.LABELS)
    for label, result in stages.items():
        lines = runs.lines(workdir / label / "predictions.jsonl")
        assert all(PREDICTION_FIELDS <= line.keys() for line in lines)
        greedy = [line for line in lines if (line["split"], line["mode"]) == ("test", "greedy")]
        assert len(greedy) == result["num_questions"] == 32 and len({line["item_id"] for line in greedy}) == 32
        correct = [line["status"] == "correct" for line in greedy]
        assert result["accuracy"] == sum(correct) / 32 and result["num_correct"] == sum(correct)
        low, high = result["ci95"]
        assert 0 <= low <= result["accuracy"] <= high <= 1 and low < high
        for line in greedy:  # the marks themselves: the extracted number is the gold one
            assert (line["status"] == "correct") == (
                line["extracted"] is not None and float(line["extracted"]) == float(line["gold"])
            )
        dev = [line["status"] == "correct" for line in lines if line["split"] == "dev"]
        assert result["dev"]["accuracy"] == sum(dev) / len(dev) and len(dev) == 32
        slices = [part for part in result["by"]["num_ops"].values()]
        assert sum(part["num_questions"] for part in slices) == 32

        rows: dict = {}
        for line in lines:
            if line["mode"] == "sampled":
                rows.setdefault(line["item_id"], []).append(line)
        assert len(rows) == result["num_sampled_questions"] == 16
        assert all([line["k"] for line in row] == list(range(K)) for row in rows.values())
        assert set(rows) <= {line["item_id"] for line in greedy}
        passed = [any(line["status"] == "correct" for line in row) for row in rows.values()]
        shares = [sum(line["status"] == "correct" for line in row) / K for row in rows.values()]
        assert result[f"pass@{K}"] == pytest.approx(sum(passed) / 16) and result[f"avg@{K}"] == pytest.approx(
            sum(shares) / 16
        )
        assert result[f"maj@{K}"] == pytest.approx(sum(map(voted, rows.values())) / 16)
        assert result["matcher"] == "reft"
    assert stages["reft"]["selected_on"] == "dev" and stages["warmup"]["selected_on"] is None
    assert stages["reft"]["step"] == json.loads((workdir / "reft" / "DONE").read_text())["selected_step"]


def voted(row) -> bool:
    """Whether the most frequent answer (the earliest of equals) is the gold one."""
    answers = [line["extracted"] for line in row if line["extracted"] is not None]
    best = max(answers, key=lambda answer: (answers.count(answer), -answers.index(answer)), default=None)
    return best is not None and float(best) == float(row[0]["gold"])


def test_dev_accuracies_of_training_and_evaluation_agree(workdir):
    stages = json.loads((workdir / "results.json").read_text())["stages"]
    for stage in NUM_STEPS:
        by_step = {
            line["step"]: line.get("eval/dev_accuracy") for line in runs.lines(workdir / stage / "metrics.jsonl")
        }
        assert by_step[stages[stage]["step"]] == stages[stage]["dev"]["accuracy"]


def test_stored_responses_are_graded_as_they_stand(workdir):
    lines = [line for line in runs.lines(workdir / "sft" / "predictions.jsonl") if line["mode"] == "greedy"][:20]
    texts = ["def solution():\n" + line["response"] for line in lines]
    grades = score.grade("arithmetic", "program", texts, [line["gold"] for line in lines])
    assert [(grade.status, grade.extracted) for grade in grades] == [
        (line["status"], line["extracted"]) for line in lines
    ]


# ------------------------------------------------------------------ again, elsewhere, in one piece


@pytest.mark.slow
def test_run_again_finds_everything_done(workdir):
    written = {stage: runs.contents(workdir / stage) for stage in {*runs.STAGES, *runs.LABELS}}
    texts = {name: (workdir / name).read_bytes() for name in ("config.json", "results.json")}
    runs.run(workdir)
    assert written == {stage: runs.contents(workdir / stage) for stage in {*runs.STAGES, *runs.LABELS}}
    assert texts == {name: (workdir / name).read_bytes() for name in texts}
    for stage in runs.STAGES:
        assert f"{stage}: done before" in runs.log(workdir)


@pytest.mark.slow
def test_eight_devices_compute_the_same(workdir, tmp_path):
    sizes = dict(data=2, fsdp=4)
    overrides = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
    other = runs.run(tmp_path / "run", *overrides, devices=8)
    assert json.loads((other / "config.json").read_text())["mesh"] == sizes | {"tensor": 1}
    apart = []
    for stage in NUM_STEPS:
        ours, theirs = (runs.timeless(runs.lines(folder / stage / "metrics.jsonl")) for folder in (workdir, other))
        assert [line.keys() for line in ours] == [line.keys() for line in theirs]
        for a, b in zip(ours, theirs, strict=True):
            # An extreme: one token's exp(change of log-prob) after several updates, where every rounding has grown.
            close = {key: 1e-4 if key == "ppo/ratio_error_max" else 1e-5 for key in a}
            if gap := {line.pop("sample/logp_gap_max", None) for line in (a, b)} - {None}:
                assert (
                    max(gap) < 1e-4
                )  # of two computations of one number: rounding alone, so that there is nothing to be alike
            apart += [
                (stage, a["step"], key, a[key], b[key])
                for key in a
                if not math.isclose(a[key], b[key], rel_tol=close[key], abs_tol=close[key])
            ]
    assert not apart
    ours, theirs = (json.loads((folder / "results.json").read_text())["stages"] for folder in (workdir, other))
    assert {label: result["accuracy"] for label, result in ours.items()} == {
        label: result["accuracy"] for label, result in theirs.items()
    }


@pytest.mark.slow
def test_warmup_and_continuation_are_one_run(workdir, tmp_path):
    path = tmp_path / "straight.py"
    path.write_text(
        "from reft_jax.configs import common, demo\n\n\n"
        "def get_config(arg=''):\n"
        "    config = demo.get_config('smoke').to_dict()\n"
        "    stages = config['stages']\n"
        "    straight = stages['sft'] | dict(init_from=stages['warmup']['init_from'], continue_run=False)\n"
        "    return common.ordered(config | dict(stages=dict(straight=straight)))\n"
    )
    straight = runs.run(tmp_path / "run", spec=str(path)) / "straight"
    runs.assert_same_params(workdir / "sft", straight)
    lines = {line["step"]: line for line in runs.timeless(runs.lines(straight / "metrics.jsonl"))}
    for stage in ("warmup", "sft"):
        for line in runs.timeless(runs.lines(workdir / stage / "metrics.jsonl")):
            assert lines.pop(line["step"]) == line
    assert not lines


def test_the_recipe_has_the_papers_numbers():
    reft = dict(load(str(runs.ROOT / "configs/reft.py") + ":train_file=t.json")[0].stages)["reft"]
    adv, [(_, policy)] = reft.advantage, reft.losses
    assert isinstance(reft.ppo, PPO) and isinstance(adv, gae.Advantage) and isinstance(policy, Policy)
    assert (policy.clip, adv.critic.clip, adv.gamma, adv.lam, reft.ppo.epochs, adv.critic.coef) == (
        0.2,
        0.2,
        1.0,
        0.95,
        2,
        5.0,
    )


def test_compiled_programs_stay_beside_the_workdir_unless_the_user_named_a_place(tmp_path):
    import jax

    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "gs://bucket/compiled")
        jax_settings.keep_compiled(tmp_path / "run")
        assert jax.config.jax_compilation_cache_dir == "gs://bucket/compiled"
        jax.config.update("jax_compilation_cache_dir", None)
        jax_settings.keep_compiled(tmp_path / "run")
        place = jax.config.jax_compilation_cache_dir
        assert place.startswith(f"{tmp_path}/.jax_cache/") and not (tmp_path / ".jax_cache").exists()
        jax.config.update("jax_compilation_cache_dir", None)
        jax_settings.keep_compiled(tmp_path / "other")
        assert jax.config.jax_compilation_cache_dir == place  # runs side by side share them
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
