"""What a token is paid: its share of the score, less the penalty for leaving the reference (ReFT, arXiv 2401.08967, section 3.2)."""

import jax
import jax.numpy as jnp

from reft_jax import masked
from reft_jax.losses.kl import estimate


def token_rewards(
    score: jax.Array, logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, *, kl_coef: float, estimator: str = "k1"
) -> jax.Array:
    """r_t = score [t is the last response token] - kl_coef KL_t, f32[B, R]; score f32[B], or f32[B, R] of every token.

    KL_t is logp_t - ref_logp_t with the estimator k1; k2 and k3 as in `losses.kl`. Both are 0 where mask is False.
    """
    if not jnp.issubdtype(score.dtype, jnp.floating):
        raise TypeError(f"score has dtype {score.dtype}: a partial reward of 0.1 would become 0 in an integer array")
    if estimator == "k1":
        penalty = -kl_coef * jnp.where(mask, logp - ref_logp, 0.0)
    else:
        penalty = -kl_coef * estimate(logp, ref_logp, mask, estimator)
    if score.ndim == 2:
        return penalty + jnp.where(mask, score, 0.0)
    return penalty + jnp.where(masked.last(mask), score[:, None], 0.0)


def paid(rollout, kl) -> jax.Array:
    """f32[B, R] of a rollout, by an advantage's `kl`: penalised only where it is in the reward."""
    coef = kl.coef if kl.in_reward else 0.0
    estimator = "k1" if kl.estimator == "unbiased" or not kl.in_reward else kl.estimator
    return token_rewards(
        rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, kl_coef=coef, estimator=estimator
    )


def told(rewards: jax.Array, rollout, kl) -> dict:
    """The metric of the rewards with their penalty, where they have one."""
    return {"reward/with_kl": masked.total(rewards, rollout.mask, axis=1).mean()} if kl.in_reward else {}
