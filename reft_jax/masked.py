"""Statistics over the True part of a mask. What is masked out may hold NaN or inf: it is replaced before it is used."""

import jax
import jax.numpy as jnp


def total(x, mask, axis=None):
    """Sum of x where mask; shapes alike."""
    return jnp.where(mask, x, 0.0).sum(axis)


def mean(x, mask, axis=None):
    """Mean of x where mask; 0 where nothing is."""
    return total(x, mask, axis) / jnp.maximum(mask.sum(axis).astype(jnp.float32), 1.0)


def var(x, mask):
    """Biased variance of x where mask (a Bessel term would divide by zero at one valid entry)."""
    return mean(jnp.square(jnp.where(mask, x, 0.0) - mean(x, mask)), mask)


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(var + 1e-8) over the whole masked batch, 0 elsewhere. x f32[...], mask bool[...]."""
    return jnp.where(mask, jnp.where(mask, x, 0.0) - mean(x, mask), 0.0) * jax.lax.rsqrt(var(x, mask) + 1e-8)


def last(mask: jax.Array) -> jax.Array:
    """bool[B, R]: True at the last True of each row."""
    return mask & (jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)


def reach(mask):
    """bool[B, R]: True through the last True of each row, over holes."""
    return mask[:, ::-1].cumsum(1)[:, ::-1] > 0


def reduce(x: jax.Array, mask: jax.Array, how: str, length: int = 0) -> jax.Array:
    """Scalar of x f32[B, R]: "token" = mean over all real tokens; "sequence" = mean over each row's tokens, then over rows;
    "constant" = sum over all real tokens / (B length), length the longest that a response may be (0 = R)."""
    if how == "token":
        return mean(x, mask)
    if how == "constant":
        return total(x, mask) / (x.shape[0] * (length or x.shape[1]))
    return mean(mean(x, mask, axis=1), mask.any(axis=1))


class Mean:
    """What a loss reduces its tokens with, as its stage says: `mean(x)` of x f32[B, R] is `reduce` over the batch's mask; `mean.share(x)` is of
    the tokens that there are, for metrics."""

    def __init__(self, mask: jax.Array, how: str, length: int = 0):
        self.mask, self.how, self.length = mask, how, length

    def __call__(self, x: jax.Array) -> jax.Array:
        return reduce(x, self.mask, self.how, self.length)

    def share(self, x: jax.Array) -> jax.Array:
        return reduce(x, self.mask, "sequence" if self.how == "constant" else self.how, self.length)
