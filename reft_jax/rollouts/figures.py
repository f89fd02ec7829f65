"""Graded responses summed up: accuracy, voting, pass@k and re-ranking, with intervals."""

import math

from reft_jax.rewards import estimates
from reft_jax.rewards.score import Grade
from reft_jax.rollouts.questions import Questions


def accuracy(questions: Questions, grades: list[list[Grade]]) -> float:
    """Share of all questions, the too long ones included, whose first response is right."""
    return sum(row[0].correct for row in grades) / max(questions.num, 1)


def greedy_summary(questions: Questions, grades: list[list[Grade]]) -> dict:
    """accuracy with its Wilson 95 % interval, the statuses' shares, and the accuracy by tag (for instance num_ops)."""
    correct = sum(row[0].correct for row in grades)
    statuses = [row[0].status for row in grades]
    out = {
        "accuracy": correct / questions.num,
        "ci95": list(estimates.wilson(correct, questions.num)),
        "num_questions": questions.num,
        "num_correct": correct,
        "num_too_long": len(questions.fitted.too_long),
        "status": {status: statuses.count(status) / len(statuses) for status in sorted(set(statuses))},
    }
    slices: dict = {}
    for record, row in zip(questions.fitted.records, grades, strict=True):
        for tag in ("num_ops", "phrasing"):
            if tag in record.tags:
                slices.setdefault(tag, {}).setdefault(str(record.tags[tag]), []).append(row[0].correct)
    out["by"] = {
        tag: {
            value: {
                "accuracy": sum(marks) / len(marks),
                "num_questions": len(marks),
                "ci95": list(estimates.wilson(sum(marks), len(marks))),
            }
            for value, marks in sorted(values.items())
        }
        for tag, values in slices.items()
    }
    return out


def sampled_summary(questions: Questions, grades: list[list[Grade]], k: int) -> dict:
    """avg@k (mean accuracy of a sample), maj@k (the most frequent answer is right) and unbiased pass@k, with 95 % intervals."""
    n = questions.num
    shares = [sum(g.correct for g in row) / k for row in grades] + [0.0] * len(questions.fitted.too_long)
    voted = sum(estimates.vote_is_right(*votes(row)) for row in grades)
    passed = [estimates.pass_at_k(k, sum(g.correct for g in row), k) for row in grades]
    mean = sum(shares) / n
    half = 1.959964 * math.sqrt(
        sum((s - mean) ** 2 for s in shares) / max(n - 1, 1) / n
    )  # questions are the independent draws
    return {
        f"avg@{k}": mean,
        f"avg@{k}_ci95": [max(mean - half, 0.0), min(mean + half, 1.0)],
        f"maj@{k}": voted / n,
        f"maj@{k}_ci95": list(estimates.wilson(voted, n)),
        f"pass@{k}": sum(passed) / n,
        f"pass@{k}_ci95": list(estimates.wilson(round(sum(passed)), n)),
        "num_sampled_questions": n,
    }


def votes(row: list[Grade]) -> tuple[list, list[bool]]:
    """(answers, whether they are right) of a question's samples."""
    return [grade.extracted for grade in row], [grade.correct for grade in row]


def reranked_summary(questions: Questions, grades: list[list[Grade]], scores: list[list[float]], k: int) -> dict:
    """With P(right) of every sample: rerank@k (the likeliest sample is right), weighted@k (so is the answer with the most probability
    in all) and, as the limit of any choice, oracle@k (some sample is right), with Wilson 95 % intervals."""
    pairs = list(zip(grades, scores, strict=True))
    right = {
        "rerank": sum(row[estimates.best_of(marks)].correct for row, marks in pairs),
        "weighted": sum(estimates.vote_is_right(*votes(row), marks) for row, marks in pairs),
        "oracle": sum(estimates.oracle_at_k(votes(row)[1], k) for row in grades),
    }
    out: dict = {}
    for name, count in right.items():
        out |= {f"{name}@{k}": count / questions.num, f"{name}@{k}_ci95": list(estimates.wilson(count, questions.num))}
    return out
