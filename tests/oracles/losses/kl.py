import math

import numpy as np

from tests import reference


def loss(record, batch, out, reduce):
    """k2, k3 or the unbiased estimate of each token, times its weight (Schulman 2020; arXiv 2512.02556)."""
    tokens = np.zeros(batch.mask.shape)
    for b, real in enumerate(reference.rows_of(batch.mask)):
        for t in real:
            now = float(out["logp"][b, t])
            log_r = float(batch.ref_logp[b, t]) - now
            k3 = math.exp(log_r) - 1 - log_r
            ratio = math.exp(now - float(batch.old_logp[b, t]))
            tokens[b, t] = {"k2": log_r**2 / 2, "k3": k3, "unbiased": ratio * k3}[record.estimator]
            tokens[b, t] *= float(batch.weights[b, t])
    return reference.reduce(tokens, batch.mask, reduce)
