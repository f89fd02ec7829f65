"""The responses of a step of a stage that learns from its own samples: drawn, graded, and what they were like."""

import itertools
import time

import numpy as np

from reft_jax.data import prompts
from reft_jax.mesh import distributed
from reft_jax.rewards import score as rewards
from reft_jax.rewards.total import Responses
from reft_jax.rollouts import draw
from reft_jax.rollouts import grade as grade_lib
from reft_jax.run.progress import Progress
from reft_jax.run.run import SAMPLE, Run, key_of
from reft_jax.types import Prompts, Sample


class Actor:
    """Answers questions with the policy of the moment, `num_slots` responses at a time, and has the answers graded."""

    def __init__(self, name: str, stage, run: Run, num_slots: int):
        self.name, self.run = name, run
        self.sampler = draw.make_sampler(run, run.tuned, stage.sampling, num_slots, stage.num_samples)
        self.ahead = grade_lib.programs_ahead(run)
        self.slot_steps = 0  # of the last step: decoding steps times slots

    def respond(self, step: int, policy: dict, questions: Prompts, records, bar: Progress) -> tuple[Sample, list[str]]:
        """A sample for each record (num_samples of them in a row for each question), and its text. Programs that are complete begin
        to run while others are not. `bar` shows how far it is."""
        texts, count = [""] * len(records), itertools.count(1)

        def each(done):
            bar.phase("sampling", next(count), len(records))
            text = texts[done.row] = self.sampler.response(done.tokens)
            if self.ahead is not None and distributed.mine(done.row):
                self.ahead.add(prompts.completed(records[done.row], text, self.run.config.data, purpose="rollout"))

        before = self.sampler.counts["slot_steps"]
        key = key_of(self.run.config.seed, self.name, step, SAMPLE)
        sample = self.sampler(policy, questions, key, each)
        self.slot_steps = self.sampler.counts["slot_steps"] - before
        return sample, texts

    def grade(self, records, texts) -> list[rewards.Grade]:
        return grade_lib.grade(self.run, records, texts, "rollout", self.ahead)

    def responses(self, step: int, sample: Sample, records, texts, grades) -> Responses:
        """The step's graded responses, as reward terms read them."""
        mask = np.asarray(sample.mask)
        return Responses(
            records=records,
            texts=texts,
            tokens=[row[real].tolist() for row, real in zip(np.asarray(sample.tokens), mask, strict=True)],
            grades=grades,
            gold=[record.answer for record in records],
            lengths=mask.sum(1),
            group=np.arange(len(records)) // self.sampler.num_samples,
            step=step,
            task_kind=rewards.answer_kind(self.run.config.data.task),
        )

    def metrics(self, sample: Sample, records, texts, grades, seconds) -> dict[str, float]:
        """What the step's responses were like; `seconds` that sampling, grading and the update took."""
        began = time.monotonic()
        watched = grade_lib.watch(self.run, records, texts, grades, "rollout")
        lengths = np.asarray(sample.mask).sum(1)
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


def about(record, text: str, grade: rewards.Grade, score) -> dict:
    """A response as samples.jsonl holds it, before its tokens."""
    return {
        "item_id": record.item_id,
        "question": record.question,
        "response": text,
        "extracted": grade.extracted,
        "status": grade.status,
        "score": score,
    }
