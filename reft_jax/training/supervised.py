"""Learning from given texts: the batch, and the stage's loop around it."""

import numpy as np

from reft_jax.data import batching
from reft_jax.data.packing import Packing
from reft_jax.losses import reads_reference
from reft_jax.rollouts import draw
from reft_jax.run import begin
from reft_jax.run.run import DROPOUT, Run, key_of
from reft_jax.training import loop
from reft_jax.training.optim import make_optimizer
from reft_jax.training.update import make_update
from reft_jax.types import Batch, Prompts


def make_batch(run, encoded, rows, accumulate: int = 1) -> tuple[Batch, Packing | None]:
    """Prompts left-padded and targets right-padded, each to the bucket of its longest; and how they share rows."""
    data, pad = run.config.data, run.tokenizer.pad_token_id
    prompts, targets = [encoded[i].prompt for i in rows], [encoded[i].response for i in rows]
    prompt_tokens, prompt_mask = batching.pad_left(
        prompts, batching.bucket(max(map(len, prompts)), data.prompt_buckets), pad
    )
    tokens, mask = batching.pad_right(targets, batching.bucket(max(map(len, targets)), data.response_buckets), pad)
    batch = Batch(Prompts(prompt_tokens, prompt_mask, np.asarray(rows, np.int32)), tokens, mask)
    [packing] = draw.pack(run, batch.prompts, mask, [np.arange(len(rows))], accumulate)
    return run.layout.batch(batch), packing


def learn(name: str, stage, run: Run, encoded, *, goes_on_with: str = "", **facts):
    """Learns `encoded`, with what `stage` says; `facts` go into DONE. `goes_on_with`: a stage whose state and step it begins with."""
    num = len(encoded)
    total = loop.num_steps(stage.optim.schedule_epochs or stage.epochs, stage.batch_size, num)
    tx = make_optimizer(stage.optim, total)
    frozen, params = begin.frozen_and_trained(run, name)
    reference = begin.reference(run, frozen, params) if reads_reference(stage.objective) else None
    how = dict(name="sft", frozen=frozen, reference=reference) | stage.how
    train_step = make_update(run.tuned, tx, params, stage.objective, **how)

    def update(state, step, rows):
        batch, packing = make_batch(run, encoded, rows, stage.accumulate)
        key = key_of(run.config.seed, "sft", step, DROPOUT)
        return train_step(state, batch, key=key, packing=packing)

    check = loop.make_check(run, stage, "ask", frozen)
    sizes = [len(example.prompt) + len(example.response) for example in encoded]
    progress, last = loop.loop(
        name, stage, run, sizes, tx, params, update, check, loss="sft/loss", goes_on_with=goes_on_with
    )
    loop.finish(run, name, stage, progress, last, last * stage.batch_size / num, **facts)
