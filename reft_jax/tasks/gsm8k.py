"""GSM8K, from its original JSON lines or from files in the ReFT authors' form; answers are numbers.

Original: `question` and `answer`, whose lines are the reasoning with calculator marks (`<<48/2=24>>24`) and whose last
line is `#### 72` (Cobbe et al., arXiv 2110.14168). It holds no programs.
"""

import dataclasses
import functools
import re

from reft_jax.data import files
from reft_jax.data.records import Record
from reft_jax.errors import InputError
from reft_jax.tasks import base

_MARK = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"\s*^####[ \t]*(.*\S)\s*\Z", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    sources = ("files", "tfds")

    def read(self, objects, data, *, split: str, complaints: list | None = None) -> tuple[Record, ...]:
        how = dict(cot=data.cot, split=split, calculator_marks=data.calculator_marks)
        return records(objects, complaints=complaints, **how)


def read(
    path, *, cot: str, split: str = "train", calculator_marks: str = "strip", complaints: list | None = None
) -> tuple[Record, ...]:
    """The records of one file of either form. Errors name file:line (InputError)."""
    objects = files.read_objects(path, complaints=complaints)
    return records(objects, cot=cot, split=split, calculator_marks=calculator_marks, complaints=complaints)


def records(
    objects, *, cot: str, split: str, calculator_marks: str, complaints: list | None = None
) -> tuple[Record, ...]:
    """The records of (place, object) pairs. In the original form, which the first of them tells, record i has the item_id
    "gsm8k_{i}", and `calculator_marks` "strip" or "keep" says what becomes of the marks."""
    if calculator_marks not in ("strip", "keep"):
        raise InputError(f"config.data.calculator_marks is {calculator_marks!r}; legal are 'strip' and 'keep'")
    place, first = objects[0] if objects else ("", {})
    if "answer" not in first or "answer_value" in first:
        return files.authors_records(
            objects, cot=cot, split=split, parse_answer=files.parse_number, complaints=complaints
        )
    files.check_arguments(cot=cot, split=split)
    if cot == "program" and split == "train":
        raise InputError(
            f"{place}: GSM8K's original files hold no programs, and config.data.cot is 'program'; use config.data.cot='nl', "
            "or a config.data.train_file with programs in the ReFT authors' form"
        )

    def fields(i, place, row):
        answer = functools.cache(lambda: _split_answer(place, files.text_field(place, row, "answer"), calculator_marks))

        def reasoning():
            text = answer()[0] if split == "train" else ""
            if split == "train" and not text:
                problem = "answer has no reasoning before its '####' line; give it some or remove the record"
                raise files.RecordError(place, "answer", problem)
            return text

        yield lambda: f"gsm8k_{i}"
        yield lambda: files.text_field(place, row, "question")
        yield reasoning
        yield lambda: answer()[1]

    whole = (
        files.whole_record(place, cot, fields(i, place, row), complaints) for i, (place, row) in enumerate(objects)
    )
    return tuple(record for record in whole if record is not None)


def _split_answer(place: str, text: str, calculator_marks: str) -> tuple[str, str]:
    """(reasoning, number) of an original answer."""
    final = _FINAL.search(text)
    if final is None:
        problem = f"answer ends with {text[-40:]!r}; a last line such as '#### 72' is expected"
        raise files.RecordError(place, "answer", problem)
    reasoning = text[: final.start()]
    if calculator_marks == "strip":
        reasoning = _MARK.sub("", reasoning)
    return reasoning, files.parse_number(place, final[1], "the number after '####'")
