"""RLOO (arXiv 2402.14740): a response's score against the mean of the question's others.

A_i = s_i - 1/(k - 1) sum_{j != i} s_j, the KL to the reference being part of the score.
"""

import dataclasses

import jax

from reft_jax.advantages import groups
from reft_jax.losses.kl import KL


def rloo(scores: jax.Array, k: int) -> jax.Array:
    """A_i = s_i - 1/(k - 1) sum_{j != i} s_j over the question's k >= 2 scores, f32[B] (RLOO, arXiv 2402.14740)."""
    # s_i - (k m - s_i) / (k - 1) = k / (k - 1) (s_i - m)
    return (groups.centred(scores, k) * (k / (k - 1))).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage:
    kl: KL = KL(coef=0.03)

    compares = True

    def __call__(self, rollout):
        return groups.of_scores(rollout, self.kl, rloo)
