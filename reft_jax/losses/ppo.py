"""PPO as ReFT uses it (section 3.2): a terminal score with a KL penalty on every token, and clipped policy and value losses.

Arrays only, no model; every array is response-aligned, [B, R], and what mask excludes may hold NaN.
"""

import jax
import jax.numpy as jnp

from reft_jax import masked


def token_rewards(
    score: jax.Array, logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, *, kl_coef: float
) -> jax.Array:
    """r_t = score [t is the last response token] - kl_coef (logp_t - ref_logp_t), f32[B, R]; score f32[B]."""
    if not jnp.issubdtype(score.dtype, jnp.floating):
        raise TypeError(f"score has dtype {score.dtype}: a partial reward of 0.1 would become 0 in an integer array")
    penalty = -kl_coef * jnp.where(mask, logp - ref_logp, 0.0)
    return penalty + jnp.where(masked.last(mask), score[:, None], 0.0)


def ppo_loss(logp, values, batch, *, clip: float, value_clip: float, value_coef: float, reduce: str = "sequence"):
    """(loss, metrics): mean max(-A ratio, -A clip(ratio, 1 -+ clip)) + value_coef mean 0.5 max((v - ret)^2, (clip(v, v_old -+ value_clip) - ret)^2).

    ratio = exp(logp - old_logp); logp, values f32[B, R]; batch: any record with mask, old_logp, old_values, adv, returns,
    all [B, R]. reduce "sequence" is the paper's (mean over a response's tokens, then over responses), or "token". A `weights`
    of the batch, if it has one and it is not None, multiplies each token's policy loss (see `importance`).
    """
    mask = batch.mask
    adv, returns, old_values = (jnp.where(mask, x, 0.0) for x in (batch.adv, batch.returns, batch.old_values))
    values = jnp.where(mask, values, 0.0)
    log_ratio = jnp.where(mask, logp - batch.old_logp, 0.0)  # masked before exp: one overflowing pad token would be NaN
    ratio = jnp.exp(log_ratio)
    policy = jnp.maximum(-adv * ratio, -adv * jnp.clip(ratio, 1.0 - clip, 1.0 + clip))
    if getattr(batch, "weights", None) is not None:
        policy = policy * jnp.where(mask, batch.weights, 0.0)
    clipped = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
    value = 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
    policy_loss, value_loss = masked.reduce(policy, mask, reduce), masked.reduce(value, mask, reduce)
    loss = policy_loss + value_coef * value_loss
    metrics = {
        "ppo/loss": loss,
        "ppo/policy_loss": policy_loss,
        "ppo/value_loss": value_loss,
        "ppo/clip_fraction": masked.reduce((jnp.abs(ratio - 1.0) > clip).astype(jnp.float32), mask, reduce),
        "ppo/approx_kl": masked.reduce(ratio - 1.0 - log_ratio, mask, reduce),
        "ppo/ratio_error": jnp.max(jnp.where(mask, jnp.abs(ratio - 1.0), 0.0)),
    }
    return loss, metrics


def importance(logp: jax.Array, sample_logp: jax.Array, mask: jax.Array, *, cap: float) -> jax.Array:
    """min(p / q, cap) of each token, f32[B, R]: p the policy by the training forward, q what the token was drawn from.

    Truncated importance weights (Ionides 2008) correct a policy gradient for samples of another distribution: other precision or
    token choice, or an older policy. What q can never draw they cannot correct.
    """
    return jnp.minimum(jnp.exp(jnp.where(mask, logp - sample_logp, 0.0)), cap)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Var(returns - values) / Var(returns): 1 = the critic knows all, 0 = no better than a constant (or nothing to explain)."""
    variance = masked.var(returns, mask)
    varies = variance > 1e-8
    return jnp.where(varies, 1.0 - masked.var(returns - values, mask) / jnp.where(varies, variance, 1.0), 0.0)
