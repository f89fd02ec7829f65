"""MathQA without its options: the answer is the one number of the right option (the rest is in `mathqa.py`)."""

import dataclasses

from reft_jax.tasks import mathqa


@dataclasses.dataclass(frozen=True)
class Task(mathqa.Task):
    kind = "number"
    numeric = True
    left_out = "their right option is not one number"
