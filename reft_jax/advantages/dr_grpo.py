"""Dr. GRPO (arXiv 2503.20783, section 3.2): a response's score against its question's mean.

A_i = s_i - mean_j s_j. The paper has no KL, and the stage's reduce "constant" (no division by a response's length).
"""

import dataclasses

import jax

from reft_jax.advantages import groups
from reft_jax.losses.kl import KL


def dr_grpo(scores: jax.Array, k: int) -> jax.Array:
    """A_i = s_i - mean_j s_j over the question's k scores, f32[B] (Dr. GRPO, arXiv 2503.20783, section 3.2): GRPO without std.

    The paper's other change, no division by a response's length, is the stage's reduce "constant".
    """
    return groups.centred(scores, k).reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage:
    kl: KL = KL(where="off")

    compares = True

    def __call__(self, rollout):
        return groups.of_scores(rollout, self.kl, dr_grpo)
