"""Graded responses summed up, each figure in one way: accuracy, voting, pass@k and re-ranking, as fractions with 95 % intervals.

`rows` holds the grades of each question that was asked; `num` is the number of all questions, those too long to be asked, which are wrong,
among them.
"""

import math
import operator
from collections.abc import Sequence

from reft_jax.rewards import estimates
from reft_jax.rewards.score import Grade


def accuracy(rows: Sequence[Sequence[Grade]], num: int) -> float:
    """Share of all questions whose first response is right."""
    return sum(row[0].correct for row in rows) / max(num, 1)


def share(name: str, count: float, num: int) -> dict:
    """A share of the questions with Wilson's interval. A count may be a sum of fractions: their spread is at most that of zeros and ones, so that
    the interval is then wide rather than narrow."""
    return {name: count / num, f"{name}_ci95": list(estimates.wilson(count, num))}


def greedy(rows: Sequence[Sequence[Grade]], num: int) -> dict:
    """Of each question's first response."""
    correct = sum(row[0].correct for row in rows)
    ci95 = list(estimates.wilson(correct, num))
    return {"accuracy": accuracy(rows, num), "ci95": ci95, "num_questions": num, "num_correct": correct}


def sampled(rows: Sequence[Sequence[Grade]], num: int, k: int, agree: estimates.Agree = operator.eq) -> dict:
    """Of each question's first k samples avg@k (mean accuracy of one) and maj@k (the most frequent answer is right); of all that it has the
    unbiased pass@k. `agree`: which answers are one, `matchers.same` of the run's matcher."""
    shares = [sum(g.correct for g in row[:k]) / k for row in rows]
    mean = sum(shares) / num
    spread = sum((s - mean) ** 2 for s in shares) + (num - len(rows)) * mean**2
    half = 1.959964 * math.sqrt(spread / max(num - 1, 1) / num)  # questions are the independent draws
    return {
        f"avg@{k}": mean,
        f"avg@{k}_ci95": [max(mean - half, 0.0), min(mean + half, 1.0)],
        **share(f"maj@{k}", sum(estimates.vote_is_right(*votes(row[:k]), agree=agree) for row in rows), num),
        **share(f"pass@{k}", sum(estimates.pass_at_k(len(row), sum(g.correct for g in row), k) for row in rows), num),
        "num_sampled_questions": num,
    }


def votes(row: Sequence[Grade]) -> tuple[list, list[bool]]:
    """(answers, whether they are right) of a question's samples."""
    return [grade.extracted for grade in row], [grade.correct for grade in row]


def reranked(
    rows: Sequence[Sequence[Grade]],
    scores: Sequence[Sequence[float]],
    num: int,
    k: int,
    agree: estimates.Agree = operator.eq,
) -> dict:
    """With P(right) of every sample: rerank@k (the likeliest sample is right), weighted@k (so is the answer with the most probability
    in all, `agree` as in `sampled`) and, as the limit of any choice, oracle@k (some sample is right)."""
    pairs = list(zip(rows, scores, strict=True))
    right = {
        "rerank": sum(row[estimates.best_of(marks)].correct for row, marks in pairs),
        "weighted": sum(estimates.vote_is_right(*votes(row), marks, agree) for row, marks in pairs),
        "oracle": sum(estimates.oracle_at_k(votes(row)[1], k) for row in rows),
    }
    return {key: value for name, count in right.items() for key, value in share(f"{name}@{k}", count, num).items()}


def by_tag(records, rows: Sequence[Sequence[Grade]], tags=("num_ops", "phrasing")) -> dict:
    """tag -> value -> accuracy, number and interval of the asked questions that have it."""
    slices: dict = {}
    for record, row in zip(records, rows, strict=True):
        for tag in tags:
            if tag in record.tags:
                slices.setdefault(tag, {}).setdefault(str(record.tags[tag]), []).append([row[0]])
    told = ("accuracy", "num_questions", "ci95")
    return {
        tag: {value: {key: greedy(part, len(part))[key] for key in told} for value, part in sorted(values.items())}
        for tag, values in slices.items()
    }
