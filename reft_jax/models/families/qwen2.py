"""Qwen 2 and 2.5 (also Math, Coder and DeepSeek-R1-Distill-Qwen; `model_type` "qwen2"): biases on queries, keys and values."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX, IGNORED = "model.", ""


def read(config, where: str) -> Arch:
    """The Arch of a transformers Qwen2Config."""
    rope = dict(config.rope_parameters)
    return Arch(
        **translate.base(config, "qwen2"),
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=translate.rope_scaling(where, rope, config.max_position_embeddings),
        activation=translate.activation(where, config.hidden_act),
        windows=translate.windows(where, config.layer_types, config.sliding_window),
        qkv_bias=True,
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.base_written(arch, "Qwen2ForCausalLM", dtype) | {
        **translate.rope_written(arch.rope_theta, arch.rope_scaling),
        "hidden_act": translate.WRITTEN[arch.activation],
        **translate.windows_written(arch),
    }


def table(arch: Arch) -> dict:
    return weights.llama_like(arch)
