"""ReFT's whole PPO objective as one function of arrays (arXiv 2401.08967, section 3.2): for users who try it without a model."""

from reft_jax import masked
from reft_jax.advantages.rewards import token_rewards
from reft_jax.losses import kl as kl_loss
from reft_jax.losses import objective, policy, value
from reft_jax.types import Outputs

__all__ = ["ppo_loss", "token_rewards"]


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
    kl_estimator: str = "unbiased",
    length: int = 0,
):
    """(loss, metrics): the sum of `policy.Loss`, value_coef x `value.Loss` where there are values, and kl_coef x `kl.Loss`.

    logp, values f32[B, R]; batch: any record with mask, old_logp, old_values, adv, returns, all [B, R], and ref_logp if kl_coef > 0. values
    None = no critic: neither old_values nor returns are read. A `weights` of the batch, if it has one and it is not None, multiplies each token's
    policy loss (`policy.importance`). reduce "sequence" is the paper's (mean over a response's tokens, then over responses), or "token",
    or "constant" with `length` (`masked.reduce`).
    """
    terms = [policy.Loss(clip=clip, clip_high=clip_high)]
    terms += [value.Loss(coef=value_coef, clip=value_clip)] if values is not None else []
    terms += [kl_loss.Loss(coef=kl_coef, estimator=kl_estimator)] if kl_coef else []
    mean, out = masked.Mean(batch.mask, reduce, length), Outputs(logp=logp, values=values)
    loss, metrics = objective(terms, out, batch, mean)
    return loss, {"ppo/loss": loss} | metrics
