"""The jitted steps: the only place that calls jax.jit on a training loop's work (the sampler's programs: sampling/).

Each `make_*` returns one function that is compiled once per shape (lengths come in buckets). States are donated; keys
are folded from (seed, step) by the caller; everything is placed by the model's layout.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from reft_jax import masked, models
from reft_jax.losses import objective
from reft_jax.losses.policy import importance
from reft_jax.types import Outputs, PPOBatch, Rollout, TrainState


def response_states(model, params, prompts, tokens, mask, *, rate=0.0, key=None):
    """[B, R, D]: the state that emits each response token. The one place where tokens and states are shifted by one.

    tokens i32[B, R] follow the left-padded prompts; mask bool[B, R].
    """
    everything = jnp.concatenate([prompts.tokens, tokens], axis=1)
    real = jnp.concatenate([prompts.mask, mask], axis=1)
    hidden, _ = models.forward(model, params, everything, models.positions_of(real), real, rate=rate, key=key)
    first = prompts.tokens.shape[1] - 1
    return hidden[:, first : first + tokens.shape[1]]


def token_outputs(model, params, prompts, tokens, mask, packing=None, *, temperature=1.0, rate=0.0, key=None, most=0):
    """(logp, entropy, values) f32[B, R] of the response tokens; values None without a critic. `packing` (data/packing.py): how
    these sequences share rows; what comes out is the same, and anything where mask is False. `most`: rows at a time, 0 = all."""

    def outputs(states, tokens):
        """`states`: parameters -> the states that emit the tokens."""
        hidden = states(params)
        logp, entropy = models.token_logp(model, params, hidden, tokens, temperature=temperature)
        if "critic" in params:
            critic = models.critic_params(params)
            return logp, entropy, models.values(critic, states(critic))
        return logp, entropy, models.values(params, hidden) if "value_head" in params else None

    def alone(prompts, tokens, mask):
        return outputs(lambda params: response_states(model, params, prompts, tokens, mask, rate=rate, key=key), tokens)

    def sharing(packed, position, segment):
        def states(params):
            return models.forward(model, params, packed, position, segment, rate=rate, key=key)[0]

        return outputs(states, jnp.roll(packed, -1, axis=1))

    multiple = model.layout.parts("batch") if model.layout else 1
    if packing is None:
        return in_slices(alone, (prompts, tokens, mask), most, multiple)
    constrain = model.layout.constrain
    everything = jnp.concatenate([prompts.tokens, tokens], axis=1).reshape(-1)
    packed = constrain(everything[packing.source], "batch", None)
    out = in_slices(sharing, (packed, packing.position, packing.segment), most, multiple)
    return jax.tree.map(lambda x: constrain(x.reshape(-1)[packing.place], "batch", None), out)


def outputs(model, params, *rows, **how) -> Outputs:
    """`token_outputs` as losses read them."""
    logp, entropy, values = token_outputs(model, params, *rows, **how)
    return Outputs(logp=logp, entropy=entropy, values=values)


def in_slices(function, rows, most: int, multiple: int):
    """function(*rows) for a tree of arrays [B, ...] whose rows do not matter to each other, at most `most` of them at a time (0 = all),
    and a multiple of `multiple`."""
    num = jax.tree.leaves(rows)[0].shape[0]
    size = max((n for n in range(multiple, most + 1, multiple) if num % n == 0), default=num)
    if size == num or not most:
        return function(*rows)
    slices = jax.tree.map(lambda x: x.reshape(size, num // size, *x.shape[1:]).swapaxes(0, 1), rows)
    out = jax.lax.map(lambda some: function(*some), slices)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(num, *x.shape[2:]), out)


def state_shardings(model, tx, params) -> TrainState:
    """Shardings of a TrainState: the optimizer's moments lie where their parameters do (or beside, in the host's memory), scalars
    everywhere."""
    places, host = models.param_shardings(model, params), model.layout.moments == "host"
    opt_state = jax.eval_shape(tx.init, params)
    opt_places = optax.tree_utils.tree_map_params(
        tx,
        lambda _, place: place.with_memory_kind("pinned_host") if host else place,
        opt_state,
        places,
        transform_non_params=lambda _: model.layout.replicated,
    )
    return TrainState(model.layout.replicated, places, opt_places)


def eval_state(tx, params) -> TrainState:
    """The shapes of `init_state`'s."""
    return jax.eval_shape(lambda params: TrainState(jnp.zeros((), jnp.int32), params, tx.init(params)), params)


def init_state(model, tx, params) -> TrainState:
    """A fresh TrainState around params (copied: states are donated, and a caller may keep the params as reference)."""

    def make(params):
        return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))

    return jax.jit(make, out_shardings=state_shardings(model, tx, params))(params)


# ------------------------------------------------------------------ updates


def accumulated_grads(loss_fn, params, batch, num_parts: int, reduce: str, packing=None):
    """(grads, metrics) of loss_fn(params, part, part_index, packing) -> (loss, metrics) over the batch, num_parts rows-slices at a time.

    Each part's loss is a mean over its tokens or rows; weighting it by their number gives the full batch's for any split. With
    reduce "constant" the divisor is no number of real things: the parts, all of one size, weigh alike.
    """
    if num_parts == 1:
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, 0, packing)
        return grads, metrics
    parts, packings = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]).swapaxes(0, 1), (batch, packing)
    )
    if reduce == "constant":
        count = jnp.ones(num_parts, jnp.int32)
    else:
        count = parts.mask.sum((1, 2)) if reduce == "token" else parts.mask.any(2).sum(1)
    weights = count.astype(jnp.float32) / jnp.maximum(count.sum(), 1).astype(jnp.float32)

    def add(total, xs):
        part, packing, weight, index = xs
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part, index, packing)
        return jax.tree.map(lambda t, g: t + weight * g.astype(jnp.float32), total, grads), metrics

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    grads, metrics = jax.lax.scan(add, zeros, (parts, packings, weights, jnp.arange(num_parts)))
    combined = {key: x.max() if key == "ppo/ratio_error" else (weights * x).sum() for key, x in metrics.items()}
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), combined


def apply_grads(model, tx, state: TrainState, grads, metrics):
    """(state, metrics): the optimizer's update of the parameters; the norms of both are added to the metrics."""
    if model.layout.moments == "host":
        places = state_shardings(model, tx, state.params).opt_state
        here = jax.tree.map(lambda place: place.with_memory_kind("device"), places)
        state = state.replace(opt_state=jax.device_put(state.opt_state, here))
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix types
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"grad/norm": optax.tree.norm(grads), "params/norm": optax.tree.norm(params)}
    return state.replace(params=params, opt_state=opt_state), metrics


def make_sft_step(
    model, tx, params, losses, *, dropout: float, accumulate: int, reduce: str, frozen: dict | None = None
):
    """(state, SFTBatch, key, packing=None) -> (state, metrics): one update of section 3.1 of `params`; `frozen`: what else the model
    has."""

    def loss_fn(params, batch, part, packing, key, frozen):
        params = models.join(frozen or {}, params)
        noise = dict(rate=dropout, key=jax.random.fold_in(key, part))
        out = outputs(model, params, batch.prompts, batch.tokens, batch.mask, packing, **noise)
        loss, metrics = objective(losses, out, batch, masked.Mean(batch.mask, reduce))
        return loss, {"sft/loss": loss} | metrics

    def step(state, batch, key, frozen=None, packing=None):
        loss = functools.partial(loss_fn, key=key, frozen=frozen)
        grads, metrics = accumulated_grads(loss, state.params, batch, accumulate, reduce, packing)
        state, metrics = apply_grads(model, tx, state, grads, metrics)
        return state.replace(step=state.step + 1), metrics

    out = (state_shardings(model, tx, params), model.layout.replicated)
    step = jax.jit(step, donate_argnums=0, out_shardings=out)
    return functools.partial(step, frozen=frozen) if frozen else step


def make_ppo_step(
    model,
    tx,
    params,
    losses,
    *,
    accumulate: int,
    reduce: str,
    frozen: dict | None = None,
    temperature: float = 1.0,
    max_response: int = 0,
):
    """(state, PPOBatch, rows i32[minibatch], packing=None) -> (state, metrics): one update on those rows of `params`; `frozen`: the
    rest; `packing`: of those rows. max_response: how long a response may be, for reduce "constant" (0 = as the arrays)."""

    def loss_fn(params, batch, part, packing, frozen):
        params = models.join(frozen or {}, params)
        out = outputs(model, params, batch.prompts, batch.tokens, batch.mask, packing, temperature=temperature)
        loss, metrics = objective(losses, out, batch, masked.Mean(batch.mask, reduce, max_response))
        return loss, {"ppo/loss": loss} | metrics

    def step(state, batch, rows, frozen=None, packing=None):
        minibatch = jax.tree.map(lambda x: model.layout.constrain(x[rows], "batch", *(None,) * (x.ndim - 1)), batch)
        loss = functools.partial(loss_fn, frozen=frozen)
        grads, metrics = accumulated_grads(loss, state.params, minibatch, accumulate, reduce, packing)
        return apply_grads(model, tx, state, grads, metrics)

    out = (state_shardings(model, tx, params), model.layout.replicated)
    step = jax.jit(step, donate_argnums=0, out_shardings=out)
    return functools.partial(step, frozen=frozen) if frozen else step


# ------------------------------------------------------------------ scoring, advantages


def make_score(model, ref_model=None, *, temperature: float = 1.0, most: int = 0):
    """(params, ref_params, Prompts, tokens, mask, packing=None) -> (logp, ref_logp, values, entropy), each f32[B, R]; values None
    without a critic.

    `ref_params` are of `ref_model` (None = of the same). The training forward without dropout: old log-probs and values are
    recomputed with it (section 4 of the recipe). `temperature`: of the policy and the reference, where PPO trains a tempered one.
    `most`: rows at a time, so that many samples need no more memory than an update (0 = all).
    """

    ref_model = model if ref_model is None else ref_model

    def score(params, ref_params, prompts, tokens, mask, packing=None):
        rows = prompts, tokens, mask, packing
        settings = dict(temperature=temperature, most=most)
        logp, entropy, values = token_outputs(model, params, *rows, **settings)
        ref_logp, _, _ = token_outputs(ref_model, ref_params, *rows, **settings)
        return logp, ref_logp, values, entropy

    return jax.jit(score)


def make_advantages(advantage, *, importance_cap: float = 0.0, keep_reference: bool = False):
    """Rollout -> (PPOBatch, metrics, kl f32[B]) by a record of `advantages/`.

    importance_cap > 0: the batch has `policy.importance` as its weights. keep_reference: it has ref_logp, for losses that read it.
    """

    def advantages(rollout: Rollout):
        mask, scores, logp, ref_logp = rollout.mask, rollout.scores, rollout.logp, rollout.ref_logp
        adv, returns, told = advantage(rollout)
        kl = masked.total(logp - ref_logp, mask, axis=1)
        gap = jnp.where(mask, jnp.abs(rollout.sample.logp - logp), 0.0)
        metrics = {
            "reward/mean": (scores if scores.ndim == 1 else masked.total(scores, mask, axis=1)).mean(),
            "kl/mean": kl.mean(),
            "entropy/mean": masked.mean(rollout.entropy, mask),
            "sample/logp_gap_mean": masked.mean(gap, mask),
            "sample/logp_gap_max": gap.max(),
        } | told
        weights = None
        if importance_cap:
            weights = importance(logp, rollout.sample.logp, mask, cap=importance_cap)
            capped = (weights >= importance_cap).astype(jnp.float32)
            metrics |= {
                "ppo/importance_mean": masked.mean(weights, mask),
                "ppo/importance_capped": masked.mean(capped, mask),
            }
        prompts, tokens, reference = rollout.prompts, rollout.sample.tokens, ref_logp if keep_reference else None
        return PPOBatch(prompts, tokens, mask, logp, rollout.values, adv, returns, weights, reference), metrics, kl

    return jax.jit(advantages)
