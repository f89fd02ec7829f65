"""Responses graded, each by the process whose row it is, and the monitors of what was graded."""

import dataclasses

from reft_jax.config.settings import Data, Verifier
from reft_jax.data import prompts
from reft_jax.mesh import distributed
from reft_jax.rewards import matchers, monitors
from reft_jax.rewards import score as rewards
from reft_jax.rewards.score import Ahead
from reft_jax.tasks import mathqa


def grade(
    data: Data, verifier: Verifier, records, texts, purpose: str, ahead: Ahead | None = None
) -> list[rewards.Grade]:
    """A grade for each response, by the process whose row it is; `ahead` may have run those programs already."""
    rows = [row for row in range(len(texts)) if distributed.mine(row)]
    grades = rewards.grade(
        data.task,
        data.cot,
        [prompts.completed(records[row], texts[row], data, purpose=purpose) for row in rows],
        [records[row].gold for row in rows],
        matcher=data.matcher,
        max_verifier_failures=verifier.max_verifier_failures,
        ahead=ahead,
        **verifier.limits,
    )
    shared = distributed.share([dataclasses.astuple(grade) for grade in grades], len(texts))
    return [rewards.Grade(*grade) for grade in shared]


def watch(data: Data, records, texts, grades, purpose: str) -> dict[str, float]:
    """The monitors (`rewards/monitors`) of graded responses; each process looks at those whose rows are its own."""
    kind, program = rewards.answer_kind(data.task), matchers.get(data.matcher).program
    seen = []
    for row in filter(distributed.mine, range(len(texts))):
        record, text, grade = records[row], texts[row], grades[row]
        whole = prompts.completed(record, text, data, purpose=purpose)
        one = monitors.look(
            program(whole) if data.cot == "program" else whole,
            text,
            cot=data.cot,
            kind=kind,
            extracted=grade.extracted,
            correct=grade.correct,
            gold=record.answer,
            gold_cot=prompts.continuation(record, data, purpose=purpose),
            options=mathqa.option_numbers(record.question) if kind == "choice" else {},
        )
        seen.append(dataclasses.astuple(one))
    return monitors.summary([monitors.Seen(*one) for one in distributed.share(seen, len(texts))])
