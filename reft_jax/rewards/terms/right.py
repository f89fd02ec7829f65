"""ReFT's terminal reward (arXiv 2401.08967, section 3.2): 1 where the answer is right, else 0."""

import dataclasses

import numpy as np

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    weight: float = setting(default=1.0)

    needs = ()

    def __call__(self, responses, scored):
        # float32 by name: an array that is typed like integer tokens would turn a share of it into 0.
        return np.array([grade.correct for grade in responses.grades], np.float32)
