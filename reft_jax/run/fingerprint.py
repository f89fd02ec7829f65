"""The fingerprint of parameters, by which a checkpoint is known again (`lineage.py`)."""

import hashlib

import jax
import jax.numpy as jnp


def fingerprint(params) -> str:
    """32 hexadecimal digits of a tree of arrays: the same on any mesh, and others if a bit, a shape or a path is another."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest = hashlib.sha256()
    for (path, leaf), total in zip(leaves, jax.device_get(_sums([leaf for _, leaf in leaves])), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape} {total}\n".encode())
    return digest.hexdigest()[:32]


@jax.jit
def _sums(leaves: list) -> list:
    """u32[] of each leaf: the sum, modulo 2^32, of a hash of each number's bits and place, which is a bijection of the bits."""
    out = []
    for leaf in leaves:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
        place = jnp.uint32(1)
        for axis, size in enumerate(leaf.shape):
            place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        hashed = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)  # odd numbers: nothing is lost
        hashed = (hashed ^ (hashed >> 15)) * jnp.uint32(0xC2B2AE35)
        out.append(jnp.sum(hashed ^ (hashed >> 13), dtype=jnp.uint32))
    return out
