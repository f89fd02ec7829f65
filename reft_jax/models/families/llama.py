"""Llama: what its Hugging Face config and weight names mean here (`model_type` "llama")."""

from reft_jax.config import Arch
from reft_jax.errors import InputError


def read(config, where: str) -> Arch:
    """The Arch of a transformers LlamaConfig; InputError for what the decoder does not do."""
    rope = dict(config.rope_parameters)
    unsupported = {
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "hidden_act": (config.hidden_act, "silu"),
        "attention_bias": (config.attention_bias, False),
        "mlp_bias": (config.mlp_bias, False),
    }
    for key, (got, legal) in unsupported.items():
        if got != legal:
            raise InputError(f"{where}: {key} is {got!r}; only {legal!r} is supported")
    return Arch(
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        ffn_dim=config.intermediate_size,
        rope_theta=float(rope["rope_theta"]),
        norm_eps=config.rms_norm_eps,
        tie_embeddings=config.tie_word_embeddings,
        init_std=config.initializer_range,
    )


def write(arch: Arch, dtype: str) -> dict:
    """The config.json of an Arch."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.ffn_dim,
        "rope_theta": arch.rope_theta,
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tie_embeddings,
        "initializer_range": arch.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "max_position_embeddings": 4096,
    }


def weights(arch: Arch) -> dict:
    """Path in our tree -> (weight name, with {} for the layer if stacked; shape here; how many leading axes are inputs).

    A kernel [inputs..., outputs...] here is a matrix [outputs, inputs] there; 0 inputs = the same array.
    """
    d, n, k, h, f = arch.dim, arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.ffn_dim
    block = "model.layers.{}."
    table = {
        ("embed", "kernel"): ("model.embed_tokens.weight", (arch.vocab_size, d), 0),
        ("norm", "scale"): ("model.norm.weight", (d,), 0),
        ("blocks", "attention_norm", "scale"): (block + "input_layernorm.weight", (d,), 0),
        ("blocks", "attention", "q", "kernel"): (block + "self_attn.q_proj.weight", (d, n, h), 1),
        ("blocks", "attention", "k", "kernel"): (block + "self_attn.k_proj.weight", (d, k, h), 1),
        ("blocks", "attention", "v", "kernel"): (block + "self_attn.v_proj.weight", (d, k, h), 1),
        ("blocks", "attention", "o", "kernel"): (block + "self_attn.o_proj.weight", (n, h, d), 2),
        ("blocks", "mlp_norm", "scale"): (block + "post_attention_layernorm.weight", (d,), 0),
        ("blocks", "mlp", "gate", "kernel"): (block + "mlp.gate_proj.weight", (d, f), 1),
        ("blocks", "mlp", "up", "kernel"): (block + "mlp.up_proj.weight", (d, f), 1),
        ("blocks", "mlp", "down", "kernel"): (block + "mlp.down_proj.weight", (f, d), 1),
    }
    if not arch.tie_embeddings:
        table["unembed", "kernel"] = ("lm_head.weight", (d, arch.vocab_size), 1)
    return table
