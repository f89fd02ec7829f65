"""Learning from given texts: the batch, and the stage's loop around it."""

import numpy as np

from reft_jax.data import batching
from reft_jax.data.packing import Packing
from reft_jax.losses import reads_reference
from reft_jax.rollouts.questions import pack
from reft_jax.run import begin
from reft_jax.run.run import DROPOUT, Run, key_of
from reft_jax.training import loop
from reft_jax.training.state import init_state
from reft_jax.training.update import make_update
from reft_jax.types import Batch, Prompts, TrainState


def make_batch(run, encoded, rows, stage) -> tuple[Batch, Packing | None]:
    """Prompts left-padded and targets right-padded, each to the bucket of its longest; and how they share rows in the stage's update."""
    data, pad = run.config.data, run.tokenizer.pad_token_id
    prompts, targets = [encoded[i].prompt for i in rows], [encoded[i].response for i in rows]
    prompt_tokens, prompt_mask = batching.pad_left(
        prompts, batching.bucket(max(map(len, prompts)), data.prompt_buckets), pad
    )
    tokens, mask = batching.pad_right(targets, batching.bucket(max(map(len, targets)), data.response_buckets), pad)
    batch = Batch(Prompts(prompt_tokens, prompt_mask, np.asarray(rows, np.int32)), tokens, mask)
    [packing] = pack(run, batch.prompts, mask, [np.arange(len(rows))], stage)
    return run.layout.batch(batch), packing


def learn(name: str, stage, run: Run, encoded, *, goes_on_with: str = "", **facts):
    """Learns `encoded`, with what `stage` says; `facts` go into DONE. `goes_on_with`: a stage whose state and step it begins with."""
    num = len(encoded)
    tx = stage.optim(loop.num_scheduled(stage, num))
    frozen, params = begin.frozen_and_trained(run, name)
    update = update_of(run, stage, "sft", tx, frozen, params)

    def learnt(state, step, rows):
        batch, packing = make_batch(run, encoded, rows, stage)
        return update(state, batch, key=key_of(run.config.seed, "sft", step, DROPOUT), packing=packing)

    sizes = [len(example.prompt) + len(example.response) for example in encoded]
    check = loop.make_check(run, stage, "ask", frozen)
    state = init_state(run.tuned, tx, params)
    del params  # the state has copies
    go(name, stage, run, sizes, state, learnt, check, loss="sft/loss", goes_on_with=goes_on_with, facts=facts)


def update_of(run: Run, stage, of: str, tx, frozen: dict, params: dict):
    """`update.make_update` as the stage's settings say, its metric "<of>/loss". Where a loss reads a reference, that is what the stage begins
    with."""
    reference = begin.reference(run, frozen, params) if reads_reference(stage.objective) else None
    how = dict(name=of, frozen=frozen, reference=reference) | stage.how
    return make_update(run.tuned, tx, params, stage.objective, **how)


def go(name: str, stage, run: Run, sizes, state: TrainState, learnt, check=None, *, loss: str, **how):
    """stage.epochs passes over examples of `sizes` tokens; learnt(state, step, rows) -> (state, metrics) is the update on those rows, `loss` the
    metric that the progress line shows; how: `loop.Loop`'s."""
    sizes, shown = np.asarray(sizes), (("loss", loss, ".3f"), loop.TOKENS)
    steps = loop.Loop(name, stage, run, len(sizes), state, check, shown=shown, **how)
    state = steps.state
    for step in steps.steps():
        rows = batching.batch_indices(run.config.seed, step - 1, stage.batch_size, len(sizes))
        state, metrics = learnt(state, step, rows)
        state = state.replace(step=state.step + 1)
        steps.end(step, state, metrics, tokens=int(sizes[rows].sum()))
