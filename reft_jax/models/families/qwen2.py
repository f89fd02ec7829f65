"""Qwen 2 and 2.5 (also Math, Coder and DeepSeek-R1-Distill-Qwen; `model_type` "qwen2"): biases on queries, keys and values."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX = "model."
table = weights.llama_like


def read(config, where: str) -> Arch:
    """The Arch of a transformers Qwen2Config."""
    windows = translate.windows(where, config.layer_types, config.sliding_window)
    return Arch(**translate.base(config, where), windows=windows, qkv_bias=True)


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.base_written(arch, "Qwen2ForCausalLM", dtype) | translate.windows_written(arch)
