"""Asking a model questions and marking its answers: greedy accuracy, voting and pass@k, with intervals.

One function samples (`respond`), one marks (`mark`), one sums up (`summary`); training's dev checks and the evaluate
stage go through the same three. A question too long to ask counts as wrong.
"""

import dataclasses

from reft_jax.data import batching, prompts
from reft_jax.mesh import distributed
from reft_jax.rewards.score import Grade
from reft_jax.rollouts import draw, grade

TOO_LONG = Grade("no_answer", None, False)


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions as a purpose ("ask" or "rollout") asks them, and those too long to be asked."""

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
    asked = draw.make_prompts(run, encoded, [rows[i] for i in by_length])
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
    grades = iter(grade.grade(run, records, flat, questions.purpose, ahead))
    return [[next(grades) for _ in row] for row in texts]


def watch(run, questions: Questions, texts: list[list[str]], grades: list[list[Grade]]) -> dict[str, float]:
    """The monitors (`rewards/monitors`) of the responses that `mark` has graded."""
    records = [record for record, row in zip(questions.fitted.records, texts, strict=True) for _ in row]
    flat = [[one for row in rows for one in row] for rows in (texts, grades)]
    return grade.watch(run, records, *flat, questions.purpose)
