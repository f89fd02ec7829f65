"""What advantages share that compare the responses to one question. Scores are f32[B], rows q k, ..., q k + k - 1 being the k responses to
question q; with the KL in the reward a score is that of the whole response, the penalty of its tokens inside. A group whose scores are all equal
has advantage 0, to the bit."""

import jax
import jax.numpy as jnp

from reft_jax import masked
from reft_jax.advantages import rewards as token


def equal(scores: jax.Array, k: int) -> jax.Array:
    """bool[B / k]: the question's k scores are all equal, so that they teach nothing."""
    groups = scores.reshape(-1, k)
    return (groups == groups[:, :1]).all(1)


def centred(scores, k):
    """f32[B / k, k]: less the group's mean. The first score is taken off before, so that equal ones leave no rounding behind."""
    groups = scores.reshape(-1, k)
    groups = groups - groups[:, :1]
    return groups - groups.mean(1, keepdims=True)


def of_scores(rollout, kl, function):
    """What an Advantage's call gives, of function(scores f32[B], k) -> f32[B]."""
    rewards, mask, k = token.paid(rollout, kl), rollout.mask, rollout.group_size
    adv = jnp.where(mask, function(masked.total(rewards, mask, axis=1), k)[:, None], 0.0)
    scores = rollout.scores if rollout.scores.ndim == 1 else masked.total(rollout.scores, mask, axis=1)
    metrics = token.told(rewards, rollout, kl) | {
        "ppo/adv_std": jnp.sqrt(masked.var(adv, mask)),
        "reward/equal_groups": equal(scores, k).astype(jnp.float32).mean(),
    }
    return adv, None, metrics
