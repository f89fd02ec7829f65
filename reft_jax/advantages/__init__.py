"""Advantages: one file each, pure functions of arrays.

A file defines `Advantage`, a frozen record whose call is (rollout) -> (adv f32[B, R], returns f32[B, R] or None, metrics). `rollout`
(`types.Rollout`) has scores f32[B] or f32[B, R], logp, ref_logp, values (None without a critic), mask and group_size: rows q k, ..., q k + k - 1
are the responses to question q. `kl` (`losses.kl.KL`) says where the divergence from the reference counts, `critic` (`losses.value.Critic`, or
none) what gives values; both bring their losses (`owned`). `compares`: it compares the responses to one question, so that there must be
two or more.
"""

from reft_jax.losses import kl, value


def owned(advantage) -> tuple:
    """The losses that an advantage's settings bring along: its critic's, and its KL's where that is in the loss."""
    out, critic, divergence = [], getattr(advantage, "critic", None), getattr(advantage, "kl", None)
    if critic is not None:
        out.append(value.Loss(coef=critic.coef, clip=critic.clip))
    if divergence is not None and divergence.in_loss:
        out.append(kl.Loss(coef=divergence.coef, estimator=divergence.estimator))
    return tuple(out)
