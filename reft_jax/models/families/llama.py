"""Llama 2 and 3, CodeLlama, and what calls itself one (`model_type` "llama"): the decoder's default form."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX, IGNORED = "model.", r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # a buffer of old files


def read(config, where: str) -> Arch:
    """The Arch of a transformers LlamaConfig; InputError for what the decoder does not do."""
    rope = dict(config.rope_parameters)
    return Arch(
        **translate.base(config, "llama"),
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=translate.rope_scaling(where, rope, config.max_position_embeddings),
        activation=translate.activation(where, config.hidden_act),
        qkv_bias=bool(config.attention_bias),
        out_bias=bool(config.attention_bias),
        mlp_bias=bool(config.mlp_bias),
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.base_written(arch, "LlamaForCausalLM", dtype) | {
        **translate.rope_written(arch.rope_theta, arch.rope_scaling),
        "hidden_act": translate.WRITTEN[arch.activation],
        "attention_bias": arch.qkv_bias,
        "mlp_bias": arch.mlp_bias,
    }


def table(arch: Arch) -> dict:
    return weights.llama_like(arch)
