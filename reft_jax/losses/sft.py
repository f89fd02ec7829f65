"""Supervised fine-tuning: the negative log-likelihood of the target tokens (ReFT, section 3.1). Arrays only, no model."""

import jax

from reft_jax import masked


def sft_loss(logp: jax.Array, mask: jax.Array, *, reduce: str = "token"):
    """(loss, metrics) of logp f32[B, R] of the target's tokens; reduce "token" or "sequence" (`masked.reduce`)."""
    loss = masked.reduce(-logp, mask, reduce)
    return loss, {"sft/loss": loss}
