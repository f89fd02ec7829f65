"""Decoders as pure functions over parameter trees, and the way in and out of Hugging Face directories."""

from reft_jax.models.decoder import (
    Cache,
    Model,
    axes,
    empty_cache,
    forward,
    init,
    logits,
    positions_of,
    shapes,
    token_logp,
    unembed,
)
from reft_jax.models.heads import init_value_head, value_axes, values
from reft_jax.models.hf import SHIPPED, load_hf, read_config, resolve, save_hf

__all__ = [
    "SHIPPED",
    "Cache",
    "Model",
    "axes",
    "empty_cache",
    "forward",
    "init",
    "init_value_head",
    "load_hf",
    "logits",
    "positions_of",
    "read_config",
    "resolve",
    "save_hf",
    "shapes",
    "token_logp",
    "unembed",
    "value_axes",
    "values",
]
