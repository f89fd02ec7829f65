"""OPT and Galactica (`model_type` "opt"): learned positions that begin at row 2, LayerNorm, biases everywhere."""

from reft_jax.config.settings import Arch
from reft_jax.models.families import translate
from reft_jax.models.families.weights import bias, matrix, same

PREFIX, IGNORED = "model.", ""  # the oldest files leave the prefix out
OFFSET = 2


def read(config, where: str) -> Arch:
    """The Arch of a transformers OPTConfig."""
    translate.require(
        where,
        config,
        do_layer_norm_before=True,  # opt-350m alone has False
        word_embed_proj_dim=config.hidden_size,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
    )
    return Arch(
        family="opt",
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        ffn_dim=config.ffn_dim,
        rope_theta=10000.0,
        norm_eps=1e-5,
        tie_embeddings=bool(config.tie_word_embeddings),
        init_std=config.init_std,
        max_positions=config.max_position_embeddings,
        positions="learned",
        position_offset=OFFSET,
        norm="layer",
        activation=translate.activation(where, config.activation_function),
        gated=False,
        qkv_bias=bool(config.enable_bias),
        out_bias=bool(config.enable_bias),
        mlp_bias=bool(config.enable_bias),
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    translate.require_whole_heads(arch)
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.dim,
        "word_embed_proj_dim": arch.dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "ffn_dim": arch.ffn_dim,
        "max_position_embeddings": arch.max_positions,
        "do_layer_norm_before": True,
        "layer_norm_elementwise_affine": True,
        "enable_bias": arch.qkv_bias,
        "activation_function": translate.WRITTEN[arch.activation],
        "tie_word_embeddings": arch.tie_embeddings,
        "init_std": arch.init_std,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def table(arch: Arch) -> dict:
    d, n, h, f = arch.dim, arch.num_heads, arch.head_dim, arch.ffn_dim
    top, layer = "model.decoder.", "model.decoder.layers.{}."
    out = {
        ("embed", "kernel"): same(top + "embed_tokens.weight", arch.vocab_size, d),
        ("positions", "kernel"): same(top + "embed_positions.weight", arch.max_positions + arch.position_offset, d),
        ("blocks", "attention", "o", "kernel"): matrix(layer + "self_attn.out_proj.weight", (n, h), (d,)),
        ("blocks", "mlp", "up", "kernel"): matrix(layer + "fc1.weight", (d,), (f,)),
        ("blocks", "mlp", "down", "kernel"): matrix(layer + "fc2.weight", (f,), (d,)),
    }
    for name in "qkv":
        out["blocks", "attention", name, "kernel"] = matrix(f"{layer}self_attn.{name}_proj.weight", (d,), (n, h))
        if arch.qkv_bias:
            out["blocks", "attention", name, "bias"] = bias(f"{layer}self_attn.{name}_proj.bias", n, h)
    if arch.out_bias:
        out["blocks", "attention", "o", "bias"] = bias(layer + "self_attn.out_proj.bias", d)
    if arch.mlp_bias:
        out["blocks", "mlp", "up", "bias"] = bias(layer + "fc1.bias", f)
        out["blocks", "mlp", "down", "bias"] = bias(layer + "fc2.bias", d)
    norms = {
        ("norm",): top + "final_layer_norm",
        ("blocks", "attention_norm"): layer + "self_attn_layer_norm",
        ("blocks", "mlp_norm"): layer + "final_layer_norm",
    }
    for path, name in norms.items():
        out[*path, "scale"], out[*path, "bias"] = same(f"{name}.weight", d), same(f"{name}.bias", d)
    if not arch.tie_embeddings:
        out["unembed", "kernel"] = matrix("lm_head.weight", (d,), (arch.vocab_size,))
    return out
