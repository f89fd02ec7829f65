"""Products of activations with weights, whose gradient turns around the smaller of its two factors.

The gradient of y = x W is x^T dy, and one of x and dy is transposed on the way. JAX takes dy always: the wide side of a gated
feed-forward or of the vocabulary, and on a CPU the compiler computes what precedes it (the activation's or the softmax's gradient)
column by column, which took a quarter of an update. The sums are the same ones.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

NAME = "product"  # what remat's policies know its result by
WIDE = "wide_product"  # and its sums in float32, before they are rounded


def product(x, kernel, num_in: int = 1, dtype=None, *, wide: bool = False):
    """The last num_in axes of x against the first num_in of kernel: [..., in] x [in, out] -> [..., out], in `dtype` (x's if None).

    `wide`: sums are kept in float32, and rounded once, which is the form of a product of bfloat16 that a CPU with AMX has a kernel for.
    Over a mesh of TPUs it would send float32 from one to the next.
    """
    return _product(x, kernel, num_in, jnp.dtype(dtype or x.dtype), wide)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(x, kernel, num_in, dtype, wide):
    return checkpoint_name(_dot(x, kernel, range(x.ndim - num_in, x.ndim), range(num_in), dtype, wide), NAME)


def _dot(a, b, a_axes, b_axes, dtype, wide):
    dimensions = ((tuple(a_axes), tuple(b_axes)), ((), ()))
    out = jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32 if wide else dtype)
    return checkpoint_name(out, WIDE).astype(dtype) if wide else out


def _forward(x, kernel, num_in, dtype, wide):
    return _product.fun(x, kernel, num_in, dtype, wide), (x, kernel)  # not a call: remat's policies see into it


def _backward(num_in, dtype, wide, kept, dy):
    x, kernel = kept
    if wide:
        dy = dy.astype(x.dtype)  # of logits, which are float32: else their products would be
    rows, num_out = range(x.ndim - num_in), kernel.ndim - num_in
    dx = _dot(dy, kernel, range(len(rows), dy.ndim), range(num_in, kernel.ndim), dtype, wide).astype(x.dtype)
    narrow = math.prod(x.shape[len(rows) :]) <= math.prod(dy.shape[len(rows) :])
    if wide and x.dtype.itemsize < 4:
        # Never the other way round, nor over one axis: jax 0.10.2's compiler for CPUs makes some of these what it refuses to run.
        x, dy = (y[None] if len(rows) == 1 else y for y in (x, dy))
        rows = range(max(len(rows), 2))
        narrow = True
    if narrow:
        dkernel = _dot(x, dy, rows, rows, dtype, wide)
    else:
        dkernel = _dot(dy, x, rows, rows, dtype, wide)
        dkernel = dkernel.transpose(*range(num_out, kernel.ndim), *range(num_out))
    return dx, dkernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)
