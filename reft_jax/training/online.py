"""The loop of a stage that learns from its own samples: checkpoints, metrics.jsonl, samples.jsonl and the progress line."""

import time

from reft_jax.mesh import distributed
from reft_jax.rewards import monitors
from reft_jax.run import checkpoint, profiler
from reft_jax.run.metrics import Lines
from reft_jax.run.progress import Progress, formatted
from reft_jax.run.run import Run
from reft_jax.run.trackers import Metrics
from reft_jax.training import loop
from reft_jax.types import TrainState

SHOWN = (
    ("reward", "reward/mean", ".3f"),
    ("accuracy", "reward/accuracy", ".3f"),
    ("KL", "kl/mean", ".3f"),
    ("length", "sample/length_mean", ".0f"),
    ("tokens/s", "rate/sample_tokens_per_s", ",.0f"),
)  # while it runs


class Log:
    """A stage's checkpoints, metrics.jsonl, samples.jsonl and progress line, over `num` training questions.

    `state` is where the stage begins: the last checkpoint's, or the given one. check(state, bar) -> metrics that a checkpoint is chosen
    by.
    """

    def __init__(self, name: str, stage, run: Run, num: int, state: TrainState, check):
        self.name, self.stage, self.run, self.num, self.check = name, stage, run, num, check
        self.num_steps = loop.num_steps(stage.epochs, stage.batch_size, num)
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
        loop.finish(self.run, self.name, self.stage, self.progress, self.num_steps, epochs)
        for closable in (self.bar, self.metric_lines, self.sample_lines, self.checkpoints):
            closable.close()

    def end(self, step: int, state: TrainState, metrics: dict, samples):
        """Checks the policy on dev, writes, saves and stops, each where it is due. samples(n): lines for the step's first n responses."""
        stage, size, num = self.stage, self.stage.batch_size, self.num
        self.shown |= formatted(metrics, SHOWN)
        self.bar.update(step, **self.shown)
        checked = step == self.num_steps or loop.crossed(step, stage.eval_every, size, num)
        if checked:
            metrics = metrics | self.check(state, self.bar)
            self.shown |= formatted(metrics, loop.CHECKED)
            if (accuracy := metrics.get(f"eval/{stage.select_on}_accuracy")) is not None:
                metrics["monitor/train_dev_gap"] = monitors.train_dev_gap(metrics["reward/accuracy"], accuracy)
            loop.select(self.progress, step, metrics, stage)
        if checked or step % stage.log_every == 0:
            self.metric_lines.write({"step": step, "epoch": step * size / num, "time": time.time(), **metrics})
            for line in samples(stage.log_samples):
                self.sample_lines.write({"step": step, **line})
        if checked or step % stage.save_every == 0:
            self.checkpoints.save(step, state, self.progress, wait=False)
        if self.run.stop.requested:
            self.checkpoints.save(step, state, self.progress)
            self.run.stop_if_asked()
