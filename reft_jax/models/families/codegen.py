"""CodeGen (`model_type` "codegen"): attention and feed-forward in parallel, part of each head rotated in interleaved pairs, and
queries, values and keys fused in the order that four TPU cores once needed."""

from reft_jax.config.settings import Arch
from reft_jax.errors import InputError
from reft_jax.models.families import translate, weights

PREFIX = "transformer."
CORES = 4  # rows of the fused matrix: per core, the queries, values and keys of a quarter of the heads
NAMES = {
    "embed": "transformer.wte",
    "norm": "transformer.ln_f",
    "attention_norm": "transformer.h.{}.ln_1",
    "attention.o": "transformer.h.{}.attn.out_proj",
    "mlp.up": "transformer.h.{}.mlp.fc_in",
    "mlp.down": "transformer.h.{}.mlp.fc_out",
}


def read(config, where: str) -> Arch:
    """The Arch of a transformers CodeGenConfig."""
    if config.n_head % CORES:
        raise InputError(f"{where}: n_head is {config.n_head}; CodeGen's fused matrix needs a multiple of {CORES}")
    if not config.rotary_dim:
        raise InputError(f"{where}: rotary_dim is {config.rotary_dim!r}; it must be a number of a head's dimensions")
    return Arch(
        **translate.gpt_base(config, where),
        rotary_dim=config.rotary_dim,
        rope_interleaved=True,
        parallel=True,
        unembed_bias=not config.tie_word_embeddings,
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    own = {"n_ctx": arch.max_positions, "rotary_dim": arch.rotary_dim}
    return translate.gpt_base_written(arch, "CodeGenForCausalLM", dtype) | own


def table(arch: Arch) -> dict:
    d, n, h = arch.dim, arch.num_heads, arch.head_dim
    out = weights.table(arch, NAMES)
    for i, name in enumerate("qvk"):
        out["blocks", "attention", name, "kernel"] = weights.Weight(
            "transformer.h.{}.attn.qkv_proj.weight",
            (3 * n * h, d),
            lambda t, i=i: t.reshape(CORES, 3, n // CORES, h, d)[:, i].transpose(3, 0, 1, 2),
        )
    return out
