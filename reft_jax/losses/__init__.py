"""Losses: one file each, pure functions of arrays. The objective is the sum of coef x loss.

A file defines `Loss`, a frozen record whose call is (out, batch, mean) -> (f32[], metrics):

- `out` (`types.Outputs`) is what the model says of the batch; `needs` names what the loss reads of it beside logp.
- `batch` has tokens, mask (bool[B, R], True = real; what it excludes may hold NaN) and the columns that `reads` names.
- `mean` (`masked.Mean`) takes the mean of tokens f32[B, R] that the stage's `reduce` asks for.
- `together`: what accumulation may not split: token (anything may be split), row, group or batch.
"""


def objective(losses, out, batch, mean):
    """(f32[], metrics): the sum of coef x loss of records of this room."""
    total, metrics = None, {}
    for one in losses:
        loss, told = one(out, batch, mean)
        loss = loss if one.coef == 1.0 else one.coef * loss
        total = loss if total is None else total + loss
        metrics |= told
    return total, metrics
