"""Gemma 2 (`model_type` "gemma2"): norms before and after each part, scales 1 + w, GeGLU, soft-caps, every other layer a window."""

import math

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
        **shared(config, where),
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=translate.rope_scaling(where, rope, config.max_position_embeddings),
    )


def shared(config, where: str) -> dict:
    """What Gemma 2 and 3 have in common, as keywords of Arch."""
    return dict(
        norm="rms_plus_one",
        post_norms=True,
        activation=translate.activation(where, config.hidden_activation),
        windows=translate.windows(where, config.layer_types, config.sliding_window),
        attention_scale=float(config.query_pre_attn_scalar) ** -0.5,
        attention_softcap=float(config.attn_logit_softcapping or 0.0),
        logit_softcap=float(config.final_logit_softcapping or 0.0),
        embed_scale=math.sqrt(config.hidden_size),
    )


def shared_written(arch: Arch) -> dict:
    """The config.json keys of `shared`."""
    scalar = round(arch.attention_scale**-2, 6)
    return {
        "hidden_activation": translate.WRITTEN[arch.activation],
        "sliding_window": translate.one_window(arch),
        "layer_types": translate.layer_types(arch),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": arch.attention_softcap or None,
        "final_logit_softcapping": arch.logit_softcap or None,
        "attention_bias": False,
    }


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return (
        translate.base_written(arch, "Gemma2ForCausalLM", dtype)
        | shared_written(arch)
        | {
            **translate.rope_written(arch.rope_theta, arch.rope_scaling),
        }
    )


def table(arch: Arch) -> dict:
    return weights.llama_like(
        arch,
        mlp_norm="pre_feedforward_layernorm",
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
