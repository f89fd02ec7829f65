"""Advantages without a critic and the losses that go with them, against float64 loops written from the papers' equations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import recipe
from reft_jax.advantages import dr_grpo, groups, grpo, reinforce_pp, rloo
from reft_jax.config import choices
from reft_jax.errors import InputError
from reft_jax.losses import ppo
from reft_jax.types import Rollout, Sample
from tests import reference, tiny
from tests.test_config import demo_tree

METHODS = ("grpo", "dr_grpo", "rloo", "reinforce_pp")
OF_GROUPS = METHODS[:3]
GRPO_IN_REWARD = ("grpo", "reward")  # refused
ESTIMATES = dict(grpo=grpo.grpo, dr_grpo=dr_grpo.dr_grpo, rloo=rloo.rloo)
LENGTHS = [5, 1, 0, 6, 3, 2]
MASK = tiny.lengths_mask(LENGTHS, 6, left=False)
SETTINGS = dict(clip=0.2, value_clip=0.2, value_coef=5.0)
# Right, wrong and partly right answers; equal ones; with the KL inside; one outlier; and groups of equals beside each other.
SCORES = [[1, 0, 0.1, 1, 1, 0], [0.1] * 6, [0.93, -0.2, 0.1, 0.1, 1, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0]]


def numbers(rng, mean, std, fill):
    return np.where(MASK, rng.normal(mean, std, MASK.shape), fill).astype(np.float32)


# ------------------------------------------------------------------ the four estimates


def of_groups(name, scores, k):
    """The paper's equation, one response at a time."""
    out = []
    for i, score in enumerate(scores):
        first = i - i % k
        group = [float(s) for s in scores[first : first + k]]
        mean = sum(group) / k
        if name == "grpo":
            std = math.sqrt(sum((s - mean) ** 2 for s in group) / k)
            out.append((score - mean) / std if len(set(group)) > 1 else 0.0)
        elif name == "dr_grpo":
            out.append(score - mean)
        else:
            others = [s for j, s in enumerate(group) if first + j != i]
            out.append(score - sum(others) / (k - 1))
    return np.array(out)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("name", OF_GROUPS)
def test_advantages_of_groups_match_the_oracles(name, k, scores):
    scores = np.array(scores, np.float32)
    got = jax.jit(ESTIMATES[name], static_argnums=1)(scores, k)
    assert got.shape == (6,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, of_groups(name, scores.astype(np.float64), k), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("name", OF_GROUPS)
def test_equal_scores_teach_exactly_nothing(name, k):
    scores = np.repeat(np.float32([0.1, 1.0, 0.3, 1e-9]), k)  # 0.1 less the mean of seven 0.1 need not be 0 in float32
    np.testing.assert_array_equal(jax.jit(ESTIMATES[name], static_argnums=1)(scores, k), 0.0)
    assert groups.equal(scores, k).all() and not groups.equal(np.arange(4.0), 2).any()


def test_rows_of_a_question_stand_together():
    np.testing.assert_array_equal(dr_grpo.dr_grpo(jnp.array([1.0, 0, 5, 5, 2, 4]), 2), [0.5, -0.5, 0, 0, -1, 1])


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf, 3e38])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_reinforce_pp_matches_the_oracle(kl_coef, fill):
    rng = np.random.default_rng(0)
    scores, logp, ref_logp = np.float32(SCORES[2]), numbers(rng, -2, 1, fill), numbers(rng, -2, 1, fill)
    to_go = np.zeros(MASK.shape)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            kl = sum(float(logp[b, u]) - float(ref_logp[b, u]) for u in range(t, length))
            to_go[b, t] = scores[b] - kl_coef * kl

    @jax.jit
    def estimate(scores, logp, ref_logp):
        return reinforce_pp.to_go(ppo.token_rewards(scores, logp, ref_logp, MASK, kl_coef=kl_coef), MASK)

    got = estimate(scores, logp, ref_logp)
    np.testing.assert_allclose(got, reference.whiten(to_go, MASK), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ the loss


def loss_inputs(seed, fill=np.nan):
    """(logp, values, batch with ref_logp): ratios at both sides of both ends of the clip."""
    rng = np.random.default_rng(seed)
    batch = tiny.ppo_batch(rng, [3] * len(LENGTHS), LENGTHS, response_size=6, fill=fill)
    batch = batch.put(ref_logp=numbers(rng, -3, 1, fill))
    logp = np.where(MASK, batch.old_logp + rng.normal(0, 0.4, MASK.shape), fill).astype(np.float32)
    values = np.where(MASK, batch.old_values + rng.normal(0, 0.4, MASK.shape), fill).astype(np.float32)
    return logp, values, batch


def loss_oracle(logp, values, batch, *, reduce, clip_high=0.0, kl_coef=0.0, kl_estimator="k3", length=0):
    """(total, policy, value, outside, KL), token by token; values None = no critic. The KL is in the total alone."""
    policy, value, outside, kl, weighted = (np.zeros(MASK.shape) for _ in range(5))
    low, high = 1 - SETTINGS["clip"], 1 + (clip_high or SETTINGS["clip"])
    for b, size in enumerate(LENGTHS):
        for t in range(size):
            ratio, adv = math.exp(float(logp[b][t]) - float(batch.old_logp[b][t])), float(batch.adv[b][t])
            ahead = float(batch.ref_logp[b][t]) - float(logp[b][t])
            kl[b, t] = (math.exp(ahead) - ahead - 1) * (ratio if kl_estimator == "unbiased" else 1.0)
            weight = 1.0 if batch.weights is None else float(batch.weights[b][t])
            policy[b, t] = -weight * min(adv * ratio, adv * min(max(ratio, low), high))
            weighted[b, t] = weight * kl[b, t]
            outside[b, t] = not low <= ratio <= high
            if values is not None:
                new, old, target = (float(x[b][t]) for x in (values, batch.old_values, batch.returns))
                near = old + min(max(new - old, -SETTINGS["value_clip"]), SETTINGS["value_clip"])
                value[b, t] = 0.5 * max((new - target) ** 2, (near - target) ** 2)

    def reduced(x):
        return x.sum() / (len(LENGTHS) * (length or 6)) if reduce == "constant" else reference.reduce(x, MASK, reduce)

    shares = "sequence" if reduce == "constant" else reduce
    told = [reference.reduce(x, MASK, shares) for x in (outside, kl)]
    total = reduced(policy) + SETTINGS["value_coef"] * reduced(value) + kl_coef * reduced(weighted)
    return total, reduced(policy), reduced(value), *told


LOSSES = [
    dict(reduce="sequence", clip_high=0.5),
    dict(reduce="token", kl_coef=0.3, kl_estimator="k3"),
    dict(reduce="constant"),
    dict(reduce="constant", length=11, clip_high=0.28, kl_coef=0.1, kl_estimator="unbiased"),
]


@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize("fill", [0.0, np.nan, 3e38])
@pytest.mark.parametrize("settings", LOSSES)
def test_loss_and_gradient_match_the_oracle(settings, fill, critic):
    logp, values, batch = loss_inputs(1, fill)
    if not critic:
        values, batch = None, batch.put(old_values=None, returns=None)
    function = functools.partial(ppo.ppo_loss, **SETTINGS, **settings)
    (loss, metrics), grad = jax.jit(jax.value_and_grad(function, has_aux=True))(logp, values, batch)
    total, policy, value, outside, k3 = loss_oracle(logp, values, batch, **settings)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/policy_loss"], policy, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/clip_fraction"], outside, rtol=1e-5)
    assert 0.1 < outside < 0.9
    assert ("ppo/value_loss" in metrics, "ppo/kl_loss" in metrics) == (critic, "kl_coef" in settings)
    np.testing.assert_allclose(metrics.get("ppo/value_loss", 0.0), value, rtol=1e-5)
    np.testing.assert_allclose(metrics.get("ppo/kl_loss", k3), k3, rtol=1e-5)
    slope = reference.slope(lambda x: loss_oracle(x, values, batch, **settings)[0], logp, MASK)
    np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-6)


def test_importance_weights_multiply_the_kl_in_the_loss_too():
    logp, values, batch = loss_inputs(2)
    weights = np.where(MASK, np.random.default_rng(3).uniform(0.2, 2, MASK.shape), np.nan).astype(np.float32)
    settings, batch = dict(reduce="token", kl_coef=0.3, kl_estimator="k3"), batch.put(weights=weights)
    loss, _ = ppo.ppo_loss(logp, values, batch, **SETTINGS, **settings)
    np.testing.assert_allclose(loss, loss_oracle(logp, values, batch, **settings)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "adv, ratio, moves", [(1.0, 1.4, True), (1.0, 1.6, False), (-1.0, 1.6, True), (-1.0, 0.9, True), (-1.0, 0.7, False)]
)
def test_a_high_clip_lets_rewarded_tokens_go_further_and_punished_ones_not(adv, ratio, moves):
    one = jnp.ones((1, 1))
    batch = tiny.ppo_batch(np.random.default_rng(0), [3], [1], response_size=1).put(old_logp=-one, adv=adv * one)
    loss = functools.partial(ppo.ppo_loss, values=None, batch=batch, clip_high=0.5, **SETTINGS)
    grad = jax.grad(lambda logp: loss(logp)[0])(-one + math.log(ratio))
    np.testing.assert_allclose(grad, [[-adv * ratio if moves else 0.0]], rtol=1e-5)


def test_k3_is_zero_without_a_gap_and_positive_with_one():
    logp, _, batch = loss_inputs(4)
    k3 = [
        ppo.ppo_loss(logp, None, batch.put(ref_logp=other), **SETTINGS, kl_coef=1.0, kl_estimator="k3")[1][
            "ppo/kl_loss"
        ]
        for other in (logp, logp - 0.5, logp + 0.5)
    ]
    np.testing.assert_allclose(k3, [0.0, math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5], rtol=1e-5)


# ------------------------------------------------------------------ from a rollout


def rollout_of(*, critic):
    """Eight rows with made-up log-probs, two to a question, scored [1, 0], [1, 1], [0.1, 0], [0, 0]."""
    rng = np.random.default_rng(1)
    batch = tiny.ppo_batch(rng, [3, 6, 1, 5, 4, 2, 6, 3], [7, 2, 5, 1, 4, 7, 3, 6], fill=np.nan)
    logp, ref_logp = (
        np.where(batch.mask, rng.normal(-2, 0.5, batch.mask.shape), np.nan).astype(np.float32) for _ in range(2)
    )
    sample, score = Sample(batch.tokens, batch.mask, logp), np.array([1, 0, 1, 1, 0.1, 0, 0, 0], np.float32)
    return Rollout(batch.prompts, sample, logp, ref_logp, batch.old_values if critic else None, -logp, score, 2)


@pytest.mark.parametrize(
    "name, kl_in", [(n, where) for n in METHODS for where in ("reward", "loss", "off") if (n, where) != GRPO_IN_REWARD]
)
def test_advantages_are_of_scores_with_the_kl_inside_or_without(name, kl_in):
    rollout = rollout_of(critic=False)
    batch, metrics, _ = tiny.advantages(tiny.ppo(advantage=name, kl_in=kl_in, kl_coef=0.3))(rollout)
    mask, coef = np.asarray(batch.mask), 0.3 if kl_in == "reward" else 0.0
    rewards = reference.token_rewards(rollout.scores, rollout.logp, rollout.ref_logp, mask, kl_coef=coef)
    if name == "reinforce_pp":
        expected = reference.whiten(np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1], mask)
    else:
        expected = np.where(mask, of_groups(name, rewards.sum(1), 2)[:, None], 0.0)
    np.testing.assert_allclose(batch.adv, expected, rtol=1e-3, atol=1e-5)
    assert (np.asarray(batch.adv)[~mask] == 0).all()
    assert batch.old_values is None and batch.returns is None
    assert (batch.ref_logp is None) == (kl_in != "loss")
    assert ("reward/with_kl" in metrics) == (kl_in == "reward")
    assert not {"ppo/explained_variance", "value/mean"} & metrics.keys()
    assert metrics.get("reward/equal_groups") == (0.5 if name in OF_GROUPS else None)


def test_a_rollout_with_a_critic_has_the_metrics_that_it_had():
    _, metrics, _ = tiny.advantages(tiny.ppo())(rollout_of(critic=True))
    assert {"ppo/explained_variance", "value/mean", "reward/with_kl"} <= metrics.keys()
    assert "reward/equal_groups" not in metrics


# ------------------------------------------------------------------ settings that do not go together


@pytest.mark.parametrize(
    "num_samples, changes, parts",
    [
        (1, dict(critic=dict(trunk="none")), ["reft.advantage.critic.trunk", "'none'", "legal are shared, separate"]),
        (1, dict(critic=None), ["reft.advantage.critic", "got None", "trunk"]),
        (2, dict(use="grpo", critic=dict(trunk="shared")), ["reft.advantage.critic", "unknown key", "known are kl"]),
        (2, dict(use="reinforce_pp", critic=dict(trunk="separate")), ["reft.advantage.critic", "unknown", "are kl"]),
        *((1, dict(use=name), ["reft.num_samples", "got 1", "compares", ">= 2"]) for name in OF_GROUPS),
        (2, dict(use="grpa"), ["reft.advantage", "'grpa'", "did you mean 'grpo'"]),
        (2, dict(use="grpo", kl={"in": "reward"}), ["reft.advantage.kl.in", "'reward'", "legal are loss, off"]),
    ],
)
def test_what_does_not_go_together_is_one_clear_error(num_samples, changes, parts):
    tree = demo_tree()
    tree["stages"]["reft"] |= dict(num_samples=num_samples, advantage=changes)
    with pytest.raises(InputError) as caught:
        recipe.build(tree)
    for part in parts:
        assert part in str(caught.value)


def test_a_negative_high_clip_is_refused():
    tree = demo_tree()
    tree["stages"]["reft"]["losses"]["policy"]["clip_high"] = -0.1
    with pytest.raises(InputError, match=r"reft\.losses\.policy\.clip_high: got -0\.1; it must be >= 0"):
        recipe.build(tree)


@pytest.mark.parametrize("name", METHODS)
def test_what_goes_together_builds(name):
    tree = demo_tree()
    tree["stages"]["reft"]["num_samples"] = 1 if name == "reinforce_pp" else 2
    tree["stages"]["reft"] |= dict(advantage=dict(use=name, kl={"in": "loss"}), reduce="constant")
    stage = dict(recipe.build(tree).stages)["reft"]
    assert type(stage.advantage) is choices.load("advantages", name) and stage.critic is None


def test_settings_that_are_left_out_are_what_runs_were():
    tree = demo_tree()
    stage = tree["stages"]["reft"]
    advantage, policy = stage["advantage"], stage["losses"]["policy"]
    for group, key, usual in (
        (advantage["critic"], "trunk", "shared"),
        (advantage, "use", "gae"),
        (policy, "clip_high", 0.0),
        (advantage["kl"], "in", "reward"),
    ):
        assert group.pop(key) == usual
    assert recipe.build(tree) == recipe.build(demo_tree())
