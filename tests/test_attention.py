"""Every way to attend against the plain one: kernels interpreted on the CPU, and compiled for a TPU where its compiler is."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.models import attention
from tests import tiny


def arch(**changes):
    return dataclasses.replace(tiny.ARCH, **changes)


def drawn(rng, *shape, dtype="float32"):
    return jnp.asarray(rng.normal(size=shape), dtype)


TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


# ------------------------------------------------------------------ decoding: lengths of their own

WIDTH = 80


def one_token(model, lengths, window, dtype, rng, width=WIDTH):
    """(out, k, v) of the plain way and of the kernel for one new token a slot, over random caches."""
    a = model.arch
    num, k, h = len(lengths), a.num_kv_heads, a.head_dim
    q, *new = (drawn(rng, num, 1, heads, h, dtype=dtype) for heads in (a.num_heads, k, k))
    caches = tuple(drawn(rng, num, k, width, h, dtype=dtype) for _ in range(2))
    length = jnp.asarray(lengths, jnp.int32)
    age = length[:, None, None] - jnp.arange(width)[None, None]
    visible = (age >= 0) & ((age < window) if window else True)
    settings = dict(visible=visible, real=None, layer=0, scale=h**-0.5, cache=(*caches, length))
    for way in ("xla", "kernel"):
        out, kv = attention.attend(dataclasses.replace(model, attention=way), q, *new, **settings)
        yield np.asarray(out, np.float32), *(np.asarray(x, np.float32) for x in kv)


@pytest.mark.parametrize(
    "dtype, head_dim, group, window, cap",
    [
        ("float32", 64, 1, 0, 0.0),
        ("float32", 128, 4, 0, 0.0),
        ("float32", 128, 1, 20, 0.0),
        ("float32", 64, 4, 33, 5.0),
        ("bfloat16", 128, 4, 0, 0.0),
        ("bfloat16", 64, 1, 20, 5.0),
    ],
)
def test_a_slot_s_token_sees_what_the_plain_way_shows_it(dtype, head_dim, group, window, cap, monkeypatch):
    monkeypatch.setattr(attention, "_ragged", functools.partial(attention._ragged, block=32))
    changes = dict(num_heads=2 * group, num_kv_heads=2, head_dim=head_dim, num_layers=1, attention_softcap=cap)
    model = models.Model(arch(windows=(window,), **changes), compute_dtype=dtype)
    lengths = [0, 1, 15, 16, 31, 32, 33, 64, WIDTH - 1]
    plain, kernel = one_token(model, lengths, window, dtype, np.random.default_rng(0))
    np.testing.assert_allclose(kernel[0], plain[0], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    for ours, theirs in zip(kernel[1:], plain[1:], strict=True):
        for row, length in enumerate(lengths):  # behind the new token nobody looks
            np.testing.assert_array_equal(ours[row, :, : length + 1], theirs[row, :, : length + 1])
            assert np.isfinite(ours[row]).all()
