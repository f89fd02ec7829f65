"""What training stages share: how many steps, when to check, log, save and stop, and which checkpoint is chosen."""

import math
import time

import jax
import numpy as np

from reft_jax import models
from reft_jax.config.settings import GREEDY
from reft_jax.data import batching
from reft_jax.errors import RunError
from reft_jax.mesh import distributed
from reft_jax.rollouts import draw, figures, grade
from reft_jax.rollouts import questions as questions_lib
from reft_jax.run import checkpoint, profiler
from reft_jax.run.progress import Progress, formatted
from reft_jax.run.run import SAMPLE, key_of
from reft_jax.run.trackers import Metrics
from reft_jax.training.state import init_state
from reft_jax.types import TrainState


def num_steps(epochs: float, batch_size: int, num_records: int) -> int:
    """Steps that see num_records epochs times."""
    return max(math.ceil(epochs * num_records / batch_size - 1e-9), 1)


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


def host(metrics: dict) -> dict:
    """Device scalars as float32 on the host, in one transfer."""
    return {key: np.float32(value) for key, value in jax.device_get(metrics).items()}


# What the progress line shows of a check.
CHECKED = ("dev", "eval/dev_accuracy", ".3f"), ("test", "eval/test_accuracy", ".3f")


def loop(name, stage, run, sizes, tx, params, update, check=None, *, loss: str, goes_on_with: str = ""):
    """(progress, last step): stage.epochs passes over the examples, which have `sizes` tokens, from the last checkpoint or `params` on,
    everything saved.

    update(state, step, example indices) -> (state, metrics), with `loss` the one that the progress line shows. check(state, progress
    line) -> metrics that `select` chooses by, stage.eval_every epochs and at the end; None = nothing is chosen.
    """
    seed, size, sizes, num = run.config.seed, stage.batch_size, np.asarray(sizes), len(sizes)
    total = num_steps(stage.epochs, size, num)
    state = init_state(run.tuned, tx, params)
    checkpoints = checkpoint.Checkpoints(run.folder(name))
    progress = {"best_step": None, "best_accuracy": -1.0}
    if (saved := checkpoints.go_on(state)) is not None:
        start, state, progress = saved
    elif goes_on_with:
        earlier = checkpoint.Checkpoints(run.folder(goes_on_with))
        start, state, _ = earlier.go_on(state)
        earlier.close()
    else:
        start = 0

    lines = Metrics(run, name, after_step=start)
    bar, shown, tokens, since = Progress(name, total, start, waiting="compiling"), {}, 0, time.monotonic()
    fields = ("loss", loss, ".3f"), ("tokens/s", "rate/tokens_per_s", ",.0f")
    for step in profiler.traced(run, name, range(start + 1, total + 1)):
        distributed.beat()
        began = time.monotonic()
        rows = batching.batch_indices(seed, step - 1, size, num)
        state, metrics = update(state, step, rows)
        state = state.replace(step=state.step + 1)
        tokens += int(sizes[rows].sum())

        last = step == total
        checked = last or check is not None and crossed(step, stage.eval_every, size, num)
        logged = checked or step % stage.log_every == 0
        saved = checked or step % stage.save_every == 0
        if logged or saved:
            metrics = host(metrics) | {"time/update_s": time.monotonic() - began}
            check_finite(name, step, metrics)
        if logged:
            metrics["rate/tokens_per_s"] = tokens / (time.monotonic() - since)  # since the last logged step
            shown |= formatted(metrics, fields)
        bar.update(step, **shown)
        if checked and check is not None:
            metrics |= check(state, bar)
            select(progress, step, metrics, stage)
            shown |= formatted(metrics, CHECKED)
        if logged:
            lines.write({"step": step, "epoch": step * size / num, "time": time.time(), **metrics})
        if saved:
            checkpoints.save(step, state, progress, wait=False)
        if logged:
            tokens, since = 0, time.monotonic()
        if run.stop.requested:
            check_finite(name, step, host(metrics))
            checkpoints.save(step, state, progress)
            run.stop_if_asked()

    checkpoints.wait()
    for closable in (bar, lines, checkpoints):
        closable.close()
    return progress, total


# ------------------------------------------------------------------ choosing a checkpoint, also for reft and online self-training


def make_check(run, stage, purpose: str, frozen: dict):
    """(state, progress line) -> {"eval/dev_accuracy": ...}: greedy accuracy on the split that the stage selects on; {} where it has no
    questions."""
    split = {"dev": run.splits.dev, "test": run.splits.test}[stage.select_on]
    if not split:
        return lambda state, bar: {}
    questions = questions_lib.ask(run, split, purpose)
    greedy = draw.make_sampler(run, run.tuned, GREEDY, stage.eval_batch_size)
    ahead = grade.programs_ahead(run)

    def check(state: TrainState, bar: Progress) -> dict:
        began, num = time.monotonic(), len(questions.fitted.records)
        key = key_of(run.config.seed, "check", 0, SAMPLE)  # greedy: any key will do
        params = models.join(frozen, state.params)
        texts = questions_lib.respond(
            run,
            greedy,
            params,
            questions,
            key,
            each=lambda done: bar.phase(stage.select_on, done, num),
            ahead=ahead,
        )
        grades = questions_lib.mark(run, questions, texts, ahead)
        return {
            f"eval/{stage.select_on}_accuracy": figures.accuracy(questions, grades),
            "time/eval_s": time.monotonic() - began,
        }

    return check


def select(progress: dict, step: int, metrics: dict, stage):
    """Remembers the best checked step so far (the first of equals)."""
    accuracy = metrics.get(f"eval/{stage.select_on}_accuracy")
    if accuracy is not None and accuracy > progress["best_accuracy"]:
        progress |= {"best_step": step, "best_accuracy": accuracy}


def finish(run, name, stage, progress, step, epochs, **facts):
    """Marks the stage as finished, with the checkpoint that it chose and other facts."""
    best = stage.select == "best" and progress["best_step"] is not None
    chosen = progress["best_step"] if best else step
    run.finish(
        name,
        last_step=step,
        epochs=epochs,
        selected_step=chosen,
        selected_epoch=epochs * chosen / step,
        selected_on=stage.select_on if best else None,
        best_accuracy=progress["best_accuracy"] if best else None,
        **facts,
    )
