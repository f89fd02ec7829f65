"""The benchmarks: equal work on all sides, counts by hand, and one table of what a GPU run leaves."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import types
import xml.etree.ElementTree

import numpy as np
import pytest

from benchmarks import common, picture, rollout, table, update
from reft_jax import models
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*command, **environment) -> str:
    """Standard output of a command with one CPU device, as a user has it; one thread for torch, whose others spin."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | environment
    environment |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT).stdout


def lines_of(script, *arguments) -> list[dict]:
    out = run(sys.executable, f"benchmarks/{script}.py", "--toy", *arguments)
    return [json.loads(line) for line in out.splitlines()]


def given(**changes):
    return types.SimpleNamespace(**dict(toy=True, size="", dtype="float32", prompts="") | changes)


@pytest.mark.slow
def test_both_samplers_draw_the_same_tokens_and_slots_take_fewer_steps():
    slots, batch = lines_of("rollout", "slots", "batch")
    assert slots["tokens"] == batch["tokens"] > 0 and slots["steps"] < batch["steps"]
    for line in (slots, batch):
        at_best = line["bytes_per_step"] / (1e9 * line["bandwidth_gb_s"])
        assert line["roofline"] == pytest.approx(
            at_best * line["steps"] * line["tokens_per_s"] / line["tokens"], rel=0.05
        )
        assert line["peak_mb"] > 0 and "compile_s" in line


def test_vllm_s_line_is_of_the_same_load(tmp_path, capsys):
    """A stand-in for the Python that has vLLM keeps what it was given, and tells what it took."""
    peer, kept = tmp_path / "python", tmp_path / "kept"
    answer = json.dumps(dict(tokens=30, seconds=2.0, first=5.0))
    peer.write_text(f"#!/bin/sh\ncp -r \"$2\" {kept}\necho a warning\necho '{answer}'\n")
    peer.chmod(0o755)
    rollout.measure("vllm", given(vllm=str(peer), num=None, slots=None))
    line = json.loads(capsys.readouterr().out)
    assert line["tokens_per_s"] == 15 and line["compile_s"] == 3 and line["sampler"] == "vllm"
    load, theirs = common.make_load(given()), json.loads((kept / "load.json").read_text())
    assert theirs["prompts"] == [row[real].tolist() for row, real in zip(load.tokens, load.mask, strict=True)]
    assert theirs["ends"] == list(load.ends) and theirs["slots"] == line["slots"] == load.slots
    assert json.loads((kept / "config.json").read_text())["vocab_size"] == common.TOY_SIZES["vocab_size"]
    rollout.measure("vllm", given(vllm="", num=None, slots=None))
    assert capsys.readouterr().out == "vllm: skipped, --vllm=PATH names no Python that has it\n"


@pytest.mark.slow
def test_updates_of_both_sides_have_the_same_loss():
    pytest.importorskip("torch")
    ours, theirs, ratio = lines_of("update", "ours", "torch")
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4) and ours["loss"] != 0
    assert ours["tflop"] == theirs["tflop"] and ours["tokens"] == theirs["tokens"]
    assert ratio["loss_gap"] < 1e-4


@pytest.mark.slow
def test_a_whole_step_is_timed_in_parts_that_add_up():
    pytest.importorskip("torch")
    ours, theirs, ratio = lines_of("update", "whole")
    for line in (ours, theirs):
        parts = line["sample_s"] + line["grade_s"] + line["update_s"]
        assert line["seconds"] == pytest.approx(parts, rel=0.05, abs=0.01) and line["response_tokens"] > 0
    assert ratio["seconds_ratio"] > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_of_a_decode_step_are_those_counted_by_hand(tied, dtype):
    arch = dataclasses.replace(
        tiny.ARCH, tie_embeddings=tied
    )  # 24 x 16, 2 layers, 4 heads and 2 for keys, of 6, 24 wide
    size = dict(float32=4, bfloat16=2)[dtype]
    block = 2 * 16 * 4 * 6 + 2 * 16 * 2 * 6 + 3 * 16 * 24  # queries and output, keys and values, feed-forward
    weights = (
        size * (2 * block + 24 * 16) + 4 * (2 * 2 + 1) * 16
    )  # a table of 24 rows is read whole; norms stay float32
    held = (5 + 1) + (5 + 2) + (5 + 3) + (2 + 1)  # a prompt of 5 with 3 tokens, one of 2 with 1
    moved = size * (4 * 16 + 2 * 2 * 2 * 6 * held)  # rows looked up; keys and values, layers, heads, of 6
    model = models.Model(arch, "float32", dtype)
    assert common.decode_bytes(model, [5, 2], [3, 1], 3) == pytest.approx(weights + moved / 3)


def test_a_window_holds_no_more_than_its_positions():
    def positions(windows):
        model = models.Model(dataclasses.replace(tiny.ARCH, windows=windows))
        return common.decode_bytes(model, [5], [3], 1)

    assert positions(()) - positions((4, 0)) == 4 * 2 * 2 * 6 * ((6 - 4) + (7 - 4) + (8 - 4))


def test_operations_of_an_update_are_those_counted_by_hand():
    block = 2 * 16 * 4 * 6 + 2 * 16 * 2 * 6 + 3 * 16 * 24
    forward = 2 * 2 * block * 8 + 2 * 16 * 24 * 3 + 4 * 2 * 4 * 6 * 36  # 5 + 3 tokens: 36 pairs of query and key
    assert common.update_flops(models.Model(tiny.ARCH), [5], [3], 2) == (2 + 3 * 2) * forward


def test_a_response_ends_with_its_first_stop_token():
    real = common.until_end(np.array([[5, 1, 6, 2], [0, 7, 8, 9], [2, 2, 2, 2]]), (1, 2))
    np.testing.assert_array_equal(real, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])


@pytest.mark.parametrize("size", ["", "codellama_7b"])
def test_prompts_are_the_questions_of_a_file(size, tmp_path):
    texts = ["How many are 3 and 4?", "Tom has 12 apples and gives Ann 5 of them. How many has he?"]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(dict(question=text)) + "\n" for text in texts))
    load = common.make_load(given(prompts=str(path), size=size), num=2)
    lengths = load.prompt_lengths
    assert lengths[0] < lengths[1] == load.tokens.shape[1] <= len(texts[1])
    assert load.tokens.max() < 512 or size  # of the vocabulary that the file gave; else any
    assert not load.tokens[~load.mask].any() and len(load.ends) == (3202 if size else 51)
    with pytest.raises(SystemExit, match="holds 2 questions; 3"):
        common.make_load(given(prompts=str(path), size=size), num=3)


def test_made_up_responses_end_once():
    load = common.make_load(given(), num=40)
    tokens, mask, scores = update.made_up(load, 512)
    np.testing.assert_array_equal(common.until_end(tokens, load.ends) & mask, mask)
    assert (np.isin(tokens, load.ends).sum(1) == (mask.sum(1) < load.max_new)).all()
    assert scores.dtype == np.float32 and mask.sum(1).max() <= tokens.shape[1] <= load.max_new


def test_the_table_names_what_failed_and_leaves_out_what_nobody_has():
    done = dict(sampler="slots", size="toy", dtype="float32", slots=8, tokens_per_s=1234.5, roofline=0.25)
    text = table.table([dict(command="x"), done, dict(part="update ours", failed="1"), dict(update="torch / ours")])
    head, _, first, second = text.splitlines()
    assert "1,234" in first and "25.0%" in first and "sampler slots, toy float32" in first
    assert "update ours: failed (1)" in second and "MFU" not in head and len({map(len, text.splitlines())}) == 1


@pytest.mark.slow
def test_the_gpu_script_s_toy_run_prints_a_row_for_every_part(tmp_path):
    pytest.importorskip("torch")
    out = run("bash", "benchmarks/gpu.sh", "--toy", str(tmp_path / "results.jsonl"), PYTHON=sys.executable)
    rows = [line for line in out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 6 and "failed" not in out  # the rule under the heading, and five parts
    for part in ("sampler slots", "sampler batch", "sampler transformers", "update ours", "update torch"):
        assert sum(part in row for row in rows) == 1
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(math.isfinite(line.get("seconds", 0)) for line in lines)


# ------------------------------------------------------------------ the README's picture


def test_the_picture_shows_one_question_of_the_run_and_its_curves(tmp_path):
    from reft_jax import recipe, tasks
    from reft_jax.configs import demo

    tree = json.loads(demo.get_config("smoke").to_json())
    record = tasks.load(recipe.build(tree).data).train[3]
    (tmp_path / "config.json").write_text(json.dumps({"config": tree}))
    responses = [("wrong", "    return 1 < 2"), ("correct", "    a = 3\n    return a"), ("correct", "    return 3")]
    samples = [
        dict(step=step, item_id=item, question="?", response=response, status=status, extracted="3", score=1.0)
        for item, rows in (("another", responses[:1]), (record.item_id, responses))
        for step, (status, response) in enumerate(rows, start=1)
    ]
    curve = [{"epoch": 1.0, "eval/dev_accuracy": 0.75}, {"epoch": 2.0, "eval/dev_accuracy": 0.9}, {"epoch": 3.0}]
    for stage, lines in dict(warmup=curve, sft=curve, reft=curve).items():
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "reft" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    root = xml.etree.ElementTree.fromstring(picture.draw(tmp_path))
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "return 1 < 2" in words and "a = 3" in words and "step 2: answer 3, right; reward 1" in words
    assert " ".join(words).count(record.question.split(".")[0][:20]) == 1
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 3
    with pytest.raises(SystemExit, match="no question of this run"):
        picture.choose(samples[:2])
