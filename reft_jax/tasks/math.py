"""MATH (Hendrycks et al., arXiv 2103.03874) and its like from files in the ReFT authors' form; answers are expressions.

`answer_value` is what stands in the solution's \\boxed{}, in LaTeX or plain ("\\frac{1}{2}", "2x + 1", "(1, 2]"): whatever the matcher `math` reads.
"""

import dataclasses

from reft_jax.data import files
from reft_jax.data.records import Record
from reft_jax.rewards import matchers
from reft_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    kind = "expression"

    def read(self, objects, data, *, split: str, complaints: list | None = None) -> tuple[Record, ...]:
        return files.authors_records(
            objects, cot=data.cot, split=split, parse_answer=parse_expression, complaints=complaints
        )


def parse_expression(place: str, value: object, field: str = "answer_value") -> str:
    """A gold expression as text, as it stands. JSON numbers are taken too."""
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(text, str) and matchers.get("math").gold(text, "expression") is not None:
        return text.strip()
    raise files.RecordError(
        place,
        field,
        f"{field} is {files.shown(value)}; an expression is expected, in LaTeX or plain, such as \\frac{{1}}{{2}}, 2x + 1 or (1, 2]",
    )
