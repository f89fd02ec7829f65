"""SVAMP from files in the ReFT authors' form (with N-CoT or P-CoT), or its own SVAMP.json; answers are numbers.

The authors' N-CoT texts already end with a sentence of their own ("the answer is <203>."); it is left there, as in
their training. SVAMP.json is the 1,000 test questions (Patel et al., arXiv 2103.07191) as `ID`, `Body`, `Question`,
`Equation`, `Answer` and `Type`; it has no reasoning, so that nothing can be trained on it.
"""

import dataclasses

from reft_jax.data import files
from reft_jax.data.records import Record
from reft_jax.errors import InputError
from reft_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    sources = ("files", "tfds")
    published = ()

    def read(self, objects, data, *, split: str, complaints: list | None = None) -> tuple[Record, ...]:
        return records(objects, cot=data.cot, split=split, complaints=complaints)


def read(path, *, cot: str, split: str = "train", complaints: list | None = None) -> tuple[Record, ...]:
    """The records of one file; `split` "test" needs no answer_cot. Errors name file:line (InputError)."""
    return records(files.read_objects(path, complaints=complaints), cot=cot, split=split, complaints=complaints)


def records(objects, *, cot: str, split: str, complaints: list | None = None) -> tuple[Record, ...]:
    """The records of (place, object) pairs of either form, which the first of them tells."""
    if not objects or "Body" not in objects[0][1]:
        return files.authors_records(
            objects, cot=cot, split=split, parse_answer=files.parse_number, complaints=complaints
        )
    files.check_arguments(cot=cot, split=split)
    if split == "train":
        raise InputError(
            f"{objects[0][0]}: SVAMP.json holds no reasoning and cannot be trained on; use it as the test set, and a "
            "config.data.train_file in the ReFT authors' form"
        )

    def fields(place, row):
        yield lambda: files.text_field(place, row, "ID")
        yield lambda: " ".join(files.text_field(place, row, part).strip() for part in ("Body", "Question"))
        yield lambda: ""
        yield lambda: files.parse_number(place, files.required(place, row, "Answer"), "Answer")

    whole = (files.whole_record(place, cot, fields(place, row), complaints) for place, row in objects)
    return tuple(record for record in whole if record is not None)
