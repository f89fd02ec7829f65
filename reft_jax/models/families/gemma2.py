"""Gemma 2 (`model_type` "gemma2"): norms before and after each part, scales 1 + w, GeGLU, soft-caps, every other layer a window."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX, IGNORED = "model.", ""


def read(config, where: str) -> Arch:
    """The Arch of a transformers Gemma2Config."""
    translate.require(where, config, attention_bias=False)
    if config.use_bidirectional_attention:
        translate.require(where, config, use_bidirectional_attention=False)
    rope = dict(config.rope_parameters)
    return Arch(
        **translate.base(config, "gemma2"),
        **translate.gemma_base(config, where),
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=translate.rope_scaling(where, rope, config.max_position_embeddings),
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return (
        translate.base_written(arch, "Gemma2ForCausalLM", dtype)
        | translate.gemma_base_written(arch)
        | {
            **translate.rope_written(arch.rope_theta, arch.rope_scaling),
        }
    )


def table(arch: Arch) -> dict:
    return weights.gemma_like(arch)
