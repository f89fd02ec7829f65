"""Online self-training (ReFT, arXiv 2401.08967, section 4.2): own right responses and gold CoTs, each by its mean negative log-likelihood.

loss = own NLL(own) + gold NLL(gold), NLL being a mean over that group's tokens (reduce "token") or over its sequences' means ("sequence");
a group without tokens is 0. No KL, no critic.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax.config.setting import setting


def token_weights(mask: jax.Array, own: jax.Array, *, reduce: str) -> jax.Array:
    """f32[B, R], so that `masked.reduce` of weight * x over one group's rows of mask bool[B, R] and 0 elsewhere is the reduce of x over that
    group alone. own bool[B] says whose rows are whose. Computed of the whole batch, it makes the loss the same for any split of it."""
    count = mask.sum(1) if reduce == "token" else mask.any(1)  # of what the mean is of, in each row
    count = count.astype(jnp.float32)

    def of(group):
        return count.sum() / jnp.maximum(jnp.where(group, count, 0.0).sum(), 1.0)

    return jnp.where(mask, jnp.where(own, of(own), of(~own))[:, None], 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """`weights`: `token_weights` of the whole batch."""

    coef: float = setting(0, default=1.0)
    own: float = setting(0, default=0.5)
    gold: float = setting(0, default=0.5)

    needs = ("logp",)
    reads = ("own",)
    together = "token"

    def check(self):
        if not self.own + self.gold:
            yield "own", "as is gold; one of them must be > 0"

    def whole(self, batch, reduce):
        return batch.put(weights=token_weights(batch.mask, batch.own, reduce=reduce))

    def __call__(self, out, batch, mean):
        mask, own = batch.mask, batch.own[:, None]
        nll = -jnp.where(mask, out.logp, 0.0) * batch.weights
        own_loss, gold_loss = mean(jnp.where(own, nll, 0.0)), mean(jnp.where(own, 0.0, nll))
        told = {"self_train/own_loss": own_loss, "self_train/gold_loss": gold_loss}
        return self.own * own_loss + self.gold * gold_loss, told
