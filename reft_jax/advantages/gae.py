"""Generalised advantage estimation (arXiv 1506.02438, eq. 16), with a critic's values: PPO as in ReFT (arXiv 2401.08967, section 3.2).

delta_t = r_t + gamma v_{t+1} - v_t,  adv_t = delta_t + gamma lam adv_{t+1},  returns = adv + values; then whitened over the batch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax import masked
from reft_jax.advantages import rewards as token
from reft_jax.config.setting import setting
from reft_jax.losses.kl import KL
from reft_jax.losses.value import Critic


def gae(rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, lam: float):
    """(adv, returns) f32[B, R]; the value after the last True of mask (bool[B, R], right-padded) is 0. Both are 0 where mask is False,
    whatever stands there."""
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    next_values = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    deltas = rewards + gamma * next_values - values

    def backward(adv, delta):
        adv = delta + gamma * lam * adv
        return adv, adv

    _, adv = jax.lax.scan(backward, jnp.zeros_like(deltas[:, 0]), jnp.where(mask, deltas, 0.0).T, reverse=True)
    adv = jnp.where(mask, adv.T, 0.0)
    return adv, jnp.where(mask, adv + values, 0.0)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Var(returns - values) / Var(returns): 1 = the critic knows all, 0 = no better than a constant (or nothing to explain)."""
    variance = masked.var(returns, mask)
    varies = variance > 1e-8
    return jnp.where(varies, 1.0 - masked.var(returns - values, mask) / jnp.where(varies, variance, 1.0), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage:
    gamma: float = setting(0, 1, default=1.0)
    lam: float = setting(0, 1, default=0.95)
    whiten: bool = setting(default=True)
    kl: KL = KL()
    critic: Critic = Critic()

    compares = False

    def __call__(self, rollout):
        rewards, mask = token.paid(rollout, self.kl), rollout.mask
        adv, returns = gae(rewards, rollout.values, mask, gamma=self.gamma, lam=self.lam)
        metrics = token.told(rewards, rollout, self.kl) | {
            "ppo/adv_std": jnp.sqrt(masked.var(adv, mask)),
            "ppo/explained_variance": explained_variance(rollout.values, returns, mask),
            "value/mean": masked.mean(rollout.values, mask),
        }
        return masked.whiten(adv, mask) if self.whiten else adv, returns, metrics
