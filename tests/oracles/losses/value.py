import numpy as np

from tests import reference


def loss(record, batch, out, reduce):
    """Half the larger of the squared errors of the value and of the value near the old one."""
    tokens = np.zeros(batch.mask.shape)
    for b, real in enumerate(reference.rows_of(batch.mask)):
        for t in real:
            new, old, target = float(out["values"][b, t]), float(batch.old_values[b, t]), float(batch.returns[b, t])
            near = old + min(max(new - old, -record.clip), record.clip)
            tokens[b, t] = 0.5 * max((new - target) ** 2, (near - target) ** 2)
    return reference.reduce(tokens, batch.mask, reduce)
