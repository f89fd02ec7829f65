"""Gemma 2 (`model_type` "gemma2"): norms before and after each part, scales 1 + w, GeGLU, soft-caps, every other layer a window."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX = "model."
table = weights.gemma_like


def read(config, where: str) -> Arch:
    """The Arch of a transformers Gemma2Config."""
    translate.require(where, config, attention_bias=False)
    if config.use_bidirectional_attention:
        translate.require(where, config, use_bidirectional_attention=False)
    return Arch(**translate.gemma_base(config, where))


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.gemma_base_written(arch, "Gemma2ForCausalLM", dtype)
