"""What the stages share that learn from their own samples (ReFT, online self-training): the responses of a step, and what is kept of it."""

import itertools
import time

import numpy as np

from reft_jax import checkpoint, distributed, profiler
from reft_jax.config import ReFT, SelfTrain
from reft_jax.data import prompts
from reft_jax.metrics import Lines
from reft_jax.progress import Progress, formatted
from reft_jax.rewards import monitors
from reft_jax.rewards import score as rewards
from reft_jax.stages import common, sft
from reft_jax.trackers import Metrics
from reft_jax.types import Prompts, Sample, TrainState

SHOWN = (
    ("reward", "reward/mean", ".3f"),
    ("accuracy", "reward/accuracy", ".3f"),
    ("KL", "kl/mean", ".3f"),
    ("length", "sample/length_mean", ".0f"),
    ("tokens/s", "rate/sample_tokens_per_s", ",.0f"),
)  # while it runs


class Actor:
    """Answers questions with the policy of the moment, `num_slots` responses at a time, and has the answers graded."""

    def __init__(self, name: str, stage: ReFT | SelfTrain, run: common.Run, num_slots: int):
        self.name, self.run = name, run
        self.sampler = common.make_sampler(run, run.tuned, stage.sampling, num_slots, stage.num_samples)
        self.ahead = common.programs_ahead(run)
        self.slot_steps = 0  # of the last step: decoding steps times slots

    def respond(self, step: int, policy: dict, questions: Prompts, records, bar: Progress) -> tuple[Sample, list[str]]:
        """A sample for each record (num_samples of them in a row for each question), and its text. Programs that are complete begin
        to run while others are not. `bar` shows how far it is."""
        texts, count = [""] * len(records), itertools.count(1)

        def each(done):
            bar.phase("sampling", next(count), len(records))
            text = texts[done.row] = self.sampler.response(done.tokens)
            if self.ahead is not None and distributed.mine(done.row):
                self.ahead.add(prompts.completed(records[done.row], text, self.run.config.data, purpose="reft"))

        before = self.sampler.counts["slot_steps"]
        key = common.key_of(self.run.config.seed, self.name, step, common.SAMPLE)
        sample = self.sampler(policy, questions, key, each)
        self.slot_steps = self.sampler.counts["slot_steps"] - before
        return sample, texts

    def grade(self, records, texts) -> list[rewards.Grade]:
        return common.grade(self.run, records, texts, "reft", self.ahead)

    def metrics(self, sample: Sample, records, texts, grades, seconds) -> dict[str, float]:
        """What the step's responses were like; `seconds` that sampling, grading and the update took."""
        began = time.monotonic()
        watched = common.watch(self.run, records, texts, grades, "reft")
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


class Log:
    """A stage's checkpoints, metrics.jsonl, samples.jsonl and progress line, over `num` training questions.

    `state` is where the stage begins: the last checkpoint's, or the given one. check(state, bar) -> metrics that a checkpoint is chosen
    by.
    """

    def __init__(self, name: str, stage: ReFT | SelfTrain, run: common.Run, num: int, state: TrainState, check):
        self.name, self.stage, self.run, self.num, self.check = name, stage, run, num, check
        self.num_steps = common.num_steps(stage.epochs, stage.batch_size, num)
        self.checkpoints = checkpoint.Checkpoints(run.folder(name))
        saved = self.checkpoints.go_on(state)
        self.start, self.state, self.progress = saved or (None, state, {"best_step": None, "best_accuracy": -1.0})
        self.shown = {}  # on the progress line

    def steps(self):
        """The steps that are left, from 1; marks the stage as finished after the last."""
        start, folder = self.start, self.run.folder(self.name)
        self.metric_lines = Metrics(self.run, self.name, after_step=-1 if start is None else start)
        self.sample_lines = Lines(folder / "samples.jsonl", after_step=-1 if start is None else start)
        self.bar = Progress(self.name, self.num_steps, start or 0, waiting="compiling")
        if start is None:  # where it begins; saved, so that a resumed run does not measure it twice
            start = 0
            self.metric_lines.write({"step": 0, "epoch": 0.0, "time": time.time(), **self.check(self.state, self.bar)})
            self.checkpoints.save(0, self.state, self.progress)
        for step in profiler.traced(self.run, self.name, range(start + 1, self.num_steps + 1)):
            distributed.beat()
            yield step
        self.checkpoints.wait()
        epochs = self.num_steps * self.stage.batch_size / self.num
        sft.finish(self.run, self.name, self.stage, self.progress, self.num_steps, epochs)
        for closable in (self.bar, self.metric_lines, self.sample_lines, self.checkpoints):
            closable.close()

    def end(self, step: int, state: TrainState, metrics: dict, samples):
        """Checks the policy on dev, writes, saves and stops, each where it is due. samples(n): lines for the step's first n responses."""
        stage, size, num = self.stage, self.stage.batch_size, self.num
        self.shown |= formatted(metrics, SHOWN)
        self.bar.update(step, **self.shown)
        checked = step == self.num_steps or common.crossed(step, stage.eval_every, size, num)
        if checked:
            metrics = metrics | self.check(state, self.bar)
            self.shown |= formatted(metrics, sft.CHECKED)
            if (accuracy := metrics.get(f"eval/{stage.select_on}_accuracy")) is not None:
                metrics["monitor/train_dev_gap"] = monitors.train_dev_gap(metrics["reward/accuracy"], accuracy)
            sft.select(self.progress, step, metrics, stage)
        if checked or step % stage.log_every == 0:
            self.metric_lines.write({"step": step, "epoch": step * size / num, "time": time.time(), **metrics})
            for line in samples(stage.log_samples):
                self.sample_lines.write({"step": step, **line})
        if checked or step % stage.save_every == 0:
            self.checkpoints.save(step, state, self.progress, wait=False)
        if self.run.stop.requested:
            self.checkpoints.save(step, state, self.progress)
            self.run.stop_if_asked()


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
