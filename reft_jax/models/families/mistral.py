"""Mistral (`model_type` "mistral"): a Llama whose layers may all see a sliding window."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX = "model."
table = weights.llama_like


def read(config, where: str) -> Arch:
    """The Arch of a transformers MistralConfig."""
    window = config.sliding_window or 0
    return Arch(**translate.base(config, where), windows=(window,) * config.num_hidden_layers if window else ())


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    own = {"sliding_window": translate.one_window(arch)}
    return translate.base_written(arch, "MistralForCausalLM", dtype) | own
