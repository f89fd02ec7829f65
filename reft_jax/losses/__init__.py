"""Losses: one file each, pure functions of arrays. The objective is the sum of coef x loss.

A file defines `Loss`, a frozen record whose call is (out, batch, mean) -> (f32[], metrics):

- `out` (`types.Outputs`) is what the model says of the batch; `needs` names the fields that the loss reads: the model computes no others.
- `batch` (`types.Batch`) has tokens, mask (bool[B, R], True = learnt; what it excludes may hold NaN) and the columns that `reads` names.
- `mean` (`masked.Mean`) takes the mean of tokens f32[B, R] that the stage's `reduce` asks for.
- `together`: what accumulation may not split: token (anything may be split), row, group or batch.
- `whole(batch, reduce) -> batch`, where a loss has it: what is computed of all rows before they are split.

A field with `setting(..., traced=True)` is an array under jit: what a schedule or a controller drives.
"""

import dataclasses

from reft_jax.config import setting


def objective(losses, out, batch, mean):
    """(f32[], metrics): the sum of coef x loss of records of this room."""
    total, metrics = None, {}
    for one in losses:
        loss, told = one(out, batch, mean)
        loss = loss if isinstance(one.coef, float | int) and one.coef == 1 else one.coef * loss
        total = loss if total is None else total + loss
        metrics |= told
    return total, metrics


def needed(losses) -> frozenset[str]:
    """The fields of `types.Outputs` that some loss reads."""
    return frozenset(name for loss in losses for name in loss.needs)


def reads_reference(losses) -> bool:
    """Whether some loss reads what the frozen reference says of the batch, so that an update must have its parameters."""
    return bool(needed(losses) & {"ref_logp", "ref_kl"})


def traced(losses) -> tuple[dict[str, float], ...]:
    """Of each loss its `traced` fields: what jit takes as arrays."""
    return tuple(setting.traced(loss) for loss in losses)


def changed(losses, coefs) -> tuple:
    """The losses with other numbers in their `traced` fields."""
    return tuple(dataclasses.replace(loss, **values) for loss, values in zip(losses, coefs, strict=True))
