"""Choosing among samples by a score: re-ranking, weighted votes and the oracle, and what predictions.jsonl says of them."""

import json

import numpy as np
import pytest

from reft_jax.rewards import estimates, score
from reft_jax.rewards.score import Grade
from reft_jax.rollouts import figures
from tests import runs, test_self_train

K = 4


def test_the_summary_counts_questions_too_long_to_ask_as_wrong():
    right, wrong, none = Grade("correct", "1", True), Grade("wrong", "2", False), Grade("error", None, False)
    grades = [[wrong, right, wrong], [right, wrong, none], [none, wrong, wrong]]
    scores = [[0.2, 0.9, 0.3], [0.3, 0.2, 0.9], [0.5, 0.1, 0.1]]
    out = figures.reranked(grades, scores, 4, 3)
    assert (out["rerank@3"], out["weighted@3"], out["oracle@3"]) == (0.25, 0.5, 0.5)
    assert out["weighted@3_ci95"] == list(estimates.wilson(2, 4)) and len(out) == 6


# ------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def workdir():
    return test_self_train.unbroken()


@pytest.mark.slow
def test_reranked_results_can_be_recomputed_from_the_predictions(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert results["data"] == "arithmetic" and results["cot"] == "program" and results["timeout_s"] > 0
    for label, result in results["stages"].items():
        ranked = label != "offline"
        lines = [line for line in runs.lines(workdir / label / "predictions.jsonl") if line["mode"] == "sampled"]
        assert all(("rerank_score" in line) == ranked for line in lines)
        assert (f"rerank@{K}" in result) == (f"weighted@{K}" in result) == (f"oracle@{K}" in result) == ranked
        assert result.get("reranker") == ("reranker" if ranked else None)
        if not ranked:
            continue
        rows = [lines[i : i + K] for i in range(0, len(lines), K)]
        assert len(rows) == 8 and all(0 <= line["rerank_score"] <= 1 for line in lines)
        best = [max(row, key=lambda line: line["rerank_score"]) for row in rows]
        assert result[f"rerank@{K}"] == np.mean([line["status"] == "correct" for line in best])
        assert result[f"oracle@{K}"] == np.mean([any(line["status"] == "correct" for line in row) for row in rows])
        lo, hi = result[f"rerank@{K}_ci95"]
        assert 0 <= lo <= result[f"rerank@{K}"] <= hi <= 1 and lo < hi
    text = runs.log(workdir)
    header = next(line for line in text.splitlines() if "test greedy" in line)
    assert f"rerank@{K}" in header and f"oracle@{K}" in header and "Traceback" not in text


@pytest.mark.slow
def test_predictions_hold_what_was_graded(workdir):
    """The graded text is prefix + response: graded again, it gives the same."""
    lines = [line for line in runs.lines(workdir / "online" / "predictions.jsonl") if line["response"] is not None]
    texts = [line["prefix"] + line["response"] for line in lines]
    assert {line["prefix"] for line in lines} == {"def solution():\n"}
    grades = score.grade("arithmetic", "program", texts, [line["gold"] for line in lines])
    assert [(g.status, g.extracted) for g in grades] == [(line["status"], line["extracted"]) for line in lines]


@pytest.mark.slow
def test_the_reranker_says_what_it_learnt_from(workdir):
    lines = runs.lines(workdir / "reranker" / "reranker.jsonl")
    done = json.loads((workdir / "reranker" / "DONE").read_text())
    assert len(lines) == 48 * 4 == done["num_used"] and all(line["used"] for line in lines)
    assert all(line["right"] == (line["status"] == "correct") for line in lines)
    assert done["share_right"] == pytest.approx(np.mean([line["right"] for line in lines]))
    metrics = runs.lines(workdir / "reranker" / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [2, 4, 6, 8] and done["selected_step"] == 8
    assert {"reranker/loss", "reranker/accuracy", "reranker/right"} <= metrics[0].keys()
