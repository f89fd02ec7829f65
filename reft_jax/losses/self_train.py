"""Online self-training: own right responses and gold CoTs, each by its mean negative log-likelihood. Arrays only, no model.

loss = own_weight NLL(own) + gold_weight NLL(gold), NLL being a mean over that group's tokens ("token") or over its sequences' means
("sequence"); a group without tokens is 0. No KL, no critic.
"""

import jax
import jax.numpy as jnp

from reft_jax import masked


def token_weights(mask: jax.Array, own: jax.Array, *, reduce: str) -> jax.Array:
    """f32[B, R], so that the mean of weight * x over all True of mask bool[B, R] and one group's rows is that group's `masked.reduce`
    of x. own bool[B] says whose rows are whose. Computed of the whole batch, it makes the loss the same for any split of it."""
    lengths = mask.sum(1).astype(jnp.float32)
    everything = jnp.maximum(lengths.sum(), 1.0)

    def of(group):
        if reduce == "token":
            return jnp.full_like(lengths, 1.0) / jnp.maximum(jnp.where(group, lengths, 0.0).sum(), 1.0)
        sequences = (group & (lengths > 0)).sum().astype(jnp.float32)
        return 1.0 / (jnp.maximum(lengths, 1.0) * jnp.maximum(sequences, 1.0))

    weights = everything * jnp.where(own, of(own), of(~own))
    return jnp.where(mask, weights[:, None], 0.0)


def self_train_loss(logp, mask, own, weights, *, own_weight: float, gold_weight: float):
    """(loss, metrics) of logp, weights (`token_weights`) f32[B, R], mask bool[B, R], own bool[B]; what mask excludes may hold NaN."""
    nll = -jnp.where(mask, logp, 0.0) * weights
    own_loss = masked.mean(jnp.where(own[:, None], nll, 0.0), mask)
    gold_loss = masked.mean(jnp.where(own[:, None], 0.0, nll), mask)
    loss = own_weight * own_loss + gold_weight * gold_loss
    return loss, {"self_train/loss": loss, "self_train/own_loss": own_loss, "self_train/gold_loss": gold_loss}
