"""The one reader: raw records, of a file, of TFDS or made by a task, become `Record`s under one set of checks.

A raw record comes with its place, "FILE:LINE" or "NAME/SPLIT[i]" counted from 0, and every complaint begins with it. A `Form` says where
such a record holds its id, question, CoT and answer: AUTHORS is that of the ReFT authors' files, a published set's own stands in its task.
Checked are, in this order: a record is a JSON object; its id is a text or a whole number, and no other's; its question is a text; so is its
CoT, where it is to be learnt, and of the kind that config.data.cot says; its answer is what the task's `gold` takes (GOLD has the usual
ones). A text is not blank and holds whole characters.

Training stops at the first complaint. With a list `complaints` (`reft_jax/doctor.py`) each of them is put there and reading goes on with the
next field or record; what is returned are then the records that are whole.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable

from reft_jax.data.files import RecordError, telling
from reft_jax.data.records import SIGNATURE, Record

LEFT_OUT = object()  # what a form's function gives for a record that is no question of its task
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?(/[0-9]*[1-9][0-9]*)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclasses.dataclass(frozen=True)
class Row:
    """One raw record and where it stands: its place, and its number among the others, from 0. RecordError if it is no object."""

    place: str
    raw: dict
    index: int = 0

    def __post_init__(self):
        if not isinstance(self.raw, dict):
            raise self.wrong("", f"a record is {shown(self.raw)}; one JSON object per question is expected")

    def wrong(self, field: str, problem: str) -> RecordError:
        return RecordError(self.place, field, problem)

    def __getitem__(self, field: str) -> object:
        """A field's value; RecordError if the record has none."""
        if field not in self.raw:
            present = ", ".join(repr(key) for key in list(self.raw)[:8]) or "nothing"
            raise self.wrong(field, f"the record has no field {field!r}, only {present}; add it")
        return self.raw[field]

    def text(self, field: str) -> str:
        """A field that must hold text; RecordError if it is absent, of another type or blank."""
        return text(self.place, self[field], field)


# Where a raw record holds something: a field, or a field and a function (row, data) -> its value; complaints name the field.
Part = str | tuple[str, Callable]


@dataclasses.dataclass(frozen=True)
class Form:
    """How the records of a data set's files are read."""

    told_by: str  # the field that tells this form from others
    item_id: Part
    question: Part
    answer: Part
    cot: Part | None = None  # None: there is none, and the files can only be a test set
    cots: tuple[str, ...] = ("nl",)  # its kinds

    def holds(self, cot: str) -> bool:
        """Whether there are CoTs of that kind to learn from."""
        return self.cot is not None and cot in self.cots


AUTHORS = Form("answer_value", "item_id", "question", "answer_value", cot="answer_cot", cots=("program", "nl"))
MADE = Form("", "item_id", "question", "answer", cot="cot")  # a Record's own fields


def field_of(part: Part) -> str:
    return part if isinstance(part, str) else part[0]


def form_of(raw, own: Form | None) -> Form:
    """The form of (place, value) pairs, which the first object tells: a data set's own, or the authors'."""
    first = next((value for _, value in raw if isinstance(value, dict)), {})
    return own if own and own.told_by in first and AUTHORS.told_by not in first else AUTHORS


def read(raw, form: Form, gold: Callable, data, *, split: str, complaints: list | None = None) -> tuple[Record, ...]:
    """The records of (place, value) pairs. Their texts stay as they are, `data.cot` becomes their kind; for the split "test" the CoT
    is not looked at and the record's is "". `gold(place, value, field)` checks and normalises an answer."""
    found, ids = [], {}
    for index, (place, value) in enumerate(raw):
        with telling(complaints):
            row = Row(place, value, index)
            values = _values(row, form, gold, data.cot, ids, learnt=split == "train", data=data, complaints=complaints)
            found += [Record(**values, kind=data.cot, place=place)] if values else []
    return tuple(found)


def checked(records, gold: Callable, where: str) -> tuple[Record, ...]:
    """Records that a task made by itself, under the same checks; a number for an answer becomes its text. Those with a place were
    checked when they were read."""
    found, ids = [], {}
    for index, record in enumerate(records):
        if not record.place:
            row = Row(f"{where}[{index}]", vars(record), index)
            learnt = record.kind == "text" or record.cot != ""
            record = dataclasses.replace(record, **_values(row, MADE, gold, record.kind, ids, learnt=learnt))
        found.append(record)
    return tuple(found)


def _values(
    row: Row, form: Form, gold, kind: str, ids: dict, *, learnt: bool, data=None, complaints=None
) -> dict | None:
    """item_id, question, cot and answer of a raw record; None where one of them complained, and for a record to be left out."""

    def unique(place, value, field):
        item_id = str(value) if type(value) is int else text(place, value, field)
        if item_id in ids:
            problem = f"{field} {item_id!r} stands at {ids[item_id]} already; every id must be unique"
            raise RecordError(place, field, problem)
        ids[item_id] = place
        return item_id

    def cot(place, value, field):
        return check_cot(place, text(place, value, field), field, kind=kind)

    values = {}
    for name, check in dict(item_id=unique, question=text, cot=cot, answer=gold).items():
        if name == "cot" and not learnt:
            values[name] = ""
            continue
        part = getattr(form, name)
        field = field_of(part)
        with telling(complaints):
            value = row[part] if part == field else part[1](row, data)
            if value is LEFT_OUT:
                return None
            if kind == "text" and value == "" and name in ("question", "answer"):  # a complete target needs neither
                values[name] = ""
            else:
                values[name] = check(row.place, value, field)
    return values if len(values) == 4 else None


# ------------------------------------------------------------------ checks of one value: (place, value, field) -> the value


def text(place: str, value: object, field: str) -> str:
    """A text, as it stands."""
    if not isinstance(value, str):
        raise RecordError(place, field, f"{field} is {shown(value)}; a text is expected")
    if not value.strip():
        raise RecordError(place, field, f"{field} is empty; give it a text or remove the record")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        problem = f"{field} holds half of a surrogate pair, which is no text: {value[:60]!a}; write the whole character"
        raise RecordError(place, field, problem)
    return value


def check_cot(place: str, value: str, field: str, *, kind: str) -> str:
    """A CoT of its kind: a program is not read as natural language, nor the other way round."""
    if kind == "program" and not value.startswith(SIGNATURE + "    "):
        problem = (
            f"{field} begins with {value[:40]!r}; config.data.cot='program' needs {SIGNATURE!r} and a body "
            "indented by four spaces. Is this a file of natural-language reasoning (config.data.cot='nl')?"
        )
        raise RecordError(place, field, problem)
    if kind == "nl" and value.startswith("def solution("):
        problem = f"{field} is a program, but config.data.cot='nl'; read this file with config.data.cot='program'"
        raise RecordError(place, field, problem)
    return value


def parse_number(place: str, value: object, field: str) -> str:
    """A gold number as text, as it stands but for thousands commas ("2,125" -> "2125"). JSON numbers are taken too."""
    number = spelt(value)
    if isinstance(number, str):
        number = _THOUSANDS.sub("", number.strip())
        if _NUMBER.fullmatch(number) and math.isfinite(float(number.split("/")[0])):
            return number
    raise RecordError(place, field, f"{field} is {shown(value)}; a number is expected, such as 72, -3.5 or 1/2")


def parse_choice(place: str, value: object, field: str) -> str:
    """A gold multiple-choice answer as a lower-case letter."""
    letter = value.strip().lower() if isinstance(value, str) else ""
    if not re.fullmatch("[a-e]", letter):
        expected = "a letter from a to e is expected (numbers belong to config.data.task='mathqa-numeric')"
        raise RecordError(place, field, f"{field} is {shown(value)}; {expected}")
    return letter


def parse_expression(place: str, value: object, field: str) -> str:
    """A gold expression as text, as it stands; which ones there are is the task's to say. JSON numbers are taken too."""
    return text(place, spelt(value), field).strip()


# kind of the answers -> what a task without a `gold` of its own takes
GOLD = {"number": parse_number, "choice": parse_choice, "expression": parse_expression}


def spelt(value: object) -> object:
    """A JSON number as its text; anything else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def shown(value: object) -> str:
    """A value in a message: short, with its JSON type."""
    names = {str: "text", bool: "true/false", int: "number", float: "number", list: "list", dict: "object"}
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return f"{names.get(type(value), 'null')} {text[:60]}{'...' if len(text) > 60 else ''}"
