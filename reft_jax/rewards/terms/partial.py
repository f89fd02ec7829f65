"""ReFT's partial reward (arXiv 2401.08967, section 3.2): 1 where the answer is wrong and of the right type, else 0; it weighs 0.1."""

import dataclasses

import numpy as np

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    weight: float = setting(0, 1, default=0.1)
    # numeric: only where the task's answers are numbers, as the paper says; all: as the authors' code does
    on: str = setting(one_of=("numeric", "all"), default="numeric")

    needs = ()

    def __call__(self, responses, scored):
        pays = self.on == "all" or responses.task_kind == "number"
        return np.array([pays and grade.status == "wrong" for grade in responses.grades], np.float32)
