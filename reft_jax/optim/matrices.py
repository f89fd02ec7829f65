"""The parameters of a layer as the matrices that they are, for optimizers that look at rows and columns.

Blocks are stacked on a leading layer axis, and attention's kernels have an axis of heads: [L, D, N, H] are L matrices of D x N H.
"""

import math

import jax
import optax


def axes(path, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(axes of the inputs, axes of the outputs) of the matrices in a leaf with a layer axis, which is neither; None for anything else:
    norms, biases, and what is outside the blocks."""
    names = tuple(key.key for key in path)
    if "blocks" not in names or names[-1] not in ("kernel", "lora_a", "lora_b"):
        return None
    many_in = names[-1] == "lora_a" or names[-2:] == ("o", "kernel")  # o reads heads; A gives the rank alone
    first_out = ndim - 1 if many_in else 2
    return tuple(range(1, first_out)), tuple(range(first_out, ndim))


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` as if every layer had leaves of its own, matrices [in, out] and vectors; what is outside the blocks as it is."""

    def flat(path, leaf):
        found = axes(path, leaf.ndim)
        if found is None:
            return leaf.reshape(leaf.shape[0], -1)
        return leaf.reshape(leaf.shape[0], *(math.prod(leaf.shape[axis] for axis in group) for group in found))

    def as_matrices(tree):
        return jax.tree_util.tree_map_with_path(flat, tree)

    def init(params):
        return jax.vmap(tx.init)(as_matrices(params)) if jax.tree.leaves(params) else tx.init(params)

    def update(grads, state, params):
        if not jax.tree.leaves(grads):
            return tx.update(grads, state, params)
        updates, state = jax.vmap(tx.update)(as_matrices(grads), state, as_matrices(params))
        return jax.tree.map(lambda update, grad: update.reshape(grad.shape), updates, grads), state

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "layers" if any(key.key == "blocks" for key in path) else "rest", params
        )

    return optax.partition({"layers": optax.GradientTransformation(init, update), "rest": tx}, labels)
