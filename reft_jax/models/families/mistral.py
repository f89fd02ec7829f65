"""Mistral (`model_type` "mistral"): a Llama whose layers may all see a sliding window."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX, IGNORED = "model.", ""


def read(config, where: str) -> Arch:
    """The Arch of a transformers MistralConfig."""
    rope = dict(config.rope_parameters)
    window = config.sliding_window or 0
    return Arch(
        **translate.base(config, "mistral"),
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=translate.rope_scaling(where, rope, config.max_position_embeddings),
        activation=translate.activation(where, config.hidden_act),
        windows=(window,) * config.num_hidden_layers if window else (),
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.base_written(arch, "MistralForCausalLM", dtype) | {
        **translate.rope_written(arch.rope_theta, arch.rope_scaling),
        "hidden_act": translate.WRITTEN[arch.activation],
        "sliding_window": translate.one_window(arch),
    }


def table(arch: Arch) -> dict:
    return weights.llama_like(arch)
