"""A frozen base in 8 or 4 bits under adapters (QLoRA, arXiv 2305.14314), with qwix doing the arithmetic.

The matrices of every block (six or seven) are kept as `kernel_q` and `kernel_scale`, and turned back into the compute dtype where
they are multiplied, one layer at a time; embeddings, norms and biases stay as they are. int8 has one scale per output;
int4 and nf4 have one for every 64 inputs of each output (fewer where 64 does not divide their number: its greatest power
of two that does).

What it does not do: multiply in 8 bits (products are in the compute dtype), quantize the scales again, or train what is
quantized; decoding turns the weights back at every token, so it samples more slowly than a full base.
"""

import math

import jax
import jax.numpy as jnp

from reft_jax.config import packages
from reft_jax.errors import InputError

STORED = {"int8": jnp.int8, "int4": jnp.int4, "nf4": jnp.uint4}
BLOCK = 64


def library():
    """qwix, which only quantized bases need."""
    try:
        return packages.load("qwix", "dequantize")
    except ImportError as error:
        raise InputError(
            f"config.model.base: a quantized base needs the package qwix ({error}): pip install qwix"
        ) from error


def _tile(qtype: str, inputs: tuple[int, ...]) -> int:
    """How many values of the last input axis share a scale."""
    return inputs[-1] if qtype == "int8" else math.gcd(inputs[-1], BLOCK)


def scale_shape(qtype: str, shape: tuple[int, ...], num_in: int) -> tuple[int, ...]:
    """The scales' shape for a kernel [inputs..., outputs...]."""
    inputs = shape[:num_in]
    outer = (1,) * (num_in - 1) if qtype == "int8" else inputs[:-1]
    return (*outer, inputs[-1] // _tile(qtype, inputs), *shape[num_in:])


def dequantized(kernel_q, kernel_scale, qtype: str, dtype):
    """The kernel in `dtype`, computed in float32."""
    qwix = library()
    return qwix.dequantize(qwix.QArray(kernel_q, kernel_scale, None, qtype)).astype(dtype)


def quantize(model, params: dict) -> dict:
    """A full base's tree as the model with `base` int8, int4 or nf4 has it; other leaves are the same arrays."""
    from reft_jax.models import decoder

    shapes = decoder.shapes(model)
    places = model.layout and model.layout.tree(shapes, decoder.axes(model))

    def walk(node, like, place):
        out = {}
        for name, inner in node.items():
            if isinstance(inner, dict):
                out[name] = walk(inner, like[name], place and place[name])
            elif name == "kernel" and "kernel_q" in like:
                where = place and {key: place[key] for key in ("kernel_q", "kernel_scale")}
                out |= _quantize(inner, like["kernel_scale"].shape, model.base, where)
            else:
                out[name] = inner
        return out

    return walk(params, shapes, places)


def _quantize(kernel, scales: tuple[int, ...], qtype: str, where) -> dict:
    """{"kernel_q", "kernel_scale"} of a stacked kernel, placed by a like dict of shardings."""
    qwix = library()
    tiles = {axis: size // num for axis, (size, num) in enumerate(zip(kernel.shape, scales, strict=True))}
    alone = [axis for axis, tile in tiles.items() if tile == 1]
    tiled = {axis: tile for axis, tile in tiles.items() if 1 < tile < kernel.shape[axis]}

    def make(kernel):
        array = qwix.quantize(kernel.astype(jnp.float32), qtype, channelwise_axes=alone, tiled_axes=tiled)
        return {"kernel_q": array.qvalue, "kernel_scale": array.scale}

    return jax.jit(make, out_shardings=where)(kernel)


def restore(model, params: dict) -> dict:
    """The full tree that a quantized one stands for, in the model's param_dtype: what adapters were trained on."""

    def walk(node):
        out = {}
        for name, inner in node.items():
            if isinstance(inner, dict):
                out[name] = walk(inner)
            elif name == "kernel_q":
                restored = dequantized(inner, node["kernel_scale"], model.base, jnp.float32)
                out["kernel"] = restored.astype(model.param_dtype)
            elif name != "kernel_scale":
                out[name] = inner
        return out

    return walk(params)
