"""The jitted steps: alignment, accumulation, donation, one trace per shape, layouts, the optimizer, and learning in a bandit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reft_jax import models
from reft_jax.config import settings as settings_lib
from reft_jax.losses import classifier, own_gold
from reft_jax.optim.schedules import linear
from reft_jax.run import jax_settings
from reft_jax.training import scoring
from reft_jax.training.state import init_state
from reft_jax.training.update import accumulated_grads, make_update, passes
from reft_jax.types import Batch, Prompts, Rollout, Sample
from tests import reference, tiny
from tests.processes import together

PROMPT_LENGTHS = [3, 6, 1, 5, 4, 2, 6, 3]
RESPONSE_LENGTHS = [7, 2, 5, 1, 4, 7, 3, 6]
TX = tiny.optim(0.01, max_grad_norm=1.0)(100)
DESCENT = optax.sgd(1.0)  # the change of the parameters is then the gradient
KEY = jax.random.key(11)


def make(where="one", tx=TX, **changes):
    """(model, params with a value head, a fresh state)."""
    model = tiny.model(where, **changes)
    params = tiny.params(model, value_head=True)
    return model, params, init_state(model, tx, params)


def sft_batch(empty_row=False):
    responses = [*RESPONSE_LENGTHS[:-1], 0 if empty_row else RESPONSE_LENGTHS[-1]]
    return tiny.sft_batch(np.random.default_rng(0), PROMPT_LENGTHS, responses)


def ppo_batch(**changes):
    return tiny.ppo_batch(np.random.default_rng(1), PROMPT_LENGTHS, RESPONSE_LENGTHS, **changes)


def on(model, batch):
    return model.layout.batch(batch)


sft_step = tiny.sft_step
ROWS = np.arange(8, dtype=np.int32)
SELF_TRAIN = dict(losses=(own_gold.Loss(own=0.5, gold=0.5),), name="self_train", dropout=0.1, reduce="token")


# ------------------------------------------------------------------ alignment


def test_response_logp_and_values_are_those_of_the_states_that_emit_the_tokens():
    model, params, _ = make()
    batch = sft_batch()
    logp, ref_logp, values, entropy = scoring.make_score(model)(params, params, batch.prompts, batch.tokens, batch.mask)
    for row in range(8):
        prompt = np.asarray(batch.prompts.tokens)[row, np.asarray(batch.prompts.mask)[row]]
        tokens = batch.tokens[row, : RESPONSE_LENGTHS[row]]
        rows = reference.llama_logits(model.arch, params, [*prompt, *tokens])
        for t, token in enumerate(tokens):
            expected = reference.log_softmax(rows[len(prompt) - 1 + t])
            np.testing.assert_allclose(logp[row, t], expected[token], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(entropy[row, t], -(np.exp(expected) * expected).sum(), rtol=1e-3, atol=1e-3)
    hidden = scoring.outputs(model, params, batch, needs=("hidden",)).hidden
    assert hidden.shape == (8, 7, 16)
    np.testing.assert_allclose(values, models.values(params, hidden), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logp, ref_logp)


def test_score_tells_policy_and_reference_apart():
    model, params, _ = make()
    other = tiny.params(model, seed=1)
    batch = sft_batch()
    score = scoring.make_score(model)
    logp, ref_logp, _, _ = score(params, other, batch.prompts, batch.tokens, batch.mask)
    swapped, _, _, _ = score(
        other | {"value_head": params["value_head"]}, other, batch.prompts, batch.tokens, batch.mask
    )
    np.testing.assert_allclose(np.asarray(ref_logp)[batch.mask], np.asarray(swapped)[batch.mask], rtol=1e-6, atol=1e-6)
    assert np.abs(np.asarray(logp - ref_logp)[batch.mask]).max() > 0.5


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_sft_loss_is_that_of_the_scored_tokens(reduce):
    model, params, state = make()
    batch = sft_batch()
    logp, _, _, _ = scoring.make_score(model)(params, params, batch.prompts, batch.tokens, batch.mask)
    _, metrics = sft_step(model, TX, params, reduce=reduce)(state, batch, key=KEY)
    np.testing.assert_allclose(metrics["sft/loss"], reference.sft_loss(logp, batch.mask, reduce=reduce), rtol=1e-5)


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_ppo_metrics_are_those_of_the_oracle(reduce):
    model, params, state = make()
    batch, stage = ppo_batch(fill=np.nan), tiny.ppo(reduce=reduce)
    logp, _, values, _ = scoring.make_score(model)(params, params, batch.prompts, batch.tokens, batch.mask)
    rows = np.array([5, 0, 3, 6], np.int32)
    some = jax.tree.map(lambda x: x[rows], batch)
    total, policy, value, outside = reference.ppo_loss(
        np.asarray(logp)[rows],
        np.asarray(values)[rows],
        some,
        **{name: tiny.PPO[name] for name in ("clip", "value_clip", "value_coef")},
        reduce=reduce,
    )
    state, metrics = tiny.ppo_step(model, TX, params, stage)(state, batch, rows)
    for key, expected in {"loss": total, "policy_loss": policy, "value_loss": value, "clip_fraction": outside}.items():
        np.testing.assert_allclose(metrics[f"ppo/{key}"], expected, rtol=1e-4, atol=1e-6)
    assert all(
        bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((state, metrics))
    )  # NaN in the padding stays there


# ------------------------------------------------------------------ accumulation


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """A loss with the shape of the real ones and nothing to compile: mean of w.x + (w.y)^2 over the mask."""

    reduce: str

    def __call__(self, w, batch, part, packing):
        from reft_jax import masked

        del part, packing
        loss = masked.reduce(
            jnp.einsum("brd,d->br", batch.x, w) + jnp.square(jnp.einsum("brd,d->br", batch.y, w)),
            batch.mask,
            self.reduce,
        )
        return loss, {"toy/loss": loss, "ppo/ratio_error": jnp.max(jnp.abs(batch.x))}


@pytest.mark.parametrize("reduce", ["token", "sequence"])
@pytest.mark.parametrize("num_parts", [2, 3, 4, 6, 12])
def test_accumulated_gradients_equal_the_full_batch_for_any_split(reduce, num_parts):
    import flax.struct

    class Batch(flax.struct.PyTreeNode):
        x: jax.Array
        y: jax.Array
        mask: jax.Array

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(12, 5, 3)).astype(np.float32) for _ in range(2))
    batch = Batch(
        x, y, tiny.lengths_mask([5, 0, 1, 2, 5, 3, 0, 0, 4, 1, 0, 0], 5, left=False)
    )  # some parts are padding altogether
    w = jnp.asarray(rng.normal(size=3), jnp.float32)
    split, whole = (
        jax.jit(functools.partial(accumulated_grads, Quadratic(reduce), num_parts=n, reduce=reduce))(w, batch)
        for n in (num_parts, 1)
    )
    tiny.assert_trees_close(split, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduce", [pytest.param("token", marks=pytest.mark.slow), "sequence"])
def test_sft_step_in_parts_equals_the_whole(reduce):
    model, params, _ = make()
    batch = sft_batch(empty_row=True)
    out = [
        sft_step(model, DESCENT, params, accumulate=n, reduce=reduce)(
            init_state(model, DESCENT, params), batch, key=KEY
        )
        for n in (1, 4)
    ]
    tiny.assert_trees_close(*out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduce", ["token", pytest.param("sequence", marks=pytest.mark.slow)])
def test_ppo_step_in_parts_equals_the_whole(reduce):
    model, params, _ = make()
    batch = ppo_batch()
    out = [
        tiny.ppo_step(model, DESCENT, params, tiny.ppo(accumulate=n, reduce=reduce))(
            init_state(model, DESCENT, params), batch, ROWS
        )
        for n in (1, 4)
    ]
    tiny.assert_trees_close(*out, rtol=1e-5, atol=1e-5)


def test_the_mean_of_minibatch_gradients_is_the_batch_gradient():
    model, params, _ = make()
    batch, step = ppo_batch(), tiny.ppo_step(model, DESCENT, params, tiny.ppo())

    def gradient(rows):
        state, _ = step(init_state(model, DESCENT, params), batch, np.array(rows, np.int32))
        return jax.tree.map(lambda before, after: before - after, params, state.params)

    parts = [gradient(rows) for rows in ([3, 0, 6, 1], [2, 7, 4, 5])]
    tiny.assert_trees_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), gradient(range(8)), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ dropout, and what PPO starts from


def test_dropout_in_sft_follows_the_key_and_is_off_at_rate_zero():
    model, params, _ = make()
    batch = sft_batch()

    def loss(step, key):
        return float(step(init_state(model, TX, params), batch, key=jax.random.key(key))[1]["sft/loss"])

    off, on_ = sft_step(model, TX, params), sft_step(model, TX, params, dropout=0.3)
    assert loss(off, 0) == loss(off, 1)
    assert loss(on_, 0) == loss(on_, 0) != loss(on_, 1)
    assert abs(loss(on_, 0) - loss(off, 0)) > 1e-3


def test_parts_of_a_batch_drop_different_things():
    model, params, _ = make()
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 8, axis=0), sft_batch())  # eight equal rows

    def grads(accumulate):
        step = sft_step(model, DESCENT, params, dropout=0.3, accumulate=accumulate)
        return step(init_state(model, DESCENT, params), batch, key=KEY)[0].params["norm"]["scale"]

    one_mask_for_all = sft_step(model, DESCENT, params, dropout=0.3)(
        init_state(model, DESCENT, params), jax.tree.map(lambda x: x[:1], batch), key=KEY
    )[0].params["norm"]["scale"]
    assert np.abs(np.asarray(grads(8) - one_mask_for_all)).max() > 1e-3


def start_of_ppo(model, params, stage, *, score=None, ref_params=None):
    """(rollout, ppo batch, metrics) of a sample of the policy itself."""
    prompts = on(model, tiny.random_prompts(np.random.default_rng(3), PROMPT_LENGTHS, 6))
    sampler = tiny.sampler(
        model, settings_lib.Sampling(1.0, 0, 1.0), max_new=7, eos_ids=(tiny.EOS, 2, 3), pad_id=tiny.PAD
    )
    sample = sampler(params, prompts, KEY)
    logp, ref_logp, values, entropy = scoring.make_score(model)(
        params, params if ref_params is None else ref_params, prompts, sample.tokens, sample.mask
    )
    score = np.array([1, 0.1, 0, 0.1, 1, 0, 0, 1], np.float32) if score is None else score
    rollout = Rollout(prompts, sample, logp, ref_logp, values, entropy, on(model, score))
    batch, metrics, kl = tiny.advantages(stage)(rollout)
    return rollout, batch, metrics, kl


def test_at_the_start_kl_is_zero_and_the_first_ratio_is_one():
    model, params, state = make(compute_dtype="float32")
    rollout, batch, metrics, kl = start_of_ppo(model, params, tiny.ppo())
    np.testing.assert_array_equal(kl, 0.0)
    assert metrics["kl/mean"] == 0.0 and metrics["sample/logp_gap_max"] < 2e-5
    np.testing.assert_allclose(metrics["reward/mean"], np.float32([1, 0.1, 0, 0.1, 1, 0, 0, 1]).mean(), rtol=1e-6)
    assert len(set(np.asarray(rollout.sample.mask).sum(1))) > 1
    step = tiny.ppo_step(model, TX, params, tiny.ppo())
    state, first = step(state, batch, ROWS)
    assert first["ppo/ratio_error"] < 1e-5 and first["ppo/clip_fraction"] == 0.0 and abs(first["ppo/approx_kl"]) < 1e-6
    _, second = step(state, batch, ROWS)
    assert second["ppo/ratio_error"] > 1e-3  # the policy has moved


def test_advantages_match_the_oracles():
    model, params, _ = make()
    settings = dict(kl_coef=0.3, gamma=0.9, lam=0.8)
    rollout, batch, metrics, kl = start_of_ppo(
        model, params, tiny.ppo(**settings), ref_params=tiny.params(model, seed=1)
    )
    mask = np.asarray(rollout.sample.mask)
    rewards = reference.token_rewards(rollout.scores, rollout.logp, rollout.ref_logp, mask, kl_coef=0.3)
    adv, returns = reference.gae(rewards, rollout.values, mask, gamma=0.9, lam=0.8)
    np.testing.assert_allclose(batch.adv, reference.whiten(adv, mask), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.returns, returns, rtol=1e-4, atol=1e-5)
    for name, expected in {
        "old_logp": rollout.logp,
        "old_values": rollout.values,
        "tokens": rollout.sample.tokens,
        "mask": mask,
    }.items():
        np.testing.assert_array_equal(getattr(batch, name), expected)
    gaps = [sum(float(rollout.logp[b, t] - rollout.ref_logp[b, t]) for t in range(mask[b].sum())) for b in range(8)]
    np.testing.assert_allclose(kl, gaps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["kl/mean"], np.mean(gaps), rtol=1e-4)
    np.testing.assert_allclose(metrics["reward/with_kl"], rewards.sum(1).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy/mean"], np.asarray(rollout.entropy)[mask].mean(), rtol=1e-5)
    plain, _, _ = tiny.advantages(tiny.ppo(**settings, whiten=False))(rollout)
    np.testing.assert_allclose(plain.adv, adv, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain.returns, returns, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ donation and compilation


def test_the_state_is_donated_and_the_callers_parameters_are_not():
    model, params, state = make()
    sft_step(model, TX, params)(state, sft_batch(), key=KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # the frozen reference of ReFT
    state = init_state(model, TX, params)
    tiny.ppo_step(model, TX, params, tiny.ppo())(state, ppo_batch(), ROWS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_steps_count_and_parameters_move():
    model, params, state = make()
    step = sft_step(model, TX, params)
    for expected in (1, 2, 3):
        state, (metrics, _) = passes(step, state, sft_batch(), [ROWS[:4], ROWS[4:]], [None, None])
        assert int(state.step) == expected
    assert state.step.dtype == jnp.int32
    for path, before in jax.tree_util.tree_leaves_with_path({k: v for k, v in params.items() if k != "value_head"}):
        after = functools.reduce(lambda node, key: node[key.key], path, state.params)
        assert not np.array_equal(before, after), path
    assert metrics["grad/norm"] > 0 and metrics["params/norm"] > 0


@pytest.mark.parametrize("where", ["one", pytest.param("mixed", marks=pytest.mark.slow)])
def test_each_function_is_traced_once(where, tmp_path):
    from reft_jax.run.checkpoint import Checkpoints

    model, params, state = make(where)
    stage = tiny.ppo(minibatch_size=4)
    sampler = tiny.sampler(model, settings_lib.Sampling(1.0, 0, 1.0), max_new=7, eos_ids=(tiny.EOS,), pad_id=tiny.PAD)
    score_fn, advantages, ppo_step = (
        scoring.make_score(model),
        tiny.advantages(stage),
        tiny.ppo_step(model, TX, params, stage),
    )
    checkpoints = Checkpoints(tmp_path)
    for step in range(2):
        key = jax.random.fold_in(KEY, step)
        prompts = on(model, tiny.random_prompts(np.random.default_rng(step), PROMPT_LENGTHS, 6))
        sample = sampler(state.params, prompts, key)
        logp, ref_logp, values, entropy = score_fn(state.params, params, prompts, sample.tokens, sample.mask)
        batch, _, _ = advantages(
            Rollout(prompts, sample, logp, ref_logp, values, entropy, on(model, np.full(8, 0.1, np.float32)))
        )
        for rows in jax.random.permutation(key, 8).reshape(-1, 4):
            state, _ = ppo_step(state, batch, rows)
        state = state.replace(step=state.step + 1)
        checkpoints.save(step, state, {"best_step": None})
        state, _ = checkpoints.restore(step, state)  # as a resumed run goes on
    checkpoints.close()
    sizes = {
        name: f._cache_size()
        for name, f in dict(sampler=sampler, score=score_fn, advantages=advantages, ppo=ppo_step).items()
    }
    assert sizes == dict.fromkeys(sizes, 1)


def test_sft_is_traced_once_for_each_length_bucket():
    model, params, state = make()
    step = sft_step(model, TX, params)
    for size in (7, 7, 9, 7, 9):
        batch = tiny.sft_batch(np.random.default_rng(size), PROMPT_LENGTHS, RESPONSE_LENGTHS, response_size=size)
        state, _ = step(state, on(model, batch), key=KEY)
    assert step._cache_size() == 2


# ------------------------------------------------------------------ layouts


@functools.cache
def everything(where, fetch=jax.device_get):
    """One of each step on a layout, as host arrays (which `fetch` makes of a tree)."""
    model, params, state = make(where, tx=TX)
    batch = on(model, sft_batch())
    trained, sft_metrics = sft_step(model, TX, params, dropout=0.1)(state, batch, key=KEY)
    scored = scoring.make_score(model)(params, tiny.params(model, seed=1), batch.prompts, batch.tokens, batch.mask)
    updated, ppo_metrics = tiny.ppo_step(model, TX, params, tiny.ppo(accumulate=1))(
        init_state(model, TX, params), on(model, ppo_batch()), ROWS
    )
    sampler = tiny.sampler(
        model, settings_lib.Sampling(1.0, 0, 1.0), max_new=5, eos_ids=(tiny.EOS,), pad_id=tiny.PAD, num_samples=2
    )
    sample = sampler(params, batch.prompts, KEY)
    assert sample.tokens.shape == (16, 5)
    own = on(model, ROWS < 5)
    ranked = params | {"classifier": models.init_classifier(model, KEY)}
    out = {
        "sft": (trained, sft_metrics),
        "score": scored,
        "ppo": (updated, ppo_metrics),
        "sample": sample,
        "self_train": make_update(model, TX, params, **SELF_TRAIN)(
            init_state(model, TX, params), Batch(batch.prompts, batch.tokens, batch.mask, dict(own=own)), key=KEY
        ),
        "reranker": make_update(model, TX, ranked, (classifier.Loss(),), name="reranker", reduce="sequence")(
            init_state(model, TX, ranked), Batch(None, batch.tokens, batch.mask, dict(right=own))
        ),
    }
    places = jax.tree.map(lambda x: x.sharding, (trained.params, trained.opt_state))
    return fetch(out), places


@pytest.mark.slow
@pytest.mark.parametrize("where", ["data", "fsdp", "mixed"])
@pytest.mark.parametrize("what", ["sft", "score", "ppo", "sample", "self_train", "reranker"])
def test_eight_devices_equal_one(where, what):
    one, many = everything("one")[0][what], everything(where)[0][what]
    if what == "sample":
        np.testing.assert_array_equal(one.tokens, many.tokens)
        np.testing.assert_array_equal(one.mask, many.mask)
    # AdamW's first update is lr * sign(g): where a gradient is nothing but rounding its sign is too, hence the absolute part for the states.
    tiny.assert_trees_close(one, many, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 4])
def test_processes_of_two_devices_equal_one(num, tmp_path):
    one, several = jax.tree.leaves(everything("one")[0]), together("steps", tmp_path, num=num)
    assert len(one) == len(several) > 50
    tiny.assert_trees_close(one, several, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["one", pytest.param("mixed", marks=pytest.mark.slow)])
def test_moments_in_the_host_s_memory_change_no_number(where):
    model, params, _ = make(where)
    away = dataclasses.replace(model, layout=dataclasses.replace(model.layout, moments="host"))
    batch, updated = on(model, ppo_batch()), []
    for which in (model, away):
        state, step = init_state(which, TX, params), tiny.ppo_step(which, TX, params, tiny.ppo())
        for _ in range(2):
            state, metrics = step(state, batch, ROWS)
        updated.append((state, metrics))
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(updated[1][0].opt_state) if leaf.ndim}
    assert kinds == {"pinned_host"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(updated[1][0].params)} == {"device"}
    tiny.assert_trees_close(*updated, rtol=1e-6, atol=1e-7)


def test_the_first_moment_has_the_dtype_asked_for():
    changed = dataclasses.replace(tiny.optim(), mu_dtype="bfloat16")
    model, params, _ = make()
    state = init_state(model, changed(10), params)
    by_name = jax.tree_util.tree_leaves_with_path(state.opt_state)
    kinds = {
        name: {leaf.dtype.name for path, leaf in by_name if f".{name}" in jax.tree_util.keystr(path)}
        for name in ("mu", "nu")
    }
    assert kinds == {"mu": {"bfloat16"}, "nu": {"float32"}}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["fsdp", "mixed"])
def test_moments_lie_where_their_parameters_do(where):
    params, opt_state = everything(where)[1]
    found = [s for s in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, dict)) if isinstance(s, dict)]
    assert len(found) == 2 and all(moment == params for moment in found)  # mu and nu
    assert not params["blocks"]["mlp"]["up"]["kernel"].is_fully_replicated


# ------------------------------------------------------------------ the optimizer


@pytest.mark.parametrize(
    "settings, table",
    [
        (dict(), {0: 1.0, 5: 1.0, 10: 1.0}),  # constant
        (dict(warmup=0.4, hold=0.4, final=0.0), {0: 0.0, 1: 0.25, 2: 0.5, 4: 1.0, 7: 0.5, 10: 0.0}),  # up, then down
        (dict(hold=0.5, final=0.0), {0: 1.0, 5: 1.0, 6: 0.8, 9: 0.2, 10: 0.0}),  # flat, then down
        (dict(warmup=0.2, hold=0.6, final=0.5), {0: 0.0, 1: 0.5, 2: 1.0, 5: 1.0, 6: 1.0, 8: 0.75, 10: 0.5, 12: 0.5}),
        (dict(final=0.1), {0: 1.0, 5: 0.55, 10: 0.1}),
    ],
)
def test_the_schedule_has_the_stated_shape(settings, table):
    rate = linear.Schedule(**settings)(0.02, 10)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(
            [rate(step) for step in table], [0.02 * share for share in table.values()], rtol=1e-5, atol=1e-9
        )


def one_update(settings, grads, params):
    tx = settings(10)
    with jax.numpy_dtype_promotion("standard"):
        return tx.update(grads, tx.init(params), params)[0]


def test_the_first_update_is_adamws_and_decay_pulls_on_matrices_only():
    params = {
        "embed": {"kernel": jnp.full((2, 3), 4.0)},
        "norm": {"scale": jnp.full(3, 4.0)},
        "value_head": {"kernel": jnp.full(3, 4.0), "bias": jnp.float32(4)},
        "blocks": {"norm": {"scale": jnp.full((2, 3), 4.0)}},
    }
    grads = jax.tree.map(lambda p: jnp.full(p.shape, -0.001), params)
    updates = one_update(tiny.optim(0.1, weight_decay=0.5), grads, params)
    plain = 0.1 * 0.001 / (0.001 + 1e-8)
    np.testing.assert_allclose(updates["embed"]["kernel"], plain - 0.1 * 0.5 * 4.0, rtol=1e-5)
    for group in (updates["norm"], updates["value_head"], updates["blocks"]):
        for leaf in jax.tree.leaves(group):
            np.testing.assert_allclose(leaf, plain, rtol=1e-4)


def test_gradients_are_clipped_to_their_global_norm():
    params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(1)}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"kernel": jnp.array([4.0])}}
    tx = tiny.optim(1.0, max_grad_norm=1.0)(10)
    with jax.numpy_dtype_promotion("standard"):
        _, state = tx.update(grads, tx.init(params), params)
        _, free = (other := tiny.optim(1.0, max_grad_norm=0.0)(10)).update(grads, other.init(params), params)
    moments = [np.asarray(leaf) for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.0]), rtol=1e-5)  # (1 - b1) g / 5
    moments = [np.asarray(leaf) for leaf in jax.tree.leaves(free) if leaf.shape == (2,)]
    np.testing.assert_allclose(moments[0], 0.1 * np.array([3.0, 0.0]), rtol=1e-5)


def test_the_reported_gradient_norm_is_the_unclipped_one():
    model, params, state = make()
    batch = sft_batch()
    descended, _ = sft_step(model, DESCENT, params)(init_state(model, DESCENT, params), batch, key=KEY)
    gradient = jax.tree.map(lambda before, after: np.asarray(before - after, np.float64), params, descended.params)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    _, metrics = sft_step(model, tiny.optim(max_grad_norm=1e-3)(10), params)(
        init_state(model, tiny.optim(max_grad_norm=1e-3)(10), params), batch, key=KEY
    )
    np.testing.assert_allclose(metrics["grad/norm"], norm, rtol=1e-4)


# ------------------------------------------------------------------ learning


def test_reft_without_text_raises_the_chance_of_the_rewarded_token():
    """A bandit: two tokens a response; paid 1 if token 7 is among them, 0.1 if token 8 is. Sampler, GAE, PPO, KL to the start."""
    model = tiny.model("one")
    stage = tiny.ppo(kl_coef=0.01, minibatch_size=16, value_coef=1.0)
    tx = tiny.optim(0.02)(100)
    params = tiny.params(model, value_head=True)
    state = init_state(model, tx, params)
    sampler = tiny.sampler(model, settings_lib.Sampling(1.0, 0, 1.0), max_new=2, eos_ids=(tiny.EOS,), pad_id=tiny.PAD)
    score_fn, advantages, ppo_step = (
        scoring.make_score(model),
        tiny.advantages(stage),
        tiny.ppo_step(model, tx, params, stage),
    )
    prompts = Prompts(np.full((32, 2), 5, np.int32), np.ones((32, 2), bool), np.arange(32, dtype=np.int32))
    accuracy = []
    for step in range(12):
        key = jax.random.fold_in(KEY, step)
        sample: Sample = sampler(state.params, prompts, key)
        tokens = np.where(sample.mask, sample.tokens, 0)
        score = np.where((tokens == 7).any(1), 1.0, np.where((tokens == 8).any(1), 0.1, 0.0)).astype(np.float32)
        logp, ref_logp, values, entropy = score_fn(state.params, params, prompts, sample.tokens, sample.mask)
        batch, metrics, _ = advantages(Rollout(prompts, sample, logp, ref_logp, values, entropy, jnp.asarray(score)))
        for epoch in range(stage.ppo.epochs):
            for rows in jax.random.permutation(jax.random.fold_in(key, epoch), 32).reshape(-1, 16):
                state, _ = ppo_step(state, batch, rows)
        accuracy.append((tokens == 7).any(1).mean())
    assert accuracy[0] < 0.3 and np.mean(accuracy[-3:]) > 0.6
    assert metrics["kl/mean"] > 0.1


def test_one_ppo_step_raises_the_rewarded_token_and_lowers_the_others():
    model, params, state = make()
    batch = ppo_batch()
    logp, _, values, _ = scoring.make_score(model)(params, params, batch.prompts, batch.tokens, batch.mask)
    signs = np.where(np.arange(8) % 2, -1.0, 1.0)[:, None] * np.ones((1, 7))
    batch = batch.put(old_logp=logp, old_values=values, returns=values, adv=signs.astype(np.float32))
    small = tiny.optim(1e-3)(10)
    state, _ = tiny.ppo_step(model, small, params, tiny.ppo(value_coef=0.0))(
        init_state(model, small, params), batch, ROWS
    )
    after, _, _, _ = scoring.make_score(model)(state.params, params, batch.prompts, batch.tokens, batch.mask)
    gain = np.where(batch.mask, np.asarray(after - logp), 0.0).sum(1) / np.asarray(batch.mask).sum(1)
    assert (gain * signs[:, 0]).mean() > 0 and gain[::2].mean() > gain[1::2].mean()


@pytest.mark.parametrize("dtype, there", [("float32", True), ("bfloat16", False)])
def test_a_float32_run_asks_for_float32_products(dtype, there):
    before = jax.config.jax_default_matmul_precision
    try:
        jax.config.update("jax_default_matmul_precision", None)  # an earlier test may have run in float32
        jax_settings.multiply_in(dtype)
        model = tiny.model("one", compute_dtype=dtype)
        tokens = jnp.ones((1, 4), jnp.int32)
        text = jax.jit(functools.partial(models.logits, model)).lower(tiny.params(model), tokens).as_text()
        assert "dot_general" in text and ("HIGHEST" in text) == there
    finally:
        jax.config.update("jax_default_matmul_precision", before)
