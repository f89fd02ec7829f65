"""Rewards, advantages and losses against float64 loops: jitted, ragged, with NaN, inf and overflow in all padding."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import masked
from reft_jax.advantages import gae, owned
from reft_jax.config import choices, records
from reft_jax.errors import InputError
from reft_jax.losses import advantages, kl, nll, objective, ppo
from reft_jax.losses import policy as policy_loss
from reft_jax.losses import value as value_loss
from reft_jax.losses.kl import KL
from reft_jax.stages import reft, reranker, self_train, sft
from reft_jax.types import Outputs, Rollout, Sample
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
    adv, returns = jax.jit(functools.partial(gae.gae, gamma=gamma, lam=lam))(rewards, values, MASK)
    expected = reference.gae(rewards, values, MASK, gamma=gamma, lam=lam)
    assert adv.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(adv, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, expected[1], rtol=1e-5, atol=1e-6)


def test_gae_by_hand_the_value_after_the_end_is_zero():
    # gamma 1, lambda .5, one response of two tokens: delta_1 = 1 - .6 = .4, delta_0 = 0 + .6 - .2 = .4, A_0 = .4 + .5 * .4
    adv, returns = gae.gae(
        jnp.array([[0.0, 1.0, 9.0]]), jnp.array([[0.2, 0.6, 9.0]]), jnp.array([[True, True, False]]), gamma=1.0, lam=0.5
    )
    np.testing.assert_allclose(adv, [[0.6, 0.4, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[0.8, 1.0, 0.0]], rtol=1e-6)


def test_gae_with_lambda_one_returns_the_discounted_sum_of_rewards_whatever_the_values():
    rng = np.random.default_rng(2)
    rewards, values = draw(rng, 0, 1, 0.0), draw(rng, 3, 5, 0.0)
    _, returns = gae.gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    to_go = np.where(MASK, np.cumsum(rewards[:, ::-1].astype(np.float64), axis=1)[:, ::-1], 0.0)
    np.testing.assert_allclose(returns, to_go, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ SFT


@pytest.mark.parametrize("reduce", ["token", "sequence"])
@pytest.mark.parametrize("fill", JUNK)
def test_sft_loss_and_gradient_match_the_oracle(reduce, fill):
    logp = draw(np.random.default_rng(3), -2, 1, fill)

    def loss_of(logp):
        return nll.Loss()(Outputs(logp=logp), None, masked.Mean(MASK, reduce))

    (loss, metrics), grad = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(logp)
    np.testing.assert_allclose(loss, reference.sft_loss(logp, MASK, reduce=reduce), rtol=1e-6)
    assert metrics == {}
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
    weights = jax.jit(functools.partial(policy_loss.importance, cap=1.5))(batch.old_logp, q, MASK)
    expected = np.minimum(np.exp(np.where(MASK, batch.old_logp - q, 0.0).astype(np.float64)), 1.5)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert (expected[MASK] == 1.5).any() and (expected[MASK] < 1.0).any()
    batch = batch.put(weights=np.where(MASK, weights, np.nan))
    loss, metrics = jitted_ppo(reduce)(logp, values, batch)
    total, policy, value, _ = reference.ppo_loss(logp, values, batch, **SETTINGS, reduce=reduce)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/policy_loss"], policy, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/value_loss"], value, rtol=1e-5)


def test_padding_that_differs_from_array_to_array_is_ignored():
    clean = jitted_ppo("sequence")(*ppo_inputs(6, 0.0))
    logp, values, batch = ppo_inputs(6, 0.0)
    dirty = batch.put(
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
    batch = tiny.ppo_batch(np.random.default_rng(0), [3], [1], response_size=1).put(old_logp=-one, adv=adv * one)
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
    batch = tiny.ppo_batch(np.random.default_rng(0), [3], [1], response_size=1).put(
        old_values=0.0 * one, returns=returns * one, adv=0.0 * one, old_logp=-one
    )
    got = jax.value_and_grad(lambda v: ppo.ppo_loss(-one, v, batch, clip=0.2, value_clip=0.2, value_coef=1.0)[0])(
        value * one
    )
    np.testing.assert_allclose(got[0], loss, rtol=1e-6)
    np.testing.assert_allclose(got[1], [[grad]], rtol=1e-5)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one():
    returns = draw(np.random.default_rng(8), 1, 2, np.nan)
    np.testing.assert_allclose(gae.explained_variance(returns, returns, MASK), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        gae.explained_variance(np.full(MASK.shape, 3.0, np.float32), returns, MASK), 0.0, atol=1e-5
    )


# ------------------------------------------------------------------ the divergence from the reference


ESTIMATORS = ("k1", "k2", "k3", "unbiased")


def estimate(name, logp, ref_logp, old_logp):
    """One token's, of floats: d = log p_ref - log p."""
    d = ref_logp - logp
    k3 = math.exp(d) - d - 1
    return dict(k1=-d, k2=d**2 / 2, k3=k3, unbiased=math.exp(logp - old_logp) * k3)[name]


def estimates(name, logp, ref_logp, old_logp, weights=None):
    """`estimate` of every real token times its weight, float64, 0 elsewhere."""
    out = np.zeros(MASK.shape)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            one = estimate(name, float(logp[b][t]), float(ref_logp[b][t]), float(old_logp[b][t]))
            out[b, t] = one if weights is None else float(weights[b][t]) * one
    return out


def kl_inputs(seed, fill):
    """(logp, ref_logp, old_logp)."""
    rng = np.random.default_rng(seed)
    old_logp = draw(rng, -2, 1, fill)
    return (
        np.where(MASK, old_logp + rng.normal(0, 0.3, MASK.shape), fill).astype(np.float32),
        draw(rng, -2, 1, fill),
        old_logp,
    )


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("fill", JUNK)
def test_estimates_of_the_kl_and_their_gradients_match_the_oracle(name, fill):
    logp, ref_logp, old_logp = kl_inputs(9, fill)
    got = jax.jit(functools.partial(kl.estimate, estimator=name))(logp, ref_logp, MASK, old_logp=old_logp)
    assert got.shape == MASK.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, estimates(name, logp, ref_logp, old_logp), rtol=1e-5, atol=1e-6)
    grad = jax.jit(jax.grad(lambda x: kl.estimate(x, ref_logp, MASK, name, old_logp).sum()))(logp)
    slope = reference.slope(lambda x: estimates(name, x, ref_logp, old_logp).sum(), logp, MASK)
    np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-5)
    assert (np.asarray(grad)[~MASK] == 0).all()


def test_on_policy_the_mean_of_k1_and_of_k3_is_the_kl_and_only_unbiased_has_its_gradient():
    """Over five tokens, each weighted by its chance under the policy that sampled, which is the current one."""
    logits = np.array([0.3, -1.0, 0.8, 0.1, -0.4], np.float32)
    ref_logp = jax.nn.log_softmax(np.array([-0.2, 0.5, 0.4, -1.1, 0.9], np.float32))
    old_logp = jax.nn.log_softmax(logits)

    def exact(logits):
        logp = jax.nn.log_softmax(logits)
        return (jnp.exp(logp) * (logp - ref_logp)).sum()

    def expected(logits, name):
        tokens = jax.nn.log_softmax(logits)[:, None], ref_logp[:, None], np.ones((5, 1), bool)
        return (jnp.exp(old_logp) * kl.estimate(*tokens, name, old_logp[:, None])[:, 0]).sum()

    for name in ("k1", "k3", "unbiased"):
        np.testing.assert_allclose(expected(logits, name), exact(logits), rtol=1e-5)
    of_kl = jax.grad(exact)(logits)
    np.testing.assert_allclose(jax.grad(expected)(logits, "unbiased"), of_kl, atol=1e-6)
    np.testing.assert_allclose(jax.grad(expected)(logits, "k2"), of_kl, atol=1e-6)
    np.testing.assert_allclose(jax.grad(expected)(logits, "k1"), 0.0, atol=1e-6)  # why it is refused
    of_reverse = jax.grad(lambda x: (jnp.exp(ref_logp) * (ref_logp - jax.nn.log_softmax(x))).sum())(logits)
    np.testing.assert_allclose(jax.grad(expected)(logits, "k3"), of_reverse, atol=1e-6)
    assert np.abs(of_reverse - of_kl).max() > 1e-2


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduce", ["sequence", "token", "constant"])
@pytest.mark.parametrize("name", ESTIMATORS[1:])
def test_the_kl_loss_is_the_mean_of_its_weighted_estimates(name, reduce, weighted):
    logp, ref_logp, old_logp = kl_inputs(10, np.nan)
    weights = np.random.default_rng(11).uniform(0.2, 2, MASK.shape)
    weights = np.where(MASK, weights, np.nan).astype(np.float32) if weighted else None
    batch = tiny.ppo_batch(np.random.default_rng(0), [3] * len(LENGTHS), LENGTHS, response_size=6)
    batch = batch.put(ref_logp=ref_logp, old_logp=old_logp, weights=weights)

    def loss_of(logp):
        return objective((kl.Loss(coef=0.3, estimator=name),), Outputs(logp=logp), batch, masked.Mean(MASK, reduce, 9))

    def reduced(x, how):
        return x.sum() / (len(LENGTHS) * 9) if how == "constant" else reference.reduce(x, MASK, how)

    def oracle(logp):
        return 0.3 * reduced(estimates(name, logp, ref_logp, old_logp, weights), reduce)

    (loss, metrics), grad = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(logp)
    np.testing.assert_allclose(loss, oracle(logp), rtol=1e-5)
    share = reduced(estimates(name, logp, ref_logp, old_logp), "sequence" if reduce == "constant" else reduce)
    assert metrics == {"ppo/kl_loss": pytest.approx(share, rel=1e-5)}
    np.testing.assert_allclose(grad, reference.slope(oracle, logp, MASK), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"in": "loss", "estimator": "k1"}, ["kl.estimator: got 'k1'", "legal there are unbiased, k2, k3"]),
        ({"in": "los"}, ["kl.in: got 'los'", "did you mean 'loss'", "reward, loss, off"]),
        ({"coef": -1.0}, ["kl.coef: got -1.0", ">= 0"]),
        ({"estimator": "k4"}, ["kl.estimator: got 'k4'", "legal are unbiased, k1, k2, k3"]),
        ({"estimator": "auto"}, ["kl.estimator: got 'auto'", "it is now 'unbiased'"]),
    ],
)
def test_a_kl_that_cannot_be_is_refused(settings, parts):
    with pytest.raises(InputError) as caught:
        records.build(KL, settings, "config.stages.reft.advantage.kl")
    for part in parts:
        assert part in str(caught.value)


def test_the_kl_loss_itself_has_no_k1_either():
    with pytest.raises(InputError, match="losses.kl.estimator: got 'k1'; .*legal are unbiased, k2, k3"):
        records.build(kl.Loss, dict(estimator="k1"), "config.stages.reft.losses.kl")


def test_a_run_says_that_k3_in_the_loss_pulls_elsewhere():
    says = {
        where: {name: bool(KL(where, 0.1, name).note) for name in ESTIMATORS} for where in ("reward", "loss", "off")
    }
    assert says["loss"] == {name: name == "k3" for name in ESTIMATORS}
    assert not any(says["reward"].values()) and not any(says["off"].values()) and not KL("loss", 0.0, "k3").note


def test_an_advantage_brings_its_critic_s_loss_and_that_of_a_kl_in_the_loss():
    def brought(use, **tree):
        return owned(records.build(choices.load("advantages", use), tree, use))

    critic = value_loss.Loss(coef=2.0, clip=0.3)
    assert brought("gae", critic=dict(coef=2.0, clip=0.3)) == (critic,)
    both = brought("gae", critic=dict(coef=2.0, clip=0.3), kl={"in": "loss", "coef": 0.3})
    assert both == (critic, kl.Loss(coef=0.3, estimator="unbiased"))
    for name in ("unbiased", "k2", "k3"):
        in_loss = {"in": "loss", "coef": 0.3, "estimator": name}
        assert brought("grpo", kl=in_loss) == (kl.Loss(coef=0.3, estimator=name),)
    assert brought("rloo") == brought("rloo", kl={"in": "off"}) == brought("grpo", kl={"coef": 0.0}) == ()


# ------------------------------------------------------------------ what an advantage makes of a rollout


SCORES = np.array([1.0, 0.1, 0.0, 0.1, 1.0, 0.0], np.float32)
SIX = tiny.lengths_mask([5, 1, 2, 6, 3, 4], 6, left=False)  # two or three responses to a question


def rollout_of(fill, *, scores=SCORES, group_size=2):
    rng = np.random.default_rng(12)
    logp, ref_logp, values, entropy = (
        np.where(SIX, rng.normal(-2, 1, SIX.shape), fill).astype(np.float32) for _ in range(4)
    )
    return Rollout(None, Sample(None, SIX, logp), logp, ref_logp, values, entropy, scores, group_size)


def paid(rollout, coef, name):
    """r_t = the token's score - coef KL_t by the estimator, float64; a whole response's is paid at its last token."""
    out = np.zeros(SIX.shape)
    for b, length in enumerate(SIX.sum(1)):
        for t in range(length):
            logp, ref_logp = float(rollout.logp[b][t]), float(rollout.ref_logp[b][t])
            if rollout.scores.ndim == 2:
                out[b, t] = float(rollout.scores[b][t])
            elif t == length - 1:
                out[b, t] = float(rollout.scores[b])
            out[b, t] -= coef * estimate(name, logp, ref_logp, logp)
    return out


def of_group(use, scores, i, k):
    """One response's advantage, from the papers' equations; float64."""
    group = [float(s) for s in scores[i - i % k : i - i % k + k]]
    mean = sum(group) / k
    if use == "grpo":
        deviation = math.sqrt(sum((s - mean) ** 2 for s in group) / k)
        return (scores[i] - mean) / deviation if deviation else 0.0
    return scores[i] - (mean if use == "dr_grpo" else (sum(group) - scores[i]) / (k - 1))


def advantage_of(use, **tree):
    return records.build(choices.load("advantages", use), tree, f"config.stages.reft.advantage.{use}")


# (settings of the KL, the coefficient and the estimator that a token's reward then has)
PLACES = [
    ({"in": "reward", "coef": 0.3}, 0.3, "k1"),
    *(({"in": "reward", "coef": 0.3, "estimator": name}, 0.3, name) for name in ESTIMATORS[:3]),
    ({"in": "reward", "coef": 0.3, "estimator": "unbiased"}, 0.3, "k1"),
    ({"in": "loss", "coef": 0.3}, 0.0, "k1"),
    ({"in": "loss", "coef": 0.3, "estimator": "k3"}, 0.0, "k1"),
    ({"in": "off", "coef": 0.3}, 0.0, "k1"),
]


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("tokens", [False, True], ids=["responses", "tokens"])
@pytest.mark.parametrize("where, coef, name", PLACES)
def test_gae_of_a_rollout_matches_the_loops(where, coef, name, tokens, whiten):
    scores = np.random.default_rng(13).normal(size=SIX.shape).astype(np.float32) if tokens else SCORES
    rollout = rollout_of(np.nan, scores=np.where(SIX, scores, np.nan).astype(np.float32) if tokens else scores)
    call = advantage_of("gae", gamma=0.9, lam=0.8, whiten=whiten, kl=where)
    adv, returns, metrics = jax.jit(lambda rollout: call(rollout))(rollout)
    rewards = paid(rollout, coef, name)
    expected, targets = reference.gae(rewards, rollout.values, SIX, gamma=0.9, lam=0.8)
    np.testing.assert_allclose(adv, reference.whiten(expected, SIX) if whiten else expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, targets, rtol=1e-4, atol=1e-5)
    told = {
        "ppo/adv_std": expected[SIX].std(),
        "ppo/explained_variance": 1 - (targets - rollout.values)[SIX].var() / targets[SIX].var(),
        "value/mean": rollout.values[SIX].mean(),
    } | ({"reward/with_kl": rewards.sum(1).mean()} if where["in"] == "reward" else {})
    assert metrics == {key: pytest.approx(x, rel=1e-4, abs=1e-5) for key, x in told.items()}


@pytest.mark.parametrize("tokens", [False, True], ids=["responses", "tokens"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("where, coef, name", PLACES)
@pytest.mark.parametrize("use", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_advantages_without_a_critic_match_the_loops(use, where, coef, name, k, tokens):
    if use == "grpo" and where["in"] == "reward":
        with pytest.raises(InputError, match="kl.in: got 'reward'; GRPO divides .*legal are loss, off"):
            advantage_of(use, kl=where)
        return
    scores = np.random.default_rng(14).normal(size=SIX.shape).astype(np.float32) if tokens else SCORES
    rollout = rollout_of(
        np.nan, scores=np.where(SIX, scores, np.nan).astype(np.float32) if tokens else scores, group_size=k
    )
    rollout = rollout.replace(values=None)
    call = advantage_of(use, kl=where)
    adv, returns, metrics = jax.jit(lambda rollout: call(rollout))(rollout)
    rewards = paid(rollout, coef, name)
    if use == "reinforce_pp":
        to_go = np.array([[rewards[b, t:].sum() for t in range(6)] for b in range(6)])
        expected = reference.whiten(to_go, SIX)
    else:
        whole = [of_group(use, rewards.sum(1), i, k) for i in range(6)]
        expected = np.where(SIX, np.array(whole)[:, None], 0.0)
    np.testing.assert_allclose(adv, expected, rtol=1e-4, atol=2e-5)
    assert returns is None and (np.asarray(adv)[~SIX] == 0).all()
    told = {"ppo/adv_std": expected[SIX].std()}
    if where["in"] == "reward":
        told["reward/with_kl"] = rewards.sum(1).mean()
    if use != "reinforce_pp":
        told["reward/equal_groups"] = 0.0
    assert metrics == {key: pytest.approx(x, rel=1e-4, abs=1e-5) for key, x in told.items()}


def test_groups_of_equal_scores_are_counted_whether_tokens_or_responses_are_paid():
    at_the_end = np.where(np.asarray(masked.last(SIX)), np.float32([1, 1, 0, 0.1, 0, 0])[:, None], np.float32(0))
    for scores in (np.float32([1, 1, 0, 0.1, 0, 0]), at_the_end):
        _, _, metrics = advantage_of("dr_grpo")(rollout_of(0.0, scores=scores))
        np.testing.assert_allclose(metrics["reward/equal_groups"], 2 / 3, rtol=1e-6)


def test_scores_of_tokens_are_paid_where_they_stand_and_nowhere_else():
    rng = np.random.default_rng(15)
    scores, logp, ref_logp = (draw(rng, 0, 1, np.nan) for _ in range(3))
    got = jax.jit(functools.partial(ppo.token_rewards, kl_coef=0.3))(scores, logp, ref_logp, MASK)
    expected = np.where(MASK, scores.astype(np.float64) - 0.3 * (logp.astype(np.float64) - ref_logp), 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert got.dtype == jnp.float32 and (np.asarray(got)[~MASK] == 0).all()
    whole = np.array([1.0, 0.1, 0.0, 0.1, 1.0], np.float32)
    alone = np.where(np.asarray(masked.last(MASK)), whole[:, None], np.float32(0))
    np.testing.assert_array_equal(
        *(ppo.token_rewards(paid, logp, ref_logp, MASK, kl_coef=0.3) for paid in (whole, alone))
    )
    with pytest.raises(TypeError, match="0.1 would become 0"):
        ppo.token_rewards(jnp.ones(MASK.shape, jnp.int32), logp, ref_logp, MASK, kl_coef=0.3)


def test_gae_is_still_imported_from_where_it_was():
    assert advantages.gae is gae.gae


# ------------------------------------------------------------------ objectives


def test_the_objective_is_the_sum_of_coef_times_loss():
    logp, values, batch = ppo_inputs(16, np.nan)
    terms = (policy_loss.Loss(coef=0.5), value_loss.Loss(coef=2.0), nll.Loss(coef=0.1))
    total, metrics = objective(terms, Outputs(logp=logp, values=values), batch, masked.Mean(MASK, "token"))
    settings = dict(clip=0.2, value_clip=0.2, value_coef=5.0, reduce="token")
    _, of_policy, of_value, outside = reference.ppo_loss(logp, values, batch, **settings)
    of_nll = reference.sft_loss(logp, MASK, reduce="token")
    np.testing.assert_allclose(total, 0.5 * of_policy + 2.0 * of_value + 0.1 * of_nll, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/policy_loss"], of_policy, rtol=1e-5)  # without its coefficient
    np.testing.assert_allclose(metrics["ppo/value_loss"], of_value, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/clip_fraction"], outside, rtol=1e-5)


STAGES = dict(sft=sft.Stage, reft=reft.Stage, self_train=self_train.Stage, reranker=reranker.Stage)
TREES = dict(
    sft={},
    reft=dict(ppo=dict(minibatch_size=4), num_samples=2),
    self_train=dict(mode="online", num_samples=1),
    reranker=dict(sample_from="warmup"),
)


def build(kind, **changes):
    base = dict(init_from="warmup", epochs=1.0, batch_size=4, optim=dict(lr=1e-3))
    return records.build(STAGES[kind], base | TREES[kind] | changes, "config.stages.here")


FREE = dict(advantage="grpo")
IMPORTANCE = dict(ppo=dict(minibatch_size=4, correction="importance"))


@pytest.mark.parametrize(
    "kind, changes, loss, said",
    [
        ("sft", {}, "policy", "it reads old_logp, adv, which a batch of texts does not give"),
        ("sft", {}, "value", "it needs values, which a batch of texts does not give (it gives logp, entropy, hidden"),
        ("sft", {}, "classifier", "it needs right_logits, which a batch of texts does not give"),
        ("reft", {}, "own_gold", "it reads own, which a reft stage with a critic does not give"),
        ("reft", IMPORTANCE, "own_gold", "it reads own, which a reft stage with a critic does not give"),
        ("reft", FREE, "value", "it needs values, which a reft stage without a critic does not give"),
        ("reft", {}, "classifier", "it needs right_logits, which a reft stage with a critic does not give"),
        (
            "self_train",
            {},
            "kl",
            "it reads ref_logp, old_logp, which a self_train stage of mode 'online' does not give",
        ),
        ("self_train", dict(mode="offline", sample_from="warmup"), "own_gold", "it reads own, which"),
        ("reranker", {}, "nll", "it needs logp, which a re-ranker does not give (it gives right_logits)"),
    ],
)
def test_a_loss_without_what_it_needs_is_refused(kind, changes, loss, said):
    with pytest.raises(InputError) as caught:
        build(kind, **changes, losses={"mine": {"use": loss}})
    assert f"config.stages.here.losses.mine: {said}" in str(caught.value)


@pytest.mark.parametrize(
    "kind, changes, loss",
    [
        ("sft", {}, "nll"),
        ("reft", {}, "value"),
        ("reft", FREE, "kl"),
        ("reft", FREE, "nll"),
        ("self_train", {}, "nll"),
        ("self_train", {}, "own_gold"),
        ("reranker", {}, "classifier"),
    ],
)
def test_a_loss_with_what_it_needs_builds(kind, changes, loss):
    [(label, record)] = build(kind, **changes, losses={"mine": {"use": loss}}).losses
    assert label == "mine" and type(record) is choices.load("losses", loss)


OWN = """
import dataclasses

@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    coef: float = 1.0
    needs, reads, together = (), (), "{together}"

    def __call__(self, out, batch, mean):
        return mean(-batch.mask.astype("float32")), {{}}
"""


@pytest.mark.parametrize("together, legal", [("batch", False), ("group", False), ("row", True), ("token", True)])
@pytest.mark.parametrize("kind", STAGES)
def test_a_batch_is_not_split_whose_rows_a_loss_needs_together(kind, together, legal, tmp_path):
    path = tmp_path / "my.py"
    path.write_text(OWN.format(together=together))
    losses, passes = {"mine": {"use": str(path)}}, dict(minibatch_size=4, accumulate=2)
    split = dict(ppo=passes) if kind == "reft" else dict(accumulate=2)
    build(kind, losses=losses)  # the whole batch is no split
    if legal:
        build(kind, losses=losses, **split)
        return
    key = "ppo.accumulate" if kind == "reft" else "accumulate"
    said = f"config.stages.here.{key}: got 2; losses.mine needs the rows of a {together} together: it must be 1"
    with pytest.raises(InputError) as caught:
        build(kind, losses=losses, **split)
    assert said in str(caught.value)
