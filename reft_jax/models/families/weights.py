"""How a weight of a Hugging Face file becomes one of ours: what the families' tables are made of."""

import math
import typing

import numpy as np


class Weight(typing.NamedTuple):
    """One of our arrays. `take` gives, by views alone, its part of the file's tensor with the axes in our order; so it
    also says where to write. A name with {} is one per layer, stacked on a leading axis here."""

    name: str
    shape: tuple[int, ...]  # in the file
    take: typing.Callable[[np.ndarray], np.ndarray] = lambda tensor: tensor


def same(name: str, *shape: int) -> Weight:
    return Weight(name, shape)


def matrix(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Weight:
    """A torch.nn.Linear's [outputs, inputs]; ours is [*inputs, *outputs]."""
    return Weight(
        name, (math.prod(outputs), math.prod(inputs)), lambda t: _swap(t.reshape(*outputs, *inputs), len(outputs))
    )


def _swap(tensor, num):
    """The first `num` axes moved behind the others."""
    return tensor.transpose(*range(num, tensor.ndim), *range(num))


def bias(name: str, *outputs: int) -> Weight:
    return Weight(name, (math.prod(outputs),), lambda t: t.reshape(outputs))


def llama_like(arch, *, mlp_norm="post_attention_layernorm", attention_post_norm=None, mlp_post_norm=None) -> dict:
    """The table of the families that name their weights as Llama does."""
    d, n, k, h, f = arch.dim, arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.ffn_dim
    layer = "model.layers.{}."
    table = {
        ("embed", "kernel"): same("model.embed_tokens.weight", arch.vocab_size, d),
        ("norm", "scale"): same("model.norm.weight", d),
        ("blocks", "attention_norm", "scale"): same(layer + "input_layernorm.weight", d),
        ("blocks", "mlp_norm", "scale"): same(f"{layer}{mlp_norm}.weight", d),
        ("blocks", "attention", "q", "kernel"): matrix(layer + "self_attn.q_proj.weight", (d,), (n, h)),
        ("blocks", "attention", "k", "kernel"): matrix(layer + "self_attn.k_proj.weight", (d,), (k, h)),
        ("blocks", "attention", "v", "kernel"): matrix(layer + "self_attn.v_proj.weight", (d,), (k, h)),
        ("blocks", "attention", "o", "kernel"): matrix(layer + "self_attn.o_proj.weight", (n, h), (d,)),
        ("blocks", "mlp", "gate", "kernel"): matrix(layer + "mlp.gate_proj.weight", (d,), (f,)),
        ("blocks", "mlp", "up", "kernel"): matrix(layer + "mlp.up_proj.weight", (d,), (f,)),
        ("blocks", "mlp", "down", "kernel"): matrix(layer + "mlp.down_proj.weight", (f,), (d,)),
    }
    if arch.post_norms:
        table["blocks", "attention_post_norm", "scale"] = same(f"{layer}{attention_post_norm}.weight", d)
        table["blocks", "mlp_post_norm", "scale"] = same(f"{layer}{mlp_post_norm}.weight", d)
    if arch.qk_norm:
        table["blocks", "attention", "q_norm", "scale"] = same(layer + "self_attn.q_norm.weight", h)
        table["blocks", "attention", "k_norm", "scale"] = same(layer + "self_attn.k_norm.weight", h)
    if arch.qkv_bias:
        for name, heads in (("q", n), ("k", k), ("v", k)):
            table["blocks", "attention", name, "bias"] = bias(f"{layer}self_attn.{name}_proj.bias", heads, h)
    if arch.out_bias:
        table["blocks", "attention", "o", "bias"] = bias(layer + "self_attn.o_proj.bias", d)
    if arch.mlp_bias:
        for name, size in (("gate", f), ("up", f), ("down", d)):
            table["blocks", "mlp", name, "bias"] = bias(f"{layer}mlp.{name}_proj.bias", size)
    if not arch.tie_embeddings:
        table["unembed", "kernel"] = matrix("lm_head.weight", (d,), (arch.vocab_size,))
    return table


def gemma_like(arch) -> dict:
    """The table of Gemma 2 and 3, which have norms before and after each part."""
    return llama_like(
        arch,
        mlp_norm="pre_feedforward_layernorm",
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
