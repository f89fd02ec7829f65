"""Advantage estimators: pure functions of response-aligned arrays. What lies after a response is ignored, NaN included."""

import jax
import jax.numpy as jnp


def gae(rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, lam: float):
    """(adv, returns) f32[B, R] by generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    delta_t = r_t + gamma v_{t+1} - v_t,  adv_t = delta_t + gamma lam adv_{t+1},  returns = adv + values; the value after
    the last True of mask (bool[B, R], right-padded) is 0. Both are 0 where mask is False.
    """
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    next_values = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    deltas = rewards + gamma * next_values - values

    def backward(adv, delta):
        adv = delta + gamma * lam * adv
        return adv, adv

    _, adv = jax.lax.scan(backward, jnp.zeros_like(deltas[:, 0]), jnp.where(mask, deltas, 0.0).T, reverse=True)
    adv = jnp.where(mask, adv.T, 0.0)
    return adv, jnp.where(mask, adv + values, 0.0)
