"""Llama 2 and 3, CodeLlama, and what calls itself one (`model_type` "llama"): the decoder's default form."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX = "model."
table = weights.llama_like


def read(config, where: str) -> Arch:
    """The Arch of a transformers LlamaConfig; InputError for what the decoder does not do."""
    biased = bool(config.attention_bias)
    return Arch(**translate.base(config, where), qkv_bias=biased, out_bias=biased, mlp_bias=bool(config.mlp_bias))


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    own = {"attention_bias": arch.qkv_bias, "mlp_bias": arch.mlp_bias}
    return translate.base_written(arch, "LlamaForCausalLM", dtype) | own
