"""Asking a model questions and marking its answers: greedy accuracy, voting and pass@k, with intervals.

One function samples (`respond`), one marks (`mark`), one sums up (`summary`); training's dev checks and the evaluate
stage go through the same three. A question too long to ask counts as wrong.
"""

import dataclasses
import math

from reft_jax.data import batching, prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.rewards import estimates, score
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


def respond(run, sampler, params, questions: Questions, key, each=None) -> list[list[str]]:
    """sampler.num_samples texts for each fitted question. `each(responses so far)` is called as the work goes on."""
    encoded = questions.fitted.encoded
    # prompts of like length are read together
    by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i].prompt))
    texts = [[""] * sampler.num_samples for _ in encoded]
    if not encoded:
        return texts
    asked = common.make_prompts(run, encoded, by_length)
    for count, done in enumerate(sampler.stream(params, asked, key), start=1):
        place, k = divmod(done.row, sampler.num_samples)
        texts[by_length[place]][k] = tokenizers.decode(run.tokenizer, done.tokens.tolist(), ends=run.eos_ids)
        if each is not None:
            each(count)
    return texts


def mark(run, questions: Questions, texts: list[list[str]]) -> list[list[Grade]]:
    """A Grade for each text of `respond`."""
    data, rewards = run.config.data, run.config.rewards
    pairs = [(record, text) for record, row in zip(questions.fitted.records, texts, strict=True) for text in row]
    grades = iter(
        score.grade(
            data.name,
            data.cot,
            [prompts.completed(record, text, data, purpose=questions.purpose) for record, text in pairs],
            [record.answer for record, _ in pairs],
            matcher=data.matcher,
            max_verifier_failures=rewards.max_verifier_failures,
            timeout_s=rewards.timeout_s,
            memory_mb=rewards.memory_mb,
            workers=rewards.workers,
        )
    )
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


def sampled_summary(questions: Questions, grades: list[list[Grade]], golds_match, k: int) -> dict:
    """avg@k (mean accuracy of a sample), maj@k (the most frequent answer is right) and unbiased pass@k, with 95 % intervals."""
    n = questions.num
    shares = [sum(g.correct for g in row) / k for row in grades] + [0.0] * len(questions.fitted.too_long)
    voted = sum(golds_match(i, estimates.majority([g.extracted for g in row])) for i, row in enumerate(grades))
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
