"""GPT-2 and Codeparrot (`model_type` "gpt2"): learned positions, LayerNorm, one fused matrix for queries, keys and values."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate, weights

PREFIX = "transformer."  # the oldest files leave it out
NAMES = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "attention_norm": "transformer.h.{}.ln_1",
    "mlp_norm": "transformer.h.{}.ln_2",
    "attention.o": "transformer.h.{}.attn.c_proj",
    "mlp.up": "transformer.h.{}.mlp.c_fc",
    "mlp.down": "transformer.h.{}.mlp.c_proj",
}


def read(config, where: str) -> Arch:
    """The Arch of a transformers GPT2Config."""
    translate.require(where, config, scale_attn_weights=True, add_cross_attention=False)
    return Arch(
        **translate.gpt_base(config, where),
        positions="learned",
        qkv_bias=True,
        out_bias=True,
        scale_by_layer=bool(config.scale_attn_by_inverse_layer_idx),
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    own = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": arch.scale_by_layer}
    return translate.gpt_base_written(arch, "GPT2LMHeadModel", dtype) | own


def table(arch: Arch) -> dict:
    d, n, h, fused = arch.dim, arch.num_heads, arch.head_dim, "transformer.h.{}.attn.c_attn"
    out = weights.table(arch, NAMES, weights.conv)
    for i, name in enumerate("qkv"):
        kernel = weights.Weight(f"{fused}.weight", (d, 3 * n * h), lambda t, i=i: t.reshape(d, 3, n, h)[:, i])
        out["blocks", "attention", name, "kernel"] = kernel
        bias = weights.Weight(f"{fused}.bias", (3 * n * h,), lambda t, i=i: t.reshape(3, n, h)[i])
        out["blocks", "attention", name, "bias"] = bias
    return out
