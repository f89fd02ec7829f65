"""Statistics over masks against float64 loops; what is masked out is NaN and inf throughout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import masked
from tests import reference

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
JUNK = np.array([[np.nan, np.inf, -np.inf, 3e38]])


def numbers(seed=0):
    real = np.random.default_rng(seed).normal(2.0, 3.0, MASK.shape)
    return np.where(MASK, real, JUNK).astype(np.float32)


def finite_everywhere(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_total_mean_and_var_are_of_the_real_entries():
    x, real = numbers(), numbers()[MASK].astype(np.float64)
    np.testing.assert_allclose(jax.jit(masked.total)(x, MASK), real.sum(), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(masked.mean)(x, MASK), real.mean(), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(masked.var)(x, MASK), real.var(), rtol=1e-6)


def test_mean_along_an_axis_is_each_rows_own_and_zero_for_an_empty_row():
    x = numbers()
    got = masked.mean(x, MASK, axis=1)
    expected = [x[b][MASK[b]].astype(np.float64).mean() if MASK[b].any() else 0.0 for b in range(len(x))]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("function", [masked.mean, masked.var, lambda x, mask: masked.whiten(x, mask).sum()])
def test_nothing_real_gives_zero_and_no_nan(function):
    value, grad = jax.jit(jax.value_and_grad(function))(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool))
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_whiten_matches_the_oracle_and_is_zero_outside():
    x = numbers()
    got = jax.jit(masked.whiten)(x, MASK)
    np.testing.assert_allclose(got, reference.whiten(x, MASK), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(got)[~MASK], 0.0)
    assert abs(np.asarray(got)[MASK].mean()) < 1e-6 and abs(np.asarray(got)[MASK].std() - 1.0) < 1e-5


def test_whiten_of_equal_entries_is_zero():
    np.testing.assert_allclose(masked.whiten(jnp.full(MASK.shape, 7.0), MASK), 0.0, atol=1e-3)


@pytest.mark.parametrize("name", ["mean", "var", "whiten"])
def test_gradients_are_finite_and_zero_at_the_padding(name):
    weights = np.random.default_rng(1).normal(size=MASK.shape).astype(np.float32)
    grad = jax.jit(
        jax.grad(
            lambda x: (
                jnp.sum(jnp.full(MASK.shape, getattr(masked, name)(x, MASK)) * weights)
                if name != "whiten"
                else jnp.sum(masked.whiten(x, MASK) * weights)
            )
        )
    )(numbers())
    assert finite_everywhere(grad)
    np.testing.assert_array_equal(np.asarray(grad)[~MASK], 0.0)
    assert np.abs(np.asarray(grad)[MASK]).max() > 1e-4


def test_last_marks_the_last_real_entry_of_each_row():
    expected = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    got = jax.jit(masked.last)(MASK)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == bool


@pytest.mark.parametrize("how", ["sequence", "token"])
def test_reduce_matches_the_oracle_and_the_two_differ(how):
    x = numbers()
    np.testing.assert_allclose(
        jax.jit(masked.reduce, static_argnums=2)(x, MASK, how), reference.reduce(x, MASK, how), rtol=1e-5
    )
    other = reference.reduce(x, MASK, {"sequence": "token", "token": "sequence"}[how])
    assert abs(float(masked.reduce(x, MASK, how)) - other) > 1e-2


@pytest.mark.parametrize("how, of_metrics", [("sequence", "sequence"), ("token", "token"), ("constant", "sequence")])
def test_a_stage_s_mean_is_its_reduce_and_its_share_is_of_the_tokens_that_there_are(how, of_metrics):
    x, mean = numbers(), masked.Mean(MASK, how, 9)
    real = np.where(MASK, x, 0.0).astype(np.float64)
    expected = real.sum() / (len(x) * 9) if how == "constant" else reference.reduce(x, MASK, how)
    np.testing.assert_allclose(jax.jit(mean)(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(mean.share)(x), reference.reduce(x, MASK, of_metrics), rtol=1e-5)
    np.testing.assert_allclose(masked.Mean(MASK, "constant")(x), real.sum() / x.size, rtol=1e-5)  # as the arrays
