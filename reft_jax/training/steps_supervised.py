"""The jitted steps of self-training and of the re-ranker; what holds of `steps.py` holds here."""

import functools

import flax.struct
import jax

from reft_jax import masked, models
from reft_jax.losses import objective
from reft_jax.losses.own_gold import token_weights
from reft_jax.training import steps
from reft_jax.types import Outputs, Prompts


class MixedBatch(flax.struct.PyTreeNode):
    """Own responses (mask all False where they are wrong) and gold CoTs."""

    prompts: Prompts
    tokens: jax.Array  # i32[B, R]
    mask: jax.Array  # bool[B, R]
    own: jax.Array  # bool[B]
    weights: jax.Array | None = None  # f32[B, R] `losses.own_gold.token_weights`


class ClassifierBatch(flax.struct.PyTreeNode):
    """Whole sequences, prompt and response, and whether the response's answer is right."""

    tokens: jax.Array  # i32[B, T] right-padded
    mask: jax.Array  # bool[B, T]
    right: jax.Array  # bool[B]


def make_self_train_step(
    model, tx, params, losses, *, dropout: float, accumulate: int, reduce: str, frozen: dict | None = None
):
    """(state, MixedBatch, key, packing=None) -> (state, metrics): one update of `params` on own responses and gold CoTs; `frozen`: what
    else the model has."""

    def loss_fn(params, batch, part, packing, key, frozen):
        params = models.join(frozen or {}, params)
        noise = dict(rate=dropout, key=jax.random.fold_in(key, part))
        out = steps.outputs(model, params, batch.prompts, batch.tokens, batch.mask, packing, **noise)
        loss, metrics = objective(losses, out, batch, masked.Mean(batch.mask, reduce))
        return loss, {"self_train/loss": loss} | metrics

    def step(state, batch, key, frozen=None, packing=None):
        whole = batch.replace(weights=token_weights(batch.mask, batch.own, reduce=reduce))
        loss = functools.partial(loss_fn, key=key, frozen=frozen)
        grads, metrics = steps.accumulated_grads(loss, state.params, whole, accumulate, reduce, packing)
        state, metrics = steps.apply_grads(model, tx, state, grads, metrics)
        return state.replace(step=state.step + 1), metrics

    return _jitted(step, model, tx, params, frozen)


def make_classifier_step(model, tx, params, losses, *, accumulate: int, frozen: dict | None = None):
    """(state, ClassifierBatch) -> (state, metrics): one update of `params`, which hold a classifier; `frozen`: what else the model
    has."""

    def loss_fn(params, batch, part, packing, frozen):
        logits = models.right_logits(model, models.join(frozen or {}, params), batch.tokens, batch.mask)
        mean = masked.Mean(batch.mask, "sequence")
        loss, metrics = objective(losses, Outputs(right_logits=logits), batch, mean)
        return loss, {"reranker/loss": loss} | metrics

    def step(state, batch, frozen=None):
        loss = functools.partial(loss_fn, frozen=frozen)
        grads, metrics = steps.accumulated_grads(loss, state.params, batch, accumulate, "sequence")
        state, metrics = steps.apply_grads(model, tx, state, grads, metrics)
        return state.replace(step=state.step + 1), metrics

    return _jitted(step, model, tx, params, frozen)


def _jitted(step, model, tx, params, frozen):
    out = (steps.state_shardings(model, tx, params), model.layout.replicated)
    step = jax.jit(step, donate_argnums=0, out_shardings=out)
    return functools.partial(step, frozen=frozen) if frozen else step
