"""PPO as ReFT uses it (section 3.2): a terminal score with a KL penalty on every token, and clipped policy and value losses;
and the variants of the loss that methods without a critic use.

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


def ppo_loss(
    logp,
    values,
    batch,
    *,
    clip: float,
    value_clip: float,
    value_coef: float,
    reduce: str = "sequence",
    clip_high: float = 0.0,
    kl_coef: float = 0.0,
    length: int = 0,
):
    """(loss, metrics): mean max(-A ratio, -A clip(ratio, 1 -+ clip)) + value_coef mean 0.5 max((v - ret)^2, (clip(v, v_old -+ value_clip) - ret)^2).

    ratio = exp(logp - old_logp); logp, values f32[B, R]; batch: any record with mask, old_logp, old_values, adv, returns,
    all [B, R]. values None = no critic: no value loss, and neither old_values nor returns are read. A `weights` of the batch, if
    it has one and it is not None, multiplies each token's policy loss (see `importance`).

    reduce "sequence" is the paper's (mean over a response's tokens, then over responses), or "token", or "constant" with `length`
    (`masked.reduce`). clip_high: the upper end of the range is 1 + clip_high (DAPO's Clip-Higher, arXiv 2503.14476); 0 = clip.
    kl_coef: each token's policy loss has kl_coef (e^d - d - 1) with d = ref_logp - logp added, the k3 estimator of the KL to the
    reference (arXiv 2402.03300, eq. 4); > 0 needs a batch with ref_logp.
    """
    mask, high = batch.mask, clip_high or clip
    adv = jnp.where(mask, batch.adv, 0.0)
    log_ratio = jnp.where(mask, logp - batch.old_logp, 0.0)  # masked before exp: one overflowing pad token would be NaN
    ratio = jnp.exp(log_ratio)
    policy = jnp.maximum(-adv * ratio, -adv * jnp.clip(ratio, 1.0 - clip, 1.0 + high))
    kl = None
    if kl_coef:
        ahead = jnp.where(mask, batch.ref_logp - logp, 0.0)
        kl = jnp.exp(ahead) - ahead - 1.0
        policy = policy + kl_coef * kl
    if getattr(batch, "weights", None) is not None:
        policy = policy * jnp.where(mask, batch.weights, 0.0)
    policy_loss = masked.reduce(policy, mask, reduce, length)
    loss, value_metrics = policy_loss, {}
    if values is not None:
        returns, old_values = (jnp.where(mask, x, 0.0) for x in (batch.returns, batch.old_values))
        values = jnp.where(mask, values, 0.0)
        clipped = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
        value = 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
        value_loss = masked.reduce(value, mask, reduce, length)
        loss = policy_loss + value_coef * value_loss
        value_metrics = {"ppo/value_loss": value_loss}
    mean_of = "sequence" if reduce == "constant" else reduce  # shares and means are of the tokens that there are
    outside = (ratio - 1.0 > high) | (1.0 - ratio > clip)
    metrics = {
        "ppo/loss": loss,
        "ppo/policy_loss": policy_loss,
        "ppo/clip_fraction": masked.reduce(outside.astype(jnp.float32), mask, mean_of),
        "ppo/approx_kl": masked.reduce(ratio - 1.0 - log_ratio, mask, mean_of),
        "ppo/ratio_error": jnp.max(jnp.where(mask, jnp.abs(ratio - 1.0), 0.0)),
    }
    if kl is not None:
        metrics["ppo/kl_loss"] = masked.reduce(kl, mask, mean_of)
    return loss, metrics | value_metrics


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
