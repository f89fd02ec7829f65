"""Responses drawn and graded: the one way, in training, in checks and evaluation, and for stages that learn from stored ones."""

import dataclasses
import time

import numpy as np

from reft_jax.config.settings import Sampling
from reft_jax.data import batching, prompts
from reft_jax.mesh import distributed
from reft_jax.rewards import score as rewards
from reft_jax.rewards.total import Responses
from reft_jax.rollouts import grade as grade_lib
from reft_jax.rollouts.questions import Questions, make_prompts, make_sampler
from reft_jax.run.run import Run
from reft_jax.types import Sample


class Actor:
    """Answers questions with a model's parameters of the moment, `num_slots` responses at a time; programs that are complete run while others
    are still being drawn (unless `ahead` is False)."""

    def __init__(
        self, run: Run, model, sampling: Sampling, num_slots: int, num_samples: int = 1, *, ahead: bool = True
    ):
        self.run, self.config, self.num_samples = run, run.config, num_samples
        self.sampler = make_sampler(run, model, sampling, num_slots, num_samples)
        data, verifier = run.config.data, run.config.verifier
        runs = ahead and data.cot == "program"
        self.ahead = rewards.Ahead(matcher=data.matcher, **verifier.limits) if runs else None
        self.slot_steps = 0  # of the last draw: decoding steps times slots

    def draw(self, params, questions: Questions, key, rows=None, *, each=None, in_order: bool = False) -> Responses:
        """num_samples responses to each of the questions `rows` (None = all), in that order, not graded yet.

        A response is a function of the key, the question's index, how often `rows` had that question before, and k alone. each(responses so
        far) is called as they end. Prompts of like length are read together unless they are to be read `in_order`.
        """
        rows = range(len(questions.records)) if rows is None else rows
        order = list(range(len(rows)))
        if not in_order:
            order.sort(key=lambda i: len(questions.encoded[rows[i]].prompt))
        num = self.num_samples
        records = [questions.records[row] for row in rows for _ in range(num)]
        texts, tokens, logp, ended = ([None] * len(records) for _ in range(4))
        before = self.sampler.counts["slot_steps"]
        asked = make_prompts(self.run, questions.encoded, [rows[i] for i in order]) if records else None
        for count, done in enumerate(self.sampler.stream(params, asked, key) if records else (), start=1):
            place, k = divmod(done.row, num)
            at = order[place] * num + k
            texts[at], tokens[at], logp[at] = self.sampler.response(done.tokens), done.tokens.tolist(), done.logp
            # shorter than could be without an end: a stop string ended it
            ended[at] = len(done.tokens) < self.sampler.max_new or int(done.tokens[-1]) in self.run.eos_ids
            if self.ahead is not None and distributed.mine(at):  # by the process that will grade it
                whole = prompts.completed(records[at], texts[at], self.config.data, purpose=questions.purpose)
                self.ahead.add(whole)
            if each is not None:
                each(count)
        self.slot_steps = self.sampler.counts["slot_steps"] - before
        kind = rewards.answer_kind(self.config.data.task)
        return Responses(records, texts, tokens, (), num, questions.purpose, ended, logp, task_kind=kind)

    def graded(self, drawn: Responses, step: int = 0) -> Responses:
        """The responses with their grades, as those of a step."""
        data, verifier = self.config.data, self.config.verifier
        grades = grade_lib.grade(data, verifier, drawn.records, drawn.texts, drawn.purpose, self.ahead)
        return dataclasses.replace(drawn, grades=grades, step=step)

    def answers(self, params, questions: Questions, key, *, each=None) -> Responses:
        """Graded responses to all questions."""
        return self.graded(self.draw(params, questions, key, each=each))

    def watch(self, drawn: Responses) -> dict[str, float]:
        """The monitors of graded responses."""
        return grade_lib.watch(self.config.data, drawn.records, drawn.texts, drawn.grades, drawn.purpose)

    def metrics(self, drawn: Responses, seconds) -> dict[str, float]:
        """What a step's graded responses were like; `seconds` that sampling, grading and the update took."""
        began = time.monotonic()
        watched = self.watch(drawn)
        lengths, grades = drawn.lengths, drawn.grades
        sample_s, reward_s, update_s = seconds
        out = {
            "reward/accuracy": np.mean([g.correct for g in grades]),
            "sample/length_mean": lengths.mean(),
            "sample/length_max": lengths.max(),
            "sample/at_limit": np.mean(lengths == self.sampler.max_new),
            "sample/slot_use": lengths.sum() / self.slot_steps,
            "rate/sample_tokens_per_s": lengths.sum() / sample_s,
            "time/sample_s": sample_s,
            "time/reward_s": reward_s,
            "time/reward_hidden_s": self.ahead.hidden_s if self.ahead else 0.0,
            "time/update_s": update_s,
            "time/monitor_s": time.monotonic() - began,
            # a count, but named like times: it depends on the process (compiled anew after a restart), not on the run
            "time/sample_programs": self.sampler.num_programs,
        }
        out |= {f"status/{status}": np.mean([g.status == status for g in grades]) for status in rewards.STATUSES}
        return {key: float(value) for key, value in (out | watched).items()}

    def sample(self, drawn: Responses) -> Sample:
        """The responses as host arrays, right-padded to the bucket of the longest: scoring and updates do not pay for the limit."""
        length = batching.bucket(int(drawn.lengths.max()), self.config.data.response_buckets)
        tokens, mask = batching.pad_right(drawn.tokens, length, self.run.tokenizer.pad_token_id)
        logp = np.zeros(mask.shape, np.float32)
        logp[mask] = np.concatenate(drawn.logp)
        return Sample(tokens, mask, logp)

    def lines(self, drawn: Responses, scores, num: int, *, numbers=None):
        """The first `num` graded responses as samples.jsonl holds them; numbers(count): what else is known of the first so many, name -> f32[count]
        of responses or f32[count, R] of their tokens (None = the sampler's log-probabilities)."""
        count = min(num, len(drawn.records))
        told = numbers(count) if numbers is not None and count else {"logp": drawn.logp}
        for i in range(count):
            record, grade, length = drawn.records[i], drawn.grades[i], drawn.lengths[i]
            yield {
                "item_id": record.item_id,
                "question": record.question,
                "response": drawn.texts[i],
                "extracted": grade.extracted,
                "status": grade.status,
                "score": scores[i],
                **{name: value[i] for name, value in told.items() if np.ndim(value[i]) == 0},
                "tokens": self.run.tokenizer.convert_ids_to_tokens(drawn.tokens[i]),
                **{name: value[i][:length] for name, value in told.items() if np.ndim(value[i]) == 1},
            }
