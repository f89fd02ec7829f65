"""REINFORCE++ (arXiv 2501.03262): the return to go of each token, whitened over all tokens of the batch.

A_t = s - coef sum_{u >= t} KL_u, less its mean and over its deviation.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax import masked
from reft_jax.advantages import rewards as token
from reft_jax.losses.kl import KL


def to_go(rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """sum_{u >= t} rewards_u of each token (gamma 1), f32[B, R], less its mean and over its deviation among all tokens of the batch
    (`masked.whiten`). The baseline is the batch's: how many responses a question has is of no account."""
    return masked.whiten(jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1], mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage:
    kl: KL = KL()

    compares = False

    def __call__(self, rollout):
        rewards, mask = token.paid(rollout, self.kl), rollout.mask
        adv = to_go(rewards, mask)
        return adv, None, token.told(rewards, rollout, self.kl) | {"ppo/adv_std": jnp.sqrt(masked.var(adv, mask))}
