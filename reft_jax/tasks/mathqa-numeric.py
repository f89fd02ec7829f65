"""MathQA without its options: the answer is the one number of the right option (the rest is in `mathqa.py`)."""

import dataclasses

from reft_jax.data import reader
from reft_jax.tasks import mathqa


@dataclasses.dataclass(frozen=True)
class Task(mathqa.Task):
    kind = "number"
    left_out = "their right option is not one number"
    own = dataclasses.replace(
        mathqa.Task.own,
        item_id=("item_id", lambda row, data: f"mathqa-numeric_{row.index}"),
        question="Problem",
        answer=("correct", lambda row, data: mathqa.only_number(mathqa.right_option(row)[1]) or reader.LEFT_OUT),
    )
