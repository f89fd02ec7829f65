"""One update for every loss: outputs -> the sum of coef x loss -> gradients, in parts if asked for -> the optimizer.

`make_update` returns one function that is compiled once per shape (lengths come in buckets). States are donated; keys are folded from
(seed, step) by the caller; everything is placed by the model's layout.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reft_jax import masked, models
from reft_jax.config.setting import divisible, num_parts
from reft_jax.losses import changed, needed, objective, traced
from reft_jax.training.scoring import outputs
from reft_jax.training.state import state_shardings
from reft_jax.types import TrainState


def make_update(
    model,
    tx,
    params,
    losses,
    *,
    name: str,
    reduce: str,
    accumulate: int = 1,
    dropout: float = 0.0,
    temperature: float = 1.0,
    length: int = 0,
    frozen: dict | None = None,
    reference: tuple | None = None,
):
    """(state, Batch, rows=None, key=None, packing=None, coefs=None) -> (state, metrics): one update of `params` by the sum of `losses`,
    which is the metric "<name>/loss".

    rows i32[minibatch]: of the batch (None = all of it). key: dropout's. packing: how the rows' sequences share rows. coefs: `losses.traced`
    of the same losses with other numbers. frozen: what else the model has. reference: (model, params), where a loss needs it.
    reduce, length: `masked.reduce`'s. accumulate: the parts that rows are split into, at least: `model.slice_tokens` asks for more where that
    changes nothing but rounding.
    """
    needs, ref_model = needed(losses), None if reference is None else reference[0]
    most = model.slice_tokens if divisible(losses, dropout) else 0

    def loss_fn(params, batch, part, packing, key, frozen, reference, losses):
        params = models.join(frozen or {}, params)
        how = dict(needs=needs, temperature=temperature, reference=reference and (ref_model, reference))
        if key is not None:
            how |= dict(rate=dropout, key=jax.random.fold_in(key, part))
        out = outputs(model, params, batch, packing, **how)
        loss, metrics = objective(losses, out, batch, masked.Mean(batch.mask, reduce, length))
        return loss, {f"{name}/loss": loss} | metrics

    def step(state, batch, rows=None, key=None, packing=None, frozen=None, reference=None, coefs=None):
        if rows is not None:
            batch = jax.tree.map(lambda x: model.layout.constrain(x[rows], "batch", *(None,) * (x.ndim - 1)), batch)
        used = losses if coefs is None else changed(losses, coefs)
        for loss in used:
            batch = loss.whole(batch, reduce) if hasattr(loss, "whole") else batch
        loss = functools.partial(loss_fn, key=key, frozen=frozen, reference=reference, losses=used)
        num, multiple = len(batch.tokens), model.layout.parts("batch")
        parts = num_parts(num, batch.length, most, least=accumulate, multiple=multiple)
        grads, metrics = accumulated_grads(loss, state.params, batch, parts, reduce, packing)
        return apply_grads(model, tx, state, grads, metrics)

    step = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings(model, tx, params), model.layout.replicated))
    given = dict(frozen=frozen) if frozen else {}
    given |= dict(reference=reference[1]) if reference is not None else {}
    given |= dict(coefs=traced(losses)) if any(traced(losses)) else {}
    return functools.partial(step, **given) if given else step


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


def passes(update, state: TrainState, batch, minibatches, packings) -> tuple[TrainState, list[dict]]:
    """(state, metrics of each update): an update on each of the minibatches i32[N, minibatch], one step of the outer loop."""
    told = []
    for rows, packing in zip(minibatches, packings, strict=True):
        state, metrics = update(state, batch, rows, packing=packing)
        told.append(metrics)
    return state.replace(step=state.step + 1), told


def host(metrics: dict) -> dict:
    """Device scalars as float32 on the host, in one transfer; numbers of the host as they are."""
    there = {key: value for key, value in metrics.items() if isinstance(value, jax.Array)}
    return metrics | {key: np.float32(value) for key, value in jax.device_get(there).items()}
