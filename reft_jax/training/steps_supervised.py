"""The jitted steps of self-training and of the re-ranker; what holds of `steps.py` holds here."""

import functools

import flax.struct
import jax

from reft_jax import models
from reft_jax.losses import self_train
from reft_jax.losses.classifier import classifier_loss
from reft_jax.training import steps
from reft_jax.types import Prompts


class MixedBatch(flax.struct.PyTreeNode):
    """Own responses (mask all False where they are wrong) and gold CoTs."""

    prompts: Prompts
    tokens: jax.Array  # i32[B, R]
    mask: jax.Array  # bool[B, R]
    own: jax.Array  # bool[B]
    weights: jax.Array | None = None  # f32[B, R] `losses.self_train.token_weights`


class ClassifierBatch(flax.struct.PyTreeNode):
    """Whole sequences, prompt and response, and whether the response's answer is right."""

    tokens: jax.Array  # i32[B, T] right-padded
    mask: jax.Array  # bool[B, T]
    right: jax.Array  # bool[B]


def make_self_train_step(model, tx, params, stage, *, frozen: dict | None = None):
    """(state, MixedBatch, key, packing=None) -> (state, metrics): one update of `params` on own_weight NLL(own) + gold_weight
    NLL(gold); `stage` is config.SelfTrain, `frozen` what else the model has."""

    def loss_fn(params, batch, part, packing, key, frozen):
        params = models.join(frozen or {}, params)
        noise = dict(rate=stage.dropout, key=jax.random.fold_in(key, part))
        logp, _, _ = steps.token_outputs(model, params, batch.prompts, batch.tokens, batch.mask, packing, **noise)
        coefficients = dict(own_weight=stage.own_weight, gold_weight=stage.gold_weight)
        return self_train.self_train_loss(logp, batch.mask, batch.own, batch.weights, **coefficients)

    def step(state, batch, key, frozen=None, packing=None):
        weights = self_train.token_weights(batch.mask, batch.own, reduce=stage.reduce)
        loss = functools.partial(loss_fn, key=key, frozen=frozen)
        # the weights are of all tokens, whatever stage.reduce is: see `token_weights`
        grads, metrics = steps.accumulated_grads(
            loss, state.params, batch.replace(weights=weights), stage.accumulate, "token", packing
        )
        state, metrics = steps.apply_grads(model, tx, state, grads, metrics)
        return state.replace(step=state.step + 1), metrics

    return _jitted(step, model, tx, params, frozen)


def make_classifier_step(model, tx, params, *, accumulate: int, frozen: dict | None = None):
    """(state, ClassifierBatch) -> (state, metrics): one update of `params`, which hold a classifier; `frozen`: what else the model
    has."""

    def loss_fn(params, batch, part, packing, frozen):
        return classifier_loss(
            models.right_logits(model, models.join(frozen or {}, params), batch.tokens, batch.mask), batch.right
        )

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
