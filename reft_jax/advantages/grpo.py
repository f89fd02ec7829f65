"""GRPO (arXiv 2402.03300, section 4.1.2): a response's score against those of its question, over their deviation.

A_i = (s_i - mean_j s_j) / std_j s_j. The KL to the reference is in the loss, or nowhere: in the scores, the spread of a group whose answers
are all right would be the penalty's alone, blown up to unit variance.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax.advantages import groups
from reft_jax.losses.kl import KL


def grpo(scores: jax.Array, k: int) -> jax.Array:
    """A_i = (s_i - mean_j s_j) / std_j s_j over the question's k scores, f32[B] (GRPO, arXiv 2402.03300, section 4.1.2).

    std is the biased one, with nothing added to it: where scores differ, a group's advantages have variance 1.
    """
    centred = groups.centred(scores, k)
    variance = jnp.square(centred).mean(1, keepdims=True)
    varies = variance > 0.0
    return jnp.where(varies, centred * jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage:
    kl: KL = KL(where="loss", coef=0.04)

    compares = True

    def check(self):
        if self.kl.in_reward:
            why = "GRPO divides by a group's spread, which would be the penalty's where all answers are alike"
            yield "kl.in", f"{why}; legal are loss, off"

    def __call__(self, rollout):
        return groups.of_scores(rollout, self.kl, grpo)
