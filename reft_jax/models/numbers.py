"""Weights that compute nothing: NaN, infinities, numbers whose norm float32 does not hold. They are refused where weights enter a run."""

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.errors import InputError
from reft_jax.mesh import distributed

BLOCK = 2**16  # numbers at a time: a bfloat16 tensor has no second copy in float32
REMEDY = "it is damaged, or of a training that had diverged: fetch it again, or take an earlier one"


def fault(array: np.ndarray, source: np.ndarray | None = None) -> str | None:
    """What is wrong with a tensor, of `source` in array's dtype, and what to do; None if its sum of squares is a number."""
    flat, total = array.reshape(-1), np.float32(0)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, flat.size, BLOCK):
            part = flat[first : first + BLOCK].astype(np.float32, copy=False)
            total += part @ part
        if np.isfinite(total):
            return None
        source = np.asarray(array if source is None else source, np.float64)
    counts = {"NaN": np.isnan(source).sum(), "infinite": np.isinf(source).sum()}
    if any(counts.values()):
        held = " and ".join(f"{num:,} {what}" for what, num in counts.items() if num)
        return f"holds {held} of {source.size:,} numbers; {REMEDY}"
    most = f"numbers up to {np.abs(source).max():.3g}"
    if not np.isfinite(array.astype(np.float32)).all():
        limit = f"{float(jnp.finfo(array.dtype).max):.3g}"
        return f"holds {most}, and {array.dtype} ends at {limit}; read it in another param_dtype (float32, bfloat16)"
    return f"holds {most}, of which float32 does not hold the norm; {REMEDY}"


def check(params, where: str):
    """InputError for the first array of a tree, on any mesh, that computes nothing."""
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    for (path, leaf), total in zip(leaves, distributed.fetch(_squared([leaf for _, leaf in leaves])), strict=True):
        if not np.isfinite(total):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(f"{where}: {name} {fault(distributed.fetch(leaf))}")


@jax.jit
def _squared(leaves: list) -> list:
    return [jnp.square(leaf.astype(jnp.float32)).sum() for leaf in leaves]
