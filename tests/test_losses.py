"""GAE, rewards, and the SFT and PPO losses against float64 loops: jitted, ragged, with NaN, inf and overflow in all padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax.losses import advantages, ppo, sft
from tests import reference, tiny

LENGTHS = [5, 1, 0, 6, 3]  # one response is a single token, one row is padding altogether
JUNK = [0.0, np.nan, np.inf, -np.inf, 3e38]
SETTINGS = dict(clip=0.2, value_clip=0.2, value_coef=5.0)
MASK = tiny.lengths_mask(LENGTHS, 6, left=False)


def draw(rng, mean, std, fill):
    return np.where(MASK, rng.normal(mean, std, MASK.shape), fill).astype(np.float32)


def ppo_inputs(seed, fill):
    """(logp, values, batch) with ratios inside, outside and at both sides of the clip range."""
    rng = np.random.default_rng(seed)
    batch = tiny.ppo_batch(rng, [3] * len(LENGTHS), LENGTHS, response_size=6, fill=fill)
    logp = np.where(MASK, batch.old_logp + rng.normal(0, 0.3, MASK.shape), fill).astype(np.float32)
    values = np.where(MASK, batch.old_values + rng.normal(0, 0.4, MASK.shape), fill).astype(np.float32)
    return logp, values, batch


def jitted_ppo(reduce):
    return jax.jit(functools.partial(ppo.ppo_loss, **SETTINGS, reduce=reduce))


# ------------------------------------------------------------------ rewards and advantages


@pytest.mark.parametrize("fill", JUNK)
def test_token_rewards_match_the_oracle(fill):
    rng = np.random.default_rng(0)
    logp, ref_logp = draw(rng, -2, 1, fill), draw(rng, -2, 1, fill)
    score = np.array([1.0, 0.1, 0.0, 0.1, 1.0], np.float32)
    got = jax.jit(functools.partial(ppo.token_rewards, kl_coef=0.05))(score, logp, ref_logp, MASK)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
        got, reference.token_rewards(score, logp, ref_logp, MASK, kl_coef=0.05), rtol=1e-6, atol=1e-7
    )


def test_token_rewards_pay_the_score_once_on_the_last_token():
    score = np.array([1.0, 0.1, 1.0, 0.0, 0.1], np.float32)
    zeros = np.zeros(MASK.shape, np.float32)
    got = np.asarray(ppo.token_rewards(score, zeros, zeros, MASK, kl_coef=0.05))
    for row, length, value in zip(got, LENGTHS, score, strict=True):
        expected = np.zeros(6, np.float32)
        expected[length - 1 : length] = value  # nothing for the empty row
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_gae_matches_the_oracle(gamma, lam, fill):
    rng = np.random.default_rng(1)
    rewards, values = draw(rng, 0, 1, fill), draw(rng, 0.5, 1, fill)
    adv, returns = jax.jit(functools.partial(advantages.gae, gamma=gamma, lam=lam))(rewards, values, MASK)
    expected = reference.gae(rewards, values, MASK, gamma=gamma, lam=lam)
    assert adv.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(adv, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, expected[1], rtol=1e-5, atol=1e-6)


def test_gae_by_hand_the_value_after_the_end_is_zero():
    # gamma 1, lambda .5, one response of two tokens: delta_1 = 1 - .6 = .4, delta_0 = 0 + .6 - .2 = .4, A_0 = .4 + .5 * .4
    adv, returns = advantages.gae(
        jnp.array([[0.0, 1.0, 9.0]]), jnp.array([[0.2, 0.6, 9.0]]), jnp.array([[True, True, False]]), gamma=1.0, lam=0.5
    )
    np.testing.assert_allclose(adv, [[0.6, 0.4, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[0.8, 1.0, 0.0]], rtol=1e-6)


def test_gae_with_lambda_one_returns_the_discounted_sum_of_rewards_whatever_the_values():
    rng = np.random.default_rng(2)
    rewards, values = draw(rng, 0, 1, 0.0), draw(rng, 3, 5, 0.0)
    _, returns = advantages.gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    to_go = np.where(MASK, np.cumsum(rewards[:, ::-1].astype(np.float64), axis=1)[:, ::-1], 0.0)
    np.testing.assert_allclose(returns, to_go, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ SFT


@pytest.mark.parametrize("reduce", ["token", "sequence"])
@pytest.mark.parametrize("fill", JUNK)
def test_sft_loss_and_gradient_match_the_oracle(reduce, fill):
    logp = draw(np.random.default_rng(3), -2, 1, fill)
    (loss, metrics), grad = jax.jit(jax.value_and_grad(functools.partial(sft.sft_loss, reduce=reduce), has_aux=True))(
        logp, MASK
    )
    np.testing.assert_allclose(loss, reference.sft_loss(logp, MASK, reduce=reduce), rtol=1e-6)
    assert metrics["sft/loss"] == loss
    np.testing.assert_allclose(
        grad, reference.slope(lambda x: reference.sft_loss(x, MASK, reduce=reduce), logp, MASK), rtol=1e-5, atol=1e-8
    )


# ------------------------------------------------------------------ PPO


@pytest.mark.parametrize("reduce", ["sequence", "token"])
@pytest.mark.parametrize("fill", JUNK)
def test_ppo_loss_matches_the_oracle(reduce, fill):
    logp, values, batch = ppo_inputs(4, fill)
    loss, metrics = jitted_ppo(reduce)(logp, values, batch)
    total, policy, value, outside = reference.ppo_loss(logp, values, batch, **SETTINGS, reduce=reduce)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/loss"], total, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/policy_loss"], policy, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/value_loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/clip_fraction"], outside, rtol=1e-5)
    assert 0.1 < outside < 0.9  # both sides of the clip were tried
    assert all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize("reduce", ["sequence", "token"])
@pytest.mark.parametrize("fill", JUNK)
def test_ppo_gradients_match_finite_differences_and_are_zero_at_the_padding(reduce, fill):
    logp, values, batch = ppo_inputs(5, fill)
    grads, _ = jax.jit(
        jax.grad(functools.partial(ppo.ppo_loss, **SETTINGS, reduce=reduce), argnums=(0, 1), has_aux=True)
    )(logp, values, batch)

    def loss(logp, values):
        return reference.ppo_loss(logp, values, batch, **SETTINGS, reduce=reduce)[0]

    np.testing.assert_allclose(grads[0], reference.slope(lambda x: loss(x, values), logp, MASK), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], reference.slope(lambda x: loss(logp, x), values, MASK), rtol=1e-4, atol=1e-6)
    assert (np.asarray(grads[0])[~MASK] == 0).all() and (np.asarray(grads[1])[~MASK] == 0).all()


@pytest.mark.parametrize("reduce", ["sequence", "token"])
def test_weights_multiply_the_policy_loss_of_each_token(reduce):
    rng = np.random.default_rng(8)
    logp, values, batch = ppo_inputs(4, np.nan)
    q = draw(rng, -2, 1, np.nan)
    weights = jax.jit(functools.partial(ppo.importance, cap=1.5))(batch.old_logp, q, MASK)
    expected = np.minimum(np.exp(np.where(MASK, batch.old_logp - q, 0.0).astype(np.float64)), 1.5)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert (expected[MASK] == 1.5).any() and (expected[MASK] < 1.0).any()
    batch = batch.replace(weights=np.where(MASK, weights, np.nan))
    loss, metrics = jitted_ppo(reduce)(logp, values, batch)
    total, policy, value, _ = reference.ppo_loss(logp, values, batch, **SETTINGS, reduce=reduce)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/policy_loss"], policy, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/value_loss"], value, rtol=1e-5)


def test_padding_that_differs_from_array_to_array_is_ignored():
    clean = jitted_ppo("sequence")(*ppo_inputs(6, 0.0))
    logp, values, batch = ppo_inputs(6, 0.0)
    dirty = batch.replace(
        old_logp=np.where(MASK, batch.old_logp, -3e38).astype(np.float32),
        adv=np.where(MASK, batch.adv, np.nan).astype(np.float32),
        returns=np.where(MASK, batch.returns, np.inf).astype(np.float32),
    )
    got = jitted_ppo("sequence")(
        np.where(MASK, logp, 3e38).astype(np.float32), np.where(MASK, values, -np.inf).astype(np.float32), dirty
    )
    tiny.assert_trees_equal(clean, got)


def test_first_ratio_is_one_and_the_policy_loss_is_then_minus_the_mean_advantage():
    _, values, batch = ppo_inputs(7, np.nan)
    _, metrics = jitted_ppo("sequence")(batch.old_logp, values, batch)
    assert metrics["ppo/ratio_error"] == 0.0 and metrics["ppo/clip_fraction"] == 0.0 and metrics["ppo/approx_kl"] == 0.0
    np.testing.assert_allclose(metrics["ppo/policy_loss"], -reference.reduce(batch.adv, MASK, "sequence"), rtol=1e-5)


@pytest.mark.parametrize(
    "adv, log_ratio, moves",
    [
        (1.0, 0.5, False),
        (1.0, -0.5, True),
        (-1.0, 0.5, True),
        (-1.0, -0.5, False),
        (1.0, 0.1, True),
        (-1.0, -0.1, True),
    ],
)
def test_clip_stops_the_gradient_only_where_the_ratio_has_gone_far_enough(adv, log_ratio, moves):
    one = jnp.ones((1, 1))
    batch = tiny.ppo_batch(np.random.default_rng(0), [3], [1], response_size=1).replace(old_logp=-one, adv=adv * one)
    grad = jax.grad(lambda logp: ppo.ppo_loss(logp, one, batch, **SETTINGS)[0])(-one + log_ratio)
    expected = -adv * np.exp(log_ratio) if moves else 0.0
    np.testing.assert_allclose(grad, [[expected]], rtol=1e-5)


# Old value 0, range 0.2: the value 1.0 is clipped to 0.2, and whichever of the two is further from the return counts.
@pytest.mark.parametrize(
    "value, returns, loss, grad",
    [
        (1.0, 2.0, 0.5 * 1.8**2, 0.0),
        (1.0, 1.05, 0.5 * 0.85**2, 0.0),
        (1.0, 0.0, 0.5, 1.0),
        (-1.0, 0.5, 0.5 * 1.5**2, -1.5),
        (0.1, 2.0, 0.5 * 1.9**2, -1.9),
    ],
)
def test_value_clip_takes_the_larger_error(value, returns, loss, grad):
    one = jnp.ones((1, 1))
    batch = tiny.ppo_batch(np.random.default_rng(0), [3], [1], response_size=1).replace(
        old_values=0.0 * one, returns=returns * one, adv=0.0 * one, old_logp=-one
    )
    got = jax.value_and_grad(lambda v: ppo.ppo_loss(-one, v, batch, clip=0.2, value_clip=0.2, value_coef=1.0)[0])(
        value * one
    )
    np.testing.assert_allclose(got[0], loss, rtol=1e-6)
    np.testing.assert_allclose(got[1], [[grad]], rtol=1e-5)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one():
    returns = draw(np.random.default_rng(8), 1, 2, np.nan)
    np.testing.assert_allclose(ppo.explained_variance(returns, returns, MASK), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        ppo.explained_variance(np.full(MASK.shape, 3.0, np.float32), returns, MASK), 0.0, atol=1e-5
    )
