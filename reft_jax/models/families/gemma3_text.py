"""Gemma 3, text only (`model_type` "gemma3_text"): Gemma 2 with query and key norms, no soft-caps, and rotary angles of their
own in the layers with a window."""

from reft_jax.config.settings import Arch
from reft_jax.errors import InputError
from reft_jax.models.families import translate, weights

PREFIX = "model."
table = weights.gemma_like


def read(config, where: str) -> Arch:
    """The Arch of a transformers Gemma3TextConfig."""
    translate.require(where, config, attention_bias=False, use_bidirectional_attention=False)
    rope, local = (dict(config.rope_parameters[kind]) for kind in ("full_attention", "sliding_attention"))
    if (kind := local.get("rope_type", "default")) != "default":
        raise InputError(f"{where}: rope_type of sliding_attention is {kind!r}; only 'default' is supported")
    own = dict(local_rope_theta=float(local["rope_theta"]), qk_norm=True)
    return Arch(**translate.gemma_base(config, where, rope), **own)


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.gemma_base_written(arch, "Gemma3ForCausalLM", dtype) | {
        "rope_local_base_freq": arch.local_rope_theta,
        "rope_parameters": {
            "full_attention": translate.rope_parameters(arch.rope_theta, arch.rope_scaling),
            "sliding_attention": {"rope_theta": arch.local_rope_theta, "rope_type": "default"},
        },
        "use_bidirectional_attention": False,
    }
