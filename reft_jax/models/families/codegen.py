"""CodeGen (`model_type` "codegen"): attention and feed-forward in parallel, part of each head rotated in interleaved pairs, and
queries, values and keys fused in the order that four TPU cores once needed."""

from reft_jax.config.settings import Arch
from reft_jax.errors import InputError
from reft_jax.models.families import translate
from reft_jax.models.families.weights import Weight, bias, matrix, same

PREFIX = "transformer."
IGNORED = r"transformer\.h\.\d+\.attn\.(causal_mask|bias|masked_bias)"
CORES = 4  # rows of the fused matrix: per core, the queries, values and keys of a quarter of the heads


def read(config, where: str) -> Arch:
    """The Arch of a transformers CodeGenConfig."""
    if config.n_head % CORES:
        raise InputError(f"{where}: n_head is {config.n_head}; CodeGen's fused matrix needs a multiple of {CORES}")
    if not config.rotary_dim:
        raise InputError(f"{where}: rotary_dim is {config.rotary_dim!r}; it must be a number of a head's dimensions")
    return Arch(
        **translate.gpt_base(config, where, "codegen"),
        rotary_dim=config.rotary_dim,
        rope_interleaved=True,
        parallel=True,
        unembed_bias=not config.tie_word_embeddings,
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return translate.gpt_base_written(arch, "CodeGenForCausalLM", dtype) | {
        "n_ctx": arch.max_positions,
        "rotary_dim": arch.rotary_dim,
    }


def table(arch: Arch) -> dict:
    d, n, h, f = arch.dim, arch.num_heads, arch.head_dim, arch.ffn_dim
    layer = "transformer.h.{}."
    out = {
        ("embed", "kernel"): same("transformer.wte.weight", arch.vocab_size, d),
        ("norm", "scale"): same("transformer.ln_f.weight", d),
        ("norm", "bias"): same("transformer.ln_f.bias", d),
        ("blocks", "attention_norm", "scale"): same(layer + "ln_1.weight", d),
        ("blocks", "attention_norm", "bias"): same(layer + "ln_1.bias", d),
        ("blocks", "attention", "o", "kernel"): matrix(layer + "attn.out_proj.weight", (n, h), (d,)),
        ("blocks", "mlp", "up", "kernel"): matrix(layer + "mlp.fc_in.weight", (d,), (f,)),
        ("blocks", "mlp", "up", "bias"): bias(layer + "mlp.fc_in.bias", f),
        ("blocks", "mlp", "down", "kernel"): matrix(layer + "mlp.fc_out.weight", (f,), (d,)),
        ("blocks", "mlp", "down", "bias"): bias(layer + "mlp.fc_out.bias", d),
    }
    for i, name in enumerate("qvk"):
        out["blocks", "attention", name, "kernel"] = Weight(
            layer + "attn.qkv_proj.weight",
            (3 * n * h, d),
            lambda t, i=i: t.reshape(CORES, 3, n // CORES, h, d)[:, i].transpose(3, 0, 1, 2),
        )
    if not arch.tie_embeddings:
        out["unembed", "kernel"] = matrix("lm_head.weight", (d,), (arch.vocab_size,))
        out["unembed", "bias"] = bias("lm_head.bias", arch.vocab_size)
    return out
