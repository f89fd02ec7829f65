"""PPO's clipped policy loss (arXiv 1707.06347, eq. 7), as ReFT uses it (arXiv 2401.08967, section 3.2).

loss = mean of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip_high)), ratio = exp(logp - old_logp). Arrays are response-aligned, [B, R], and
what mask excludes may hold NaN.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax.config.setting import setting


def clipped(logp, old_logp, adv, mask, *, clip: float, clip_high: float = 0.0):
    """(loss of each token, ratio, outside) f32[B, R], f32[B, R], bool[B, R]: `outside` says where the ratio has left its range.

    clip_high: the upper end is 1 + clip_high (DAPO's Clip-Higher, arXiv 2503.14476); 0 = clip.
    """
    high = clip_high or clip
    adv = jnp.where(mask, adv, 0.0)
    ratio = jnp.exp(jnp.where(mask, logp - old_logp, 0.0))  # masked before exp: one overflowing pad token would be NaN
    loss = jnp.maximum(-adv * ratio, -adv * jnp.clip(ratio, 1.0 - clip, 1.0 + high))
    return loss, ratio, (ratio - 1.0 > high) | (1.0 - ratio > clip)


def importance(logp: jax.Array, sample_logp: jax.Array, mask: jax.Array, *, cap: float) -> jax.Array:
    """min(p / q, cap) of each token, f32[B, R]: p the policy by the training forward, q what the token was drawn from.

    Truncated importance weights (Ionides 2008) correct a policy gradient for samples of another distribution: other precision or
    token choice, or an older policy. What q can never draw they cannot correct.
    """
    return jnp.minimum(jnp.exp(jnp.where(mask, logp - sample_logp, 0.0)), cap)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """`weights` of the batch, where it has any, multiply each token's loss (`importance`)."""

    coef: float = setting(0, default=1.0)
    clip: float = setting(above=0, default=0.2)
    clip_high: float = setting(0, default=0.0)  # the ratio's range is 1 - clip to 1 + clip_high; 0 = the same as clip

    needs = ("logp",)
    reads = ("old_logp", "adv")
    together = "token"

    def __call__(self, out, batch, mean):
        mask = batch.mask
        tokens, ratio, outside = clipped(
            out.logp, batch.old_logp, batch.adv, mask, clip=self.clip, clip_high=self.clip_high
        )
        if getattr(batch, "weights", None) is not None:
            tokens = tokens * jnp.where(mask, batch.weights, 0.0)
        loss = mean(tokens)
        log_ratio = jnp.where(mask, out.logp - batch.old_logp, 0.0)
        return loss, {
            "ppo/policy_loss": loss,
            "ppo/clip_fraction": mean.share(outside.astype(jnp.float32)),
            "ppo/approx_kl": mean.share(ratio - 1.0 - log_ratio),
            "ppo/ratio_error": jnp.max(jnp.where(mask, jnp.abs(ratio - 1.0), 0.0)),
        }
