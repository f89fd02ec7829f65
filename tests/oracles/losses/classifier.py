import numpy as np


def loss(record, batch, out, reduce):
    """-log P(what is so), a mean over responses."""
    logits = np.asarray(out["right_logits"], np.float64)
    chance = 1 / (1 + np.exp(-logits))
    return -np.mean(np.log(np.where(np.asarray(batch.right), chance, 1 - chance)))
