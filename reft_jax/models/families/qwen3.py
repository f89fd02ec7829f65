"""Qwen 3 (dense; `model_type` "qwen3"): norms over each head's query and key."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX = "model."
table = weights.llama_like


def read(config, where: str) -> Arch:
    """The Arch of a transformers Qwen3Config."""
    windows, biased = translate.windows(where, config.layer_types, config.sliding_window), bool(config.attention_bias)
    return Arch(**translate.base(config, where), windows=windows, qk_norm=True, qkv_bias=biased, out_bias=biased)


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    own = translate.windows_written(arch) | {"attention_bias": arch.qkv_bias}
    return translate.base_written(arch, "Qwen3ForCausalLM", dtype) | own
