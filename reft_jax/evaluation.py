"""Asking a model questions and marking its answers: greedy accuracy, voting and pass@k, with intervals.

One function samples (`respond`), one marks (`mark`), one sums up (`summary`); training's dev checks and the evaluate
stage go through the same three. A question too long to ask counts as wrong.
"""

import dataclasses
import math

from reft_jax import distributed
from reft_jax.data import batching, prompts
from reft_jax.rewards import estimates
from reft_jax.rewards.score import Grade
from reft_jax.stages import common

TOO_LONG = Grade("no_answer", None, False)


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions as a purpose ("evaluate" or "reft") asks them, and those too long to be asked."""

    purpose: str
    fitted: batching.Fitted

    @property
    def num(self) -> int:
        return len(self.fitted.records) + len(self.fitted.too_long)


def ask(run, records, purpose: str, limit: int = 0) -> Questions:
    """The first `limit` (0 = all) records, tokenized for sampling."""
    records = records[:limit] if limit else records
    return Questions(purpose, batching.fit(run.tokenizer, records, run.config.data, purpose=purpose))


def responses(run, sampler, params, questions: Questions, key, rows=None, ahead=None):
    """Yields (question, k, text, whether it ended by itself) for sampler.num_samples responses to each fitted question, or to those of
    `rows`, as they end. A response is a function of the key, the question's index and k alone. `ahead` (a `rewards.score.Ahead`) begins
    to run their programs meanwhile."""
    encoded = questions.fitted.encoded
    rows = range(len(encoded)) if rows is None else rows
    # prompts of like length are read together
    by_length = sorted(range(len(rows)), key=lambda i: len(encoded[rows[i]].prompt))
    if not by_length:
        return
    asked = common.make_prompts(run, encoded, [rows[i] for i in by_length])
    for done in sampler.stream(params, asked, key):
        place, k = divmod(done.row, sampler.num_samples)
        question, text = rows[by_length[place]], sampler.response(done.tokens)
        # by the process that will grade it
        if ahead is not None and distributed.mine(by_length[place] * sampler.num_samples + k):
            record = questions.fitted.records[question]
            ahead.add(prompts.completed(record, text, run.config.data, purpose=questions.purpose))
        # shorter than could be: a stop string ended it
        yield question, k, text, len(done.tokens) < sampler.max_new or int(done.tokens[-1]) in run.eos_ids


def respond(run, sampler, params, questions: Questions, key, *, each=None, ahead=None) -> list[list[str]]:
    """sampler.num_samples texts for each fitted question. `each(responses so far)` is called as the work goes on; `ahead`: as in
    `responses`."""
    texts = [[""] * sampler.num_samples for _ in questions.fitted.encoded]
    drawn = responses(run, sampler, params, questions, key, ahead=ahead)
    for count, (question, k, text, _) in enumerate(drawn, start=1):
        texts[question][k] = text
        if each is not None:
            each(count)
    return texts


def mark(run, questions: Questions, texts: list[list[str]], ahead=None) -> list[list[Grade]]:
    """A Grade for each text of `respond`; `ahead`: the same as there."""
    pairs = [(record, text) for record, row in zip(questions.fitted.records, texts, strict=True) for text in row]
    records, flat = [record for record, _ in pairs], [text for _, text in pairs]
    grades = iter(common.grade(run, records, flat, questions.purpose, ahead))
    return [[next(grades) for _ in row] for row in texts]


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


def watch(run, questions: Questions, texts: list[list[str]], grades: list[list[Grade]]) -> dict[str, float]:
    """The monitors (`rewards/monitors`) of the responses that `mark` has graded."""
    records = [record for record, row in zip(questions.fitted.records, texts, strict=True) for _ in row]
    flat = [[one for row in rows for one in row] for rows in (texts, grades)]
    return common.watch(run, records, *flat, questions.purpose)


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
