"""Advantages without a critic: a response is compared with others, of its question or of the batch. Pure functions of arrays.

Scores are f32[B], rows q k, ..., q k + k - 1 being the k responses to question q. With config.PPO.kl_in "reward" a score is that of
the whole response, the KL penalty of its tokens inside. A group whose scores are all equal has advantage 0, to the bit.
"""

import jax
import jax.numpy as jnp

from reft_jax import masked
from reft_jax.losses.ppo import token_rewards


def grpo(scores: jax.Array, k: int) -> jax.Array:
    """A_i = (s_i - mean_j s_j) / std_j s_j over the question's k scores, f32[B] (GRPO, arXiv 2402.03300, section 4.1.2).

    std is the biased one, with nothing added to it: where scores differ, a group's advantages have variance 1.
    """
    centred = _centred(scores, k)
    variance = jnp.square(centred).mean(1, keepdims=True)
    varies = variance > 0.0
    return jnp.where(varies, centred * jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0).reshape(-1)


def dr_grpo(scores: jax.Array, k: int) -> jax.Array:
    """A_i = s_i - mean_j s_j over the question's k scores, f32[B] (Dr. GRPO, arXiv 2503.20783, section 3.2): GRPO without std.

    The paper's other change, no division by a response's length, is config.PPO.reduce "constant".
    """
    return _centred(scores, k).reshape(-1)


def rloo(scores: jax.Array, k: int) -> jax.Array:
    """A_i = s_i - 1/(k - 1) sum_{j != i} s_j over the question's k >= 2 scores, f32[B] (RLOO, arXiv 2402.14740)."""
    return (_centred(scores, k) * (k / (k - 1))).reshape(-1)  # s_i - (k m - s_i) / (k - 1) = k / (k - 1) (s_i - m)


def reinforce_pp(
    scores: jax.Array, k: int, *, logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, kl_coef: float
) -> jax.Array:
    """Whitened A_t = s - kl_coef sum_{u >= t} (logp_u - ref_logp_u), f32[B, R] (REINFORCE++, arXiv 2501.03262).

    That is the return to go (gamma 1) of `ppo.token_rewards`, less its mean and over its deviation among all tokens of the
    batch (`masked.whiten`). The baseline is the batch's: k, how many responses a question has, is of no account.
    """
    del k
    rewards = token_rewards(scores, logp, ref_logp, mask, kl_coef=kl_coef)
    to_go = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    return masked.whiten(to_go, mask)


def equal(scores: jax.Array, k: int) -> jax.Array:
    """bool[B / k]: the question's k scores are all equal, so that they teach nothing."""
    groups = scores.reshape(-1, k)
    return (groups == groups[:, :1]).all(1)


def _centred(scores, k):
    """f32[B / k, k]: less the group's mean. The first score is taken off before, so that equal ones leave no rounding behind."""
    groups = scores.reshape(-1, k)
    groups = groups - groups[:, :1]
    return groups - groups.mean(1, keepdims=True)
