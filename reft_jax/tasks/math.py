"""MATH (Hendrycks et al., arXiv 2103.03874) and its like from files in the ReFT authors' form; answers are expressions.

`answer_value` is what stands in the solution's \\boxed{}, in LaTeX or plain ("\\frac{1}{2}", "2x + 1", "(1, 2]"): whatever the matcher `math` reads.
"""

import dataclasses

from reft_jax.data import files, reader
from reft_jax.rewards import matchers
from reft_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    kind = "expression"

    def gold(self, place: str, value: object, field: str) -> str:
        text = reader.spelt(value)
        if isinstance(text, str) and matchers.get("math").gold(text, "expression") is not None:
            return text.strip()
        expected = "an expression is expected, in LaTeX or plain, such as \\frac{1}{2}, 2x + 1 or (1, 2]"
        raise files.RecordError(place, field, f"{field} is {reader.shown(value)}; {expected}")
