"""Online self-training (ReFT, arXiv 2401.08967, section 4.2): own right responses and gold CoTs, each by its mean negative log-likelihood.

loss = own NLL(own) + gold NLL(gold), NLL being a mean over that group's tokens (reduce "token") or over its sequences' means ("sequence");
a group without tokens is 0. No KL, no critic.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax import masked
from reft_jax.config.records import setting


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """`weights` are `token_weights`, made of the whole batch before it is split, so that the mean is over all tokens."""

    coef: float = setting(0, default=1.0)
    own: float = setting(0, default=0.5)
    gold: float = setting(0, default=0.5)

    needs = ("logp",)
    reads = ("own", "weights")
    together = "token"

    def check(self):
        if not self.own + self.gold:
            yield "own", "as is gold; one of them must be > 0"

    def __call__(self, out, batch, mean):
        mask, own = batch.mask, batch.own[:, None]
        nll = -jnp.where(mask, out.logp, 0.0) * batch.weights
        own_loss = masked.mean(jnp.where(own, nll, 0.0), mask)
        gold_loss = masked.mean(jnp.where(own, 0.0, nll), mask)
        return self.own * own_loss + self.gold * gold_loss, {
            "self_train/own_loss": own_loss,
            "self_train/gold_loss": gold_loss,
        }
