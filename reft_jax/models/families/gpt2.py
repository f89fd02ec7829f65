"""GPT-2 and Codeparrot (`model_type` "gpt2"): learned positions, LayerNorm, one fused matrix for queries, keys and values."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate
from reft_jax.models.families.weights import Weight, bias, same

PREFIX = "transformer."  # the oldest files leave it out
IGNORED = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"  # the causal mask, stored as a buffer


def read(config, where: str) -> Arch:
    """The Arch of a transformers GPT2Config."""
    translate.require(where, config, scale_attn_weights=True, add_cross_attention=False)
    return Arch(
        **translate.gpt_base(config, where, "gpt2"),
        positions="learned",
        qkv_bias=True,
        out_bias=True,
        scale_by_layer=bool(config.scale_attn_by_inverse_layer_idx),
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.gpt_base_written(arch, "GPT2LMHeadModel", dtype) | {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": arch.scale_by_layer,
    }


def table(arch: Arch) -> dict:
    d, n, h, f = arch.dim, arch.num_heads, arch.head_dim, arch.ffn_dim
    layer = "transformer.h.{}."
    out = {
        ("embed", "kernel"): same("transformer.wte.weight", arch.vocab_size, d),
        ("positions", "kernel"): same("transformer.wpe.weight", arch.max_positions, d),
        ("blocks", "attention", "o", "kernel"): Weight(
            layer + "attn.c_proj.weight", (n * h, d), lambda t: t.reshape(n, h, d)
        ),
        ("blocks", "attention", "o", "bias"): bias(layer + "attn.c_proj.bias", d),
        ("blocks", "mlp", "up", "kernel"): same(layer + "mlp.c_fc.weight", d, f),  # Conv1D: [inputs, outputs]
        ("blocks", "mlp", "up", "bias"): bias(layer + "mlp.c_fc.bias", f),
        ("blocks", "mlp", "down", "kernel"): same(layer + "mlp.c_proj.weight", f, d),
        ("blocks", "mlp", "down", "bias"): bias(layer + "mlp.c_proj.bias", d),
    }
    for i, name in enumerate("qkv"):
        out["blocks", "attention", name, "kernel"] = Weight(
            layer + "attn.c_attn.weight", (d, 3 * n * h), lambda t, i=i: t.reshape(d, 3, n, h)[:, i]
        )
        out["blocks", "attention", name, "bias"] = Weight(
            layer + "attn.c_attn.bias", (3 * n * h,), lambda t, i=i: t.reshape(3, n, h)[i]
        )
    norms = {
        ("norm",): "transformer.ln_f",
        ("blocks", "attention_norm"): layer + "ln_1",
        ("blocks", "mlp_norm"): layer + "ln_2",
    }
    for path, name in norms.items():
        out[*path, "scale"], out[*path, "bias"] = same(f"{name}.weight", d), same(f"{name}.bias", d)
    if not arch.tie_embeddings:
        out["unembed", "kernel"] = Weight("lm_head.weight", (arch.vocab_size, d), lambda t: t.T)
    return out
