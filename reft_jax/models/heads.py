"""Heads on the shared trunk. The value head lives in the same parameter tree, under "value_head"; the decoder ignores it."""

import jax
import jax.numpy as jnp


def value_axes(bias: bool) -> dict:
    """Logical axis names of the value head's parameters."""
    return {"kernel": ("embed",), **({"bias": ()} if bias else {})}


def init_value_head(model, key, *, how: str, bias: bool) -> dict:
    """A linear map D -> 1: kernel f32[D] ("zeros", or "normal" with the decoder's init_std), bias f32[] if asked for."""
    shape = (model.arch.dim,)
    kernel = jnp.zeros(shape) if how == "zeros" else model.arch.init_std * jax.random.normal(key, shape)
    return {"kernel": kernel, **({"bias": jnp.zeros(())} if bias else {})}


def values(params, hidden) -> jax.Array:
    """f32[B, T] of hidden [B, T, D], in float32."""
    head = params["value_head"]
    out = jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), head["kernel"])
    return out + head["bias"] if "bias" in head else out
