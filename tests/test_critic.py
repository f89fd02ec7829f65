"""A critic on the policy's trunk, of its own, or none: gradients, parts, packing, layouts, adapters, checkpoints, learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reft_jax import masked, models
from reft_jax.config import settings as settings_lib
from reft_jax.data import packing
from reft_jax.losses import ppo
from reft_jax.losses.value import Critic
from reft_jax.run import checkpoint
from reft_jax.training import scoring
from reft_jax.training.state import init_state
from reft_jax.training.update import accumulated_grads
from reft_jax.types import Prompts, Rollout
from tests import tiny

TX = tiny.optim(0.01)(100)
DESCENT = optax.sgd(1.0)  # the change of the parameters is then the gradient
ROWS = np.arange(8, dtype=np.int32)
PROMPT_LENGTHS, RESPONSE_LENGTHS = [3, 6, 1, 5, 4, 2, 1, 1], [7, 2, 5, 1, 2, 2, 3, 6]  # some share rows of 13


def make(critic, where="one", **changes):
    """(model, parameters with that critic)."""
    model = tiny.model(where, **changes)
    return model, models.with_critic(model, tiny.params(model), jax.random.key(3), critic_of(critic))


def critic_of(name, **changes):
    """The record of "shared" or "separate"; None for "none"."""
    return None if name == "none" else Critic(trunk=name, **changes)


def settings_of(critic, **changes):
    return tiny.ppo(**(dict(advantage="grpo", kl_in="loss") if critic == "none" else dict(critic=critic)) | changes)


def batch_of(critic="separate", **changes):
    rng = np.random.default_rng(1)
    batch = tiny.ppo_batch(rng, PROMPT_LENGTHS, RESPONSE_LENGTHS, fill=np.nan)
    batch = batch.put(ref_logp=np.where(batch.mask, rng.normal(-3, 1, batch.mask.shape), np.nan).astype(np.float32))
    none = ("old_values", "returns") if critic == "none" else ()
    columns = {name: value for name, value in batch.columns.items() if name not in none}
    return batch.replace(columns=columns).put(**changes)


def update(model, params, batch, settings, *, tx=DESCENT, packing=None, **more):
    """(change of each parameter, metrics) of one update on all rows; with DESCENT the change is minus the gradient."""
    step = tiny.ppo_step(model, tx, params, settings, **more)
    state, metrics = step(init_state(model, tx, params), model.layout.batch(batch), ROWS, packing=packing)
    return jax.tree.map(lambda after, before: np.asarray(after - before), state.params, params), metrics


def policy_of(params):
    return {name: node for name, node in params.items() if name != "critic"}


def largest(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


# ------------------------------------------------------------------ the step


@pytest.mark.parametrize(
    "critic, reduce",
    [
        ("separate", "token"),
        pytest.param("none", "constant", marks=pytest.mark.slow),
        *(pytest.param("separate", how, marks=pytest.mark.slow) for how in ("sequence", "constant")),
    ],
)
def test_an_update_in_parts_of_shared_rows_is_that_of_the_whole(critic, reduce):
    model, params = make(critic)
    batch, more = batch_of(critic), dict(reduce=reduce, kl_in="loss")
    whole = update(model, params, batch, settings_of(critic, **more), length=9)
    [together] = packing.pack(batch.prompts.mask, batch.mask, [ROWS], parts=2)
    assert len(together.source) < 8 and largest(whole[0]) > 1e-2
    parts = settings_of(critic, **more, accumulate=2)
    got = update(model, params, batch, parts, packing=together, length=9)
    tiny.assert_trees_close(got, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_parts", [2, 3, 4, 12])
def test_with_a_constant_divisor_parts_weigh_alike_whatever_is_in_them(num_parts):
    import flax.struct

    class Batch(flax.struct.PyTreeNode):
        x: jax.Array
        mask: jax.Array

    x = np.random.default_rng(0).normal(size=(12, 5, 3)).astype(np.float32)
    mask = tiny.lengths_mask([5, 0, 1, 2, 5, 3, 0, 0, 4, 1, 0, 0], 5, left=False)

    def loss_fn(w, batch, part, packing):
        loss = masked.reduce(jnp.square(jnp.einsum("brd,d->br", batch.x, w)), batch.mask, "constant", 9)
        return loss, {"toy/loss": loss}

    w = np.array([1.0, -2.0, 0.5], np.float32)
    grads, metrics = accumulated_grads(loss_fn, jnp.asarray(w), Batch(x, mask), num_parts, "constant")
    rows = x[mask].astype(np.float64)
    np.testing.assert_allclose(grads, 2 * (rows @ w) @ rows / (12 * 9), rtol=1e-5)
    np.testing.assert_allclose(metrics["toy/loss"], np.square(rows @ w).sum() / (12 * 9), rtol=1e-5)


def test_the_step_takes_the_loss_from_its_settings():
    """The constant divisor by the limit of a response, the high clip and the KL in the loss, from the config to the numbers."""
    model, params = make("none")
    batch = batch_of("none")
    logp, *_ = scoring.make_score(model)(params, params, batch.prompts, batch.tokens, batch.mask)
    batch = batch.put(old_logp=np.where(batch.mask, logp - np.float32(0.3), np.nan))
    settings = settings_of("none", reduce="constant", clip_high=0.5, kl_in="loss", kl_coef=0.3)
    _, metrics = update(model, params, batch, settings, length=20)
    loss = functools.partial(ppo.ppo_loss, logp, None, batch, clip=0.2, value_clip=0.2, value_coef=5.0)
    expected, told = loss(reduce="constant", clip_high=0.5, kl_coef=0.3, length=20)
    np.testing.assert_allclose(metrics["ppo/loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["ppo/kl_loss"], told["ppo/kl_loss"], rtol=1e-4)
    assert metrics["ppo/clip_fraction"] == 0.0 and "ppo/value_loss" not in metrics  # exp(0.3) is over 1.2


# ------------------------------------------------------------------ a critic of its own


def test_a_separate_critic_starts_with_the_values_of_a_shared_one():
    arch = dataclasses.replace(tiny.ARCH, tie_embeddings=False)
    model, params = make("separate", arch=arch)
    assert set(params["critic"]) == {"embed", "blocks", "norm", "value_head"}  # it emits no tokens
    batch = batch_of()
    given = tiny.params(model, seed=1), batch.prompts, batch.tokens, batch.mask
    [together] = packing.pack(batch.prompts.mask, batch.mask, [ROWS])
    shared = scoring.make_score(model)(make("shared", arch=arch)[1], *given)
    for more, most in ((None, 0), (together, 2)):
        for ours, theirs in zip(scoring.make_score(model, most=most)(params, *given, more), shared, strict=True):
            np.testing.assert_allclose(np.asarray(ours)[batch.mask], np.asarray(theirs)[batch.mask], atol=2e-5)


def test_the_value_loss_moves_the_critic_alone_and_the_policy_loss_the_policy():
    model, params = make("separate")
    nothing = np.zeros((8, 7), np.float32)
    values_alone, _ = update(model, params, batch_of(adv=nothing), settings_of("separate"))
    assert largest(values_alone["critic"]["blocks"]) > 1e-2 and largest(policy_of(values_alone)) == 0.0
    policy_alone, _ = update(model, params, batch_of(), settings_of("separate", value_coef=0.0))
    assert largest(policy_of(policy_alone)) > 1e-2 and largest(policy_alone["critic"]) == 0.0
    both, _ = update(model, params, batch_of(), settings_of("separate"))
    tiny.assert_trees_close(both, policy_of(policy_alone) | {"critic": values_alone["critic"]})


def test_a_separate_critic_learns_returns_that_its_trunk_has_to_tell_apart():
    model, params = make("separate")
    tokens = np.asarray(batch_of().tokens)
    batch = batch_of(returns=np.where(tokens % 2, 1.0, -1.0).astype(np.float32))
    step = tiny.ppo_step(model, TX, params, settings_of("separate", value_clip=10.0))
    state, losses = init_state(model, TX, params), []
    for _ in range(30):
        state, metrics = step(state, batch, ROWS)
        losses.append(float(metrics["ppo/value_loss"]))
    assert losses[-1] < losses[0] / 2, losses


def test_adapters_give_a_critic_adapters_of_its_own_over_the_same_base():
    lora = settings_lib.Lora(rank=3, alpha=6.0, targets=r"attention\.[qv]")
    model, base = dataclasses.replace(tiny.model(), lora=lora), tiny.params(tiny.model())
    adapters = models.init_adapters(model, jax.random.key(1))
    params = models.with_critic(model, adapters, jax.random.key(2), critic_of("separate"))
    assert jax.tree.structure(params["critic"]["blocks"]) == jax.tree.structure(adapters["blocks"])
    batch = batch_of()
    step = tiny.ppo_step(model, TX, params, settings_of("separate"), frozen=base)
    state, _ = step(init_state(model, TX, params), batch, ROWS)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params["critic"], params["critic"])
    assert moved["blocks"]["attention"]["q"]["lora_b"] > 1e-3 and moved["value_head"]["kernel"] > 1e-3
    values = scoring.outputs(model, models.join(base, state.params), batch, needs=("values",)).values
    alone = scoring.outputs(
        model, models.join(base, state.params["critic"]), batch, needs=("values",)
    ).values  # as if it were a policy
    np.testing.assert_allclose(np.asarray(values)[batch.mask], np.asarray(alone)[batch.mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["mixed"])
def test_a_critic_lies_where_the_mesh_wants_it_and_eight_devices_equal_one(where):
    out = []
    for place in ("one", where):
        model, params = make("separate", place)
        out.append(jax.device_get(update(model, params, batch_of(), settings_of("separate"))))
    tiny.assert_trees_close(*out, rtol=1e-5, atol=1e-5)
    state = init_state(model, TX, params)
    ours, theirs = (tree["blocks"]["mlp"]["up"]["kernel"].sharding for tree in (state.params, state.params["critic"]))
    assert ours == theirs and not ours.is_fully_replicated


def test_a_checkpoint_keeps_a_critic_apart_from_the_policy(tmp_path):
    model, params = make("separate")
    state = init_state(model, TX, params)
    state = state.replace(params=state.params | {"critic": jax.tree.map(lambda x: x + 1, state.params["critic"])})
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(3, state, {"best_step": None})
    _, back, _ = checkpoints.go_on(init_state(model, TX, params))
    checkpoints.close()
    tiny.assert_trees_equal(back, state)
    tiny.assert_trees_equal(checkpoint.load_params(tmp_path), policy_of(state.params))  # what later stages read


@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
def test_a_value_head_that_is_there_goes_on(critic):
    model = tiny.model()
    params = tiny.params(model, value_head=True)
    got = models.with_critic(model, params, jax.random.key(0), critic_of(critic, init="zeros", bias=False))
    head = got.get("critic", got).get("value_head")
    assert head is (None if critic == "none" else params["value_head"])
    assert ("value_head" in got) == (critic == "shared")


# ------------------------------------------------------------------ learning


BANDITS = {
    "grpo": dict(advantage="grpo", kl_in="loss", clip_high=0.28),
    "dr_grpo": dict(advantage="dr_grpo", kl_in="loss", reduce="constant"),
    "rloo": dict(advantage="rloo"),
    "reinforce_pp": dict(advantage="reinforce_pp", reduce="token"),
    "separate": dict(critic="separate"),
}


@pytest.mark.parametrize(
    "name", [n if n in ("grpo", "reinforce_pp") else pytest.param(n, marks=pytest.mark.slow) for n in BANDITS]
)
def test_every_method_raises_the_chance_of_the_rewarded_token(name):
    """The bandit of test_steps.py with four responses to each of eight questions."""
    stage = tiny.ppo(**dict(kl_coef=0.01, minibatch_size=16, value_coef=1.0) | BANDITS[name])
    model, params = make("none" if stage.critic is None else stage.critic.trunk)
    assert ("critic" in params) == (name == "separate") and "value_head" not in params
    tx = tiny.optim(0.02)(100)
    state = init_state(model, tx, params)
    whole = settings_lib.Sampling(1.0, 0, 1.0)
    sampler = tiny.sampler(model, whole, max_new=2, eos_ids=(tiny.EOS,), pad_id=tiny.PAD, num_samples=4)
    score_fn, advantages = scoring.make_score(model), tiny.advantages(stage)
    ppo_step = tiny.ppo_step(model, tx, params, stage, length=2)
    asked = Prompts(np.full((8, 2), 5, np.int32), np.ones((8, 2), bool), np.arange(8, dtype=np.int32))
    prompts, accuracy = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), asked), []
    for step in range(12):
        key = jax.random.fold_in(jax.random.key(11), step)
        sample = sampler(policy_of(state.params), asked, key)
        tokens = np.where(sample.mask, sample.tokens, 0)
        score = np.where((tokens == 7).any(1), 1.0, np.where((tokens == 8).any(1), 0.1, 0.0)).astype(np.float32)
        logp, ref_logp, values, entropy = score_fn(state.params, params, prompts, sample.tokens, sample.mask)
        batch, _, _ = advantages(Rollout(prompts, sample, logp, ref_logp, values, entropy, jnp.asarray(score), 4))
        for epoch in range(2):
            for rows in jax.random.permutation(jax.random.fold_in(key, epoch), 32).reshape(-1, 16):
                state, _ = ppo_step(state, batch, rows)
        accuracy.append((tokens == 7).any(1).mean())
    assert accuracy[0] < 0.3 and np.mean(accuracy[-3:]) > 0.6, accuracy
