"""The re-ranker's loss: cross-entropy of "the answer is right" (ReFT, section 4.3). Arrays only, no model."""

import jax
import jax.numpy as jnp


def classifier_loss(logits: jax.Array, right: jax.Array):
    """(loss, metrics) of logits f32[B] and right bool[B]: mean of -log sigmoid(logit) where right, -log(1 - sigmoid(logit)) elsewhere.

    Metrics: the loss, the accuracy of logit > 0 (P(right) > 1/2), and the share of right ones.
    """
    loss = jax.nn.softplus(jnp.where(right, -logits, logits)).mean()
    return loss, {
        "reranker/loss": loss,
        "reranker/accuracy": ((logits > 0) == right).astype(jnp.float32).mean(),
        "reranker/right": right.astype(jnp.float32).mean(),
    }
