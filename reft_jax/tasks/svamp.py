"""SVAMP from files in the ReFT authors' form (with N-CoT or P-CoT), or its own SVAMP.json; answers are numbers.

The authors' N-CoT texts already end with a sentence of their own ("the answer is <203>."); it is left there, as in
their training. SVAMP.json is the 1,000 test questions (Patel et al., arXiv 2103.07191) as `ID`, `Body`, `Question`,
`Equation`, `Answer` and `Type`; it has no reasoning, so that nothing can be trained on it.
"""

import dataclasses

from reft_jax.data import reader
from reft_jax.tasks import base, tfds


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    own = reader.Form(
        told_by="Body",
        item_id="ID",
        question=("Question", lambda row, data: " ".join(row.text(part).strip() for part in ("Body", "Question"))),
        answer="Answer",
    )
    published = tfds.Published(
        name="svamp",
        homepage="https://github.com/arkilpatel/SVAMP",
        files=dict(test="https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json"),
    )
