"""Low-rank adapters (LoRA, arXiv 2106.09685): only A and B of W + alpha / rank * A B are trained; W stays what it was.

`decoder.Linear` adds A and B where the model's `lora` names it. A parameter tree is then the join of two: the frozen base,
which has the shape of the model without `lora`, and the adapters, which optimizer and checkpoints see alone.
"""

import functools

import jax
import jax.numpy as jnp

from reft_jax.models import decoder

NAMES = ("lora_a", "lora_b")


def init(model, key) -> dict:
    """The adapters of a model alone: A normal with 1/sqrt(inputs), B zero, so that the model starts as its base."""
    names = only_adapters(decoder.axes(model))
    shardings = model.layout and model.layout.tree(only_adapters(decoder.shapes(model)), names)
    return jax.jit(lambda key: only_adapters(decoder.make(model, key)), out_shardings=shardings)(key)


def only_adapters(tree: dict) -> dict:
    """The adapters in a tree; {} if there are none."""
    out = {}
    for name, node in tree.items():
        if name in NAMES:
            out[name] = node
        elif isinstance(node, dict) and (inner := only_adapters(node)):
            out[name] = inner
    return out


def join(base: dict, other: dict) -> dict:
    """One tree of two, whose leaves usually have different places; where both have one it is the other's. Nothing is copied."""
    out = dict(base)
    for name, node in other.items():
        out[name] = join(out.get(name, {}), node) if isinstance(node, dict) else node
    return out


def merge(model, base: dict, adapters: dict) -> dict:
    """The base with every adapter added into its matrix, computed in float32; a tree for the model without adapters.

    What else `adapters` holds (a value head) comes along.
    """
    scale = model.lora.alpha / model.lora.rank

    def merged(node, added):
        out = dict(node)
        for name, inner in added.items():
            if isinstance(inner, dict):
                out[name] = merged(node.get(name, {}), inner)
            elif name == "lora_a":
                out["kernel"] = _add(node["kernel"], inner, added["lora_b"], scale)
            elif name != "lora_b":
                out[name] = inner
        return out

    return merged(base, adapters)


@jax.jit
def _add(kernel, a, b, scale):
    """kernel [L, inputs, outputs] + scale * A [L, inputs, rank] B [L, rank, outputs]; every adapted matrix is stacked."""
    exactly = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    product = jax.vmap(exactly)(a.astype(jnp.float32), b.astype(jnp.float32))
    return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
