"""Supervised fine-tuning on (question, CoT): ReFT's warm-up, the SFT baseline, and pretraining from scratch (section 3.1).

With `continue_run` the stage goes on with an earlier sft stage's optimizer and data order, so that a warm-up and the
baseline that continues it are one run: the paper's warm-up is an early checkpoint of the full SFT run.
"""

import time

import numpy as np

from reft_jax import checkpoint, distributed, evaluation, models, profiler, steps
from reft_jax.config import GREEDY, SFT, SelfTrain
from reft_jax.data import batching
from reft_jax.data.packing import Packing
from reft_jax.optim import make_optimizer
from reft_jax.progress import Progress, formatted
from reft_jax.stages import common
from reft_jax.trackers import Metrics
from reft_jax.types import Prompts, SFTBatch, TrainState

# What the progress line shows of a check.
CHECKED = ("dev", "eval/dev_accuracy", ".3f"), ("test", "eval/test_accuracy", ".3f")


def make_batch(run, encoded, rows, accumulate: int = 1) -> tuple[SFTBatch, Packing | None]:
    """Prompts left-padded and targets right-padded, each to the bucket of its longest; and how they share rows."""
    data, pad = run.config.data, run.tokenizer.pad_token_id
    prompts, targets = [encoded[i].prompt for i in rows], [encoded[i].response for i in rows]
    prompt_tokens, prompt_mask = batching.pad_left(
        prompts, batching.bucket(max(map(len, prompts)), data.prompt_buckets), pad
    )
    tokens, mask = batching.pad_right(targets, batching.bucket(max(map(len, targets)), data.response_buckets), pad)
    batch = SFTBatch(Prompts(prompt_tokens, prompt_mask, np.asarray(rows, np.int32)), tokens, mask)
    [packing] = common.pack(run, batch.prompts, mask, [np.arange(len(rows))], accumulate)
    return run.layout.batch(batch), packing


def run(name: str, stage: SFT, run: common.Run):
    train = batching.fit(run.tokenizer, run.splits.train, run.config.data, purpose="sft")
    learn(name, stage, run, train.encoded, goes_on_with=stage.init_from if stage.continue_run else "")


def learn(name: str, stage: SFT | SelfTrain, run: common.Run, encoded, *, goes_on_with: str = "", **facts):
    """SFT on `encoded`, with what `stage` says; `facts` go into DONE. `goes_on_with`: a stage whose state and step it begins with."""
    num = len(encoded)
    total = common.num_steps(stage.optim.schedule_epochs or stage.epochs, stage.batch_size, num)
    tx = make_optimizer(stage.optim, total)
    frozen, params = common.frozen_and_trained(run, name)
    train_step = steps.make_sft_step(
        run.tuned,
        tx,
        params,
        dropout=stage.dropout,
        accumulate=stage.accumulate,
        reduce=stage.reduce,
        frozen=frozen,
    )

    def update(state, step, rows):
        batch, packing = make_batch(run, encoded, rows, stage.accumulate)
        key = common.key_of(run.config.seed, "sft", step, common.DROPOUT)
        return train_step(state, batch, key, packing=packing)

    check = make_check(run, stage, "evaluate", frozen)
    sizes = [len(example.prompt) + len(example.response) for example in encoded]
    progress, last = loop(
        name, stage, run, sizes, tx, params, update, check, loss="sft/loss", goes_on_with=goes_on_with
    )
    finish(run, name, stage, progress, last, last * stage.batch_size / num, **facts)


def loop(name, stage, run, sizes, tx, params, update, check=None, *, loss: str, goes_on_with: str = ""):
    """(progress, last step): stage.epochs passes over the examples, which have `sizes` tokens, from the last checkpoint or `params` on,
    everything saved.

    update(state, step, example indices) -> (state, metrics), with `loss` the one that the progress line shows. check(state, progress
    line) -> metrics that `select` chooses by, stage.eval_every epochs and at the end; None = nothing is chosen.
    """
    seed, size, sizes, num = run.config.seed, stage.batch_size, np.asarray(sizes), len(sizes)
    num_steps = common.num_steps(stage.epochs, size, num)
    state = steps.init_state(run.tuned, tx, params)
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
    bar, shown, tokens, since = Progress(name, num_steps, start, waiting="compiling"), {}, 0, time.monotonic()
    fields = ("loss", loss, ".3f"), ("tokens/s", "rate/tokens_per_s", ",.0f")
    for step in profiler.traced(run, name, range(start + 1, num_steps + 1)):
        distributed.beat()
        began = time.monotonic()
        rows = batching.batch_indices(seed, step - 1, size, num)
        state, metrics = update(state, step, rows)
        tokens += int(sizes[rows].sum())

        last = step == num_steps
        checked = last or check is not None and common.crossed(step, stage.eval_every, size, num)
        logged = checked or step % stage.log_every == 0
        saved = checked or step % stage.save_every == 0
        if logged or saved:
            metrics = common.host(metrics) | {"time/update_s": time.monotonic() - began}
            common.check_finite(name, step, metrics)
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
            common.check_finite(name, step, common.host(metrics))
            checkpoints.save(step, state, progress)
            run.stop_if_asked()

    checkpoints.wait()
    for closable in (bar, lines, checkpoints):
        closable.close()
    return progress, num_steps


# ------------------------------------------------------------------ choosing a checkpoint, also for reft and online self-training


def make_check(run, stage, purpose: str, frozen: dict):
    """(state, progress line) -> {"eval/dev_accuracy": ...}: greedy accuracy on the split that the stage selects on; {} where it has no
    questions."""
    split = {"dev": run.splits.dev, "test": run.splits.test}[stage.select_on]
    if not split:
        return lambda state, bar: {}
    questions = evaluation.ask(run, split, purpose)
    greedy = common.make_sampler(run, run.tuned, GREEDY, stage.eval_batch_size)
    ahead = common.programs_ahead(run)

    def check(state: TrainState, bar: Progress) -> dict:
        began, num = time.monotonic(), len(questions.fitted.records)
        key = common.key_of(run.config.seed, "check", 0, common.SAMPLE)  # greedy: any key will do
        params = models.join(frozen, state.params)
        texts = evaluation.respond(
            run, greedy, params, questions, key, each=lambda done: bar.phase(stage.select_on, done, num), ahead=ahead
        )
        grades = evaluation.mark(run, questions, texts, ahead)
        return {
            f"eval/{stage.select_on}_accuracy": evaluation.accuracy(questions, grades),
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
