"""Qwen 3 (dense; `model_type` "qwen3"): norms over each head's query and key."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX, IGNORED = "model.", ""


def read(config, where: str) -> Arch:
    """The Arch of a transformers Qwen3Config."""
    rope = dict(config.rope_parameters)
    return Arch(
        **translate.base(config, "qwen3"),
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=translate.rope_scaling(where, rope, config.max_position_embeddings),
        activation=translate.activation(where, config.hidden_act),
        windows=translate.windows(where, config.layer_types, config.sliding_window),
        qk_norm=True,
        qkv_bias=bool(config.attention_bias),
        out_bias=bool(config.attention_bias),
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.base_written(arch, "Qwen3ForCausalLM", dtype) | {
        **translate.rope_written(arch.rope_theta, arch.rope_scaling),
        "hidden_act": translate.WRITTEN[arch.activation],
        **translate.windows_written(arch),
        "attention_bias": arch.qkv_bias,
    }


def table(arch: Arch) -> dict:
    return weights.llama_like(arch)
