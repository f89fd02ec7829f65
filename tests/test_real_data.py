"""Real text through the whole recipe, from scratch: every stage runs and every file is there; accuracy comes as it comes."""

import json

import pytest

from reft_jax.data import prompts
from reft_jax.recipe import load
from reft_jax.rewards import score
from reft_jax.tasks import load as load_data
from tests import runs
from tests.tiny import shared_data

LABELS = ("warmup", "sft", "reft")
# A small model, one length bucket (so that each function is compiled once) and few steps: seconds instead of a minute.
SHORT = tuple(
    f"--config.{setting}"
    for setting in (
        "data.num_train=32",
        "data.dev_size=8",
        "data.num_test=16",
        "data.max_prompt=224",
        "data.prompt_buckets=(224,)",
        "data.max_response=96",
        "data.response_buckets=(96,)",
        "model.arch.dim=64",
        "model.arch.num_layers=2",
        "model.arch.ffn_dim=128",
        "stages.warmup.epochs=1.0",
        "stages.sft.epochs=2.0",
        "stages.reft.epochs=1.0",
        "stages.evaluate.num_questions=4",
    )
)


def spec(data, cot):
    folder = shared_data()
    files = dict(
        svamp=(f"svamp_{dict(program='python_sdp', nl='nl')[cot]}.json", "svamp_test_set.json"),
        gsm8k=("gsm8k/train.jsonl", "gsm8k/test.jsonl"),
    )
    train, test = (folder / name for name in files[data])
    return f"configs/reft.py:data={data},cot={cot},model=tiny,smoke,train_file={train},test_file={test}"


def check(workdir, config):
    for stage in runs.STAGES:
        assert (workdir / stage / "DONE").exists()
    results = json.loads((workdir / "results.json").read_text())
    assert (results["data"], results["cot"]) == (config.data.task, config.data.cot)
    for label in LABELS:
        result = results["stages"][label]
        assert result["num_questions"] == config.data.num_test and 0 <= result["accuracy"] <= 1 and "pass@4" in result
        lines = runs.lines(workdir / label / "predictions.jsonl")
        greedy = [line for line in lines if (line["split"], line["mode"]) == ("test", "greedy")]
        assert len(greedy) == config.data.num_test
        assert result["accuracy"] == sum(line["status"] == "correct" for line in greedy) / len(greedy)
    for stage in LABELS:
        losses = [line for line in runs.lines(workdir / stage / "metrics.jsonl") if line["step"] > 0]
        assert losses and (workdir / stage / "checkpoints").is_dir()
    assert (workdir / "reft" / "samples.jsonl").stat().st_size > 0
    assert {"accuracy.png", "reft.png", "results.png"} <= {path.name for path in (workdir / "plots").iterdir()}
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(workdir / "tokenizer"), local_files_only=True)
    splits = load_data(config.data)
    for record in splits.train:
        text = prompts.prompt(record) + prompts.target(record, docstring=config.data.docstring)
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(splits.train) == config.data.num_train
    assert f"gold check: {len(splits.train)} of {len(splits.train)} training answers grade as correct" in runs.log(
        workdir
    )
    assert "Traceback" not in runs.log(workdir)


@pytest.mark.slow
def test_a_short_run(tmp_path):
    data, cot = "svamp", "nl"  # what no smoke run below has
    overrides = [tuple(flag.removeprefix("--config.").split("=")) for flag in SHORT]
    config, _ = load(str(runs.ROOT / spec(data, cot)), overrides)
    check(runs.run(tmp_path / "run", *SHORT, spec=spec(data, cot)), config)


@pytest.mark.slow
@pytest.mark.parametrize("data, cot", [("svamp", "program"), ("gsm8k", "nl")])
def test_the_smoke_run(tmp_path, data, cot):
    config, _ = load(str(runs.ROOT / spec(data, cot)))
    check(runs.run(tmp_path / "run", spec=spec(data, cot)), config)


@pytest.mark.parametrize("data, cot", [("svamp", "program"), ("svamp", "nl"), ("gsm8k", "nl")])
def test_gold_answers_grade_as_correct(data, cot):
    """A tenth of each training file, through prompts and grader as ReFT uses them."""
    config, _ = load(str(runs.ROOT / spec(data, cot).replace(",smoke", "")), [("data.num_train", "300")])
    records = load_data(config.data).train
    texts = [prompts.target(record, docstring=config.data.docstring) for record in records]
    failed = score.audit_gold(data, cot, texts, [r.answer for r in records], [r.item_id for r in records])
    assert len(records) == 300 and len(failed) <= 300 * config.verifier.max_gold_failures, failed
