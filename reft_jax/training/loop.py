"""What training stages share: how many steps, when to check, log, save and stop, and which checkpoint is chosen."""

import math
import sys
import time

import jax

from reft_jax import models
from reft_jax.config.settings import GREEDY
from reft_jax.errors import RunError
from reft_jax.mesh import distributed
from reft_jax.rewards import monitors
from reft_jax.rollouts import figures
from reft_jax.rollouts.actor import Actor
from reft_jax.rollouts.questions import ask
from reft_jax.run import checkpoint, profiler
from reft_jax.run.metrics import Lines, num_lines
from reft_jax.run.progress import Progress, formatted
from reft_jax.run.run import SAMPLE, key_of
from reft_jax.run.trackers import Metrics
from reft_jax.training.update import host
from reft_jax.types import TrainState


def num_steps(epochs: float, batch_size: int, num_records: int) -> int:
    """Steps that see num_records epochs times."""
    return max(math.ceil(epochs * num_records / batch_size - 1e-9), 1)


def num_scheduled(stage, num_records: int) -> int:
    """Steps that the stage's learning rate is planned for."""
    return num_steps(stage.optim.schedule_epochs or stage.epochs, stage.batch_size, num_records)


def crossed(step: int, every_epochs: float, batch_size: int, num_records: int) -> bool:
    """Whether a multiple of every_epochs was reached by step `step` (from 1) and not by the one before; 0 = never."""
    if not every_epochs:
        return False
    count = [math.floor(s * batch_size / (num_records * every_epochs) + 1e-9) for s in (step - 1, step)]
    return count[1] > count[0]


def check_finite(name: str, step: int, metrics: dict):
    """Stops a run whose loss or gradient is no longer a number, before it is saved."""
    for key in metrics:
        if key.endswith(("loss", "norm")) and not math.isfinite(metrics[key]):
            raise RunError(
                f"{name}: {key} is {metrics[key]} at step {step}; the last checkpoint is from before. "
                "Lower optim.lr, or look at the step's samples"
            )


# What the progress line shows: of a check, of learning from given texts ("loss": the stage's), and from own responses.
CHECKED = ("dev", "eval/dev_accuracy", ".3f"), ("test", "eval/test_accuracy", ".3f")
TOKENS = ("tokens/s", "rate/tokens_per_s", ",.0f")
ROLLOUTS = (
    ("reward", "reward/mean", ".3f"),
    ("accuracy", "reward/accuracy", ".3f"),
    ("KL", "kl/mean", ".3f"),
    ("length", "sample/length_mean", ".0f"),
    ("tokens/s", "rate/sample_tokens_per_s", ",.0f"),
)


def forgotten(state: TrainState):
    """The shapes, dtypes and places of a state whose arrays are freed, before others take as much memory."""
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    return like


NOTHING_CHOSEN = {"best_step": None, "best_accuracy": -1.0}


class Loop:
    """A stage's steps, checkpoints, metrics.jsonl and progress line; of a stage that `samples` also samples.jsonl and a step 0, where it
    begins.

    num: the examples of an epoch. state: where the stage begins; where there is a checkpoint, `self.state` is that, and this one's memory is
    freed. check(state, bar) -> metrics that a checkpoint is chosen by; None = nothing is chosen. shown: (name, metric, format) of the progress
    line. goes_on_with: a stage whose state and step it begins with. facts: what DONE says beside the chosen checkpoint.
    """

    def __init__(
        self, name: str, stage, run, num: int, state: TrainState, check=None, *, shown, samples=False, goes_on_with="", facts=None
    ):  # fmt: skip
        self.name, self.stage, self.run, self.num, self.check, self.samples = name, stage, run, num, check, samples
        self.fields, self.shown, self.facts, self.tokens = shown, {}, facts or {}, 0
        self.num_steps = num_steps(stage.epochs, stage.batch_size, num)
        self.checkpoints = checkpoint.Checkpoints(run.folder(name))
        self.start, self.state, self.progress = None, state, dict(NOTHING_CHOSEN)
        if self.checkpoints.any() or goes_on_with:
            state = forgotten(state)
        if (saved := self.checkpoints.go_on(state)) is not None:
            self.start, self.state, self.progress = saved
            if _chooses(stage):
                forget_lost_best(name, self.progress, self.checkpoints)
        else:
            if count := num_lines(run.folder(name) / "metrics.jsonl"):
                warn(f"{name}: no complete checkpoint is there; the stage begins anew and drops {count} logged steps")
            if goes_on_with:
                self.start = int(checkpoint.last(run.folder(goes_on_with)).name)
                earlier = checkpoint.Checkpoints(run.folder(goes_on_with))
                self.state, _ = earlier.restore(self.start, state)
                earlier.close()

    def steps(self):
        """The steps that are left, from 1; marks the stage as finished after the last."""
        start, folder = self.start, self.run.folder(self.name)
        after = -1 if start is None else start
        self.metric_lines = Metrics(self.run, self.name, after_step=after)
        self.sample_lines = Lines(folder / "samples.jsonl", after_step=after) if self.samples else None
        self.bar = Progress(self.name, self.num_steps, start or 0, waiting="compiling")
        if start is None and self.samples:  # saved, so that a resumed run does not measure it twice
            checked = {} if self.check is None else self.check(self.state, self.bar)
            self.metric_lines.write({"step": 0, "epoch": 0.0, "time": time.time(), **checked})
            self.checkpoints.save(0, self.state, self.progress)
        self.logged = time.monotonic()
        for step in profiler.traced(self.run, self.name, range((start or 0) + 1, self.num_steps + 1)):
            distributed.beat()
            self.began = time.monotonic()
            yield step
        self.checkpoints.wait()
        best = self.progress["best_step"] if _chooses(self.stage) else None
        if best is not None and not (path := self.checkpoints.folder / str(best)).is_dir():
            raise RunError(
                f"{self.name}: {path}, the best checkpoint, is gone; restore it from a copy and run the same command again, which without it "
                "chooses the last"
            )
        for closable in (self.bar, self.metric_lines, self.sample_lines, self.checkpoints):
            if closable is not None:
                closable.close()
        epochs = self.num_steps * self.stage.batch_size / self.num
        finish(self.run, self.name, self.stage, self.progress, self.num_steps, epochs, **self.facts)

    def end(self, step: int, state: TrainState, metrics: dict, *, tokens: int = 0, samples=None):
        """Checks the policy, writes, saves and stops, each where it is due; metrics on the device are fetched only then. tokens: that the step
        has learnt. samples(n): lines for the step's first n responses."""
        stage, size = self.stage, self.stage.batch_size
        self.tokens += tokens
        last = step == self.num_steps
        checked = last or self.check is not None and crossed(step, stage.eval_every, size, self.num)
        logged = checked or step % stage.log_every == 0
        saved = checked or step % stage.save_every == 0
        if logged or saved or self.samples:  # what was sampled with is on the host in any case
            metrics = host(metrics)
            metrics.setdefault("time/update_s", time.monotonic() - self.began)
            check_finite(self.name, step, metrics)
        if logged and self.tokens:  # since the last logged step
            metrics["rate/tokens_per_s"] = self.tokens / (time.monotonic() - self.logged)
        if logged or self.samples:
            self.shown |= formatted(metrics, self.fields)
        self.bar.update(step, **self.shown)
        if checked and self.check is not None:
            metrics = metrics | self.check(state, self.bar)
            self.shown |= formatted(metrics, CHECKED)
            accuracy = metrics.get(f"eval/{stage.select_on}_accuracy")
            if accuracy is not None and "reward/accuracy" in metrics:
                metrics["monitor/train_dev_gap"] = monitors.train_dev_gap(metrics["reward/accuracy"], accuracy)
            select(self.progress, step, metrics, stage)
        if logged:
            self.metric_lines.write({"step": step, "epoch": step * size / self.num, "time": time.time(), **metrics})
            for line in samples(stage.log_samples) if samples is not None else ():
                self.sample_lines.write({"step": step, **line})
            self.tokens, self.logged = 0, time.monotonic()
        if saved:
            choice = last or step == self.progress["best_step"]
            self.checkpoints.save(step, state, self.progress, wait=False, choice=choice)
        if self.run.stop.requested:
            check_finite(self.name, step, host(metrics))
            self.checkpoints.save(step, state, self.progress)
            self.run.stop_if_asked()


# ------------------------------------------------------------------ choosing a checkpoint


def make_check(run, stage, purpose: str, frozen: dict):
    """(state, progress line) -> {"eval/dev_accuracy": ...}: greedy accuracy on the split that the stage selects on; {} where it has no
    questions."""
    split = {"dev": run.splits.dev, "test": run.splits.test}[stage.select_on]
    if not split:
        return lambda state, bar: {}
    questions = ask(run, split, purpose)
    actor = Actor(run, run.tuned, getattr(stage, "sampling", GREEDY).greedy, stage.eval_batch_size)

    def check(state: TrainState, bar: Progress) -> dict:
        began, num = time.monotonic(), len(questions.records)
        key = key_of(run.config.seed, "check", 0, SAMPLE)  # greedy: any key will do
        params = models.join(frozen, state.params)
        answers = actor.answers(params, questions, key, each=lambda done: bar.phase(stage.select_on, done, num))
        return {
            f"eval/{stage.select_on}_accuracy": figures.accuracy(answers.by_question(), questions.num),
            "time/eval_s": time.monotonic() - began,
        }

    return check


def _chooses(stage) -> bool:
    return getattr(stage, "select", "last") == "best"


def select(progress: dict, step: int, metrics: dict, stage):
    """Remembers the best checked step so far (the first of equals)."""
    accuracy = metrics.get(f"eval/{stage.select_on}_accuracy")
    if accuracy is not None and accuracy > progress["best_accuracy"]:
        progress |= {"best_step": step, "best_accuracy": accuracy}
        if accuracy > progress.get("lost_accuracy", math.inf):  # what was lost would not be chosen any more
            del progress["lost_step"], progress["lost_accuracy"]


def forget_lost_best(name: str, progress: dict, checkpoints: checkpoint.Checkpoints):
    """Where the best checkpoint so far is gone or damaged, a warning says so and the best of those that follow is chosen; `progress`, and
    DONE in the end, keep what was lost until a later step is better or it is there again."""
    if "lost_step" in progress and checkpoints.fault(progress["lost_step"]) is None:
        progress |= {"best_step": progress.pop("lost_step"), "best_accuracy": progress.pop("lost_accuracy")}
    step, accuracy = progress["best_step"], progress["best_accuracy"]
    if step is None or (fault := checkpoints.fault(step)) is None:
        return
    warn(
        f"{name}: the best checkpoint so far ({accuracy:.3f} at step {step}) is lost: {fault}. The best of the checks that follow will be chosen, "
        "if any follow, else the last step. To choose the lost one, restore it from a copy and run the same command again"
    )
    if accuracy > progress.get("lost_accuracy", -math.inf):
        progress |= {"lost_step": step, "lost_accuracy": accuracy}
    progress |= NOTHING_CHOSEN


def warn(text: str):
    """A warning on standard error, of one process."""
    if distributed.is_primary():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def finish(run, name, stage, progress, step, epochs, **facts):
    """Marks the stage as finished, with the checkpoint that it chose and other facts."""
    best = _chooses(stage) and progress["best_step"] is not None
    chosen = progress["best_step"] if best else step
    facts |= {key: progress[key] for key in ("lost_step", "lost_accuracy") if _chooses(stage) and key in progress}
    run.finish(
        name,
        last_step=step,
        epochs=epochs,
        selected_step=chosen,
        selected_epoch=epochs * chosen / step,
        selected_on=stage.select_on if best else None,
        best_accuracy=progress["best_accuracy"] if best else None,
        fingerprint=checkpoint.fingerprint(run.folder(name) / "checkpoints" / str(chosen)),
        **facts,
    )
