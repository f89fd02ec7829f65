"""Data files: a JSON list or JSON lines, read so that every complaint names the file and the line.

Both forms hold one object per question: the ReFT authors' (`item_id`, `question`, `answer_cot`, `answer_value`) or a data
set's own. A file is UTF-8 with or without a byte order mark, with Unix or Windows line ends; its first character says
which form it is. Unusual: a JSON list is decoded element by element, to know the line at which each record begins.

Training stops at the first complaint. Readers that are given a list `complaints` put every one of them there and go on
with the next field or record (`reft_jax/doctor.py`); what they return is then the records that are whole.
"""

import contextlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator

from reft_jax.data.records import Record
from reft_jax.errors import InputError

SIGNATURE = "def solution():\n"  # how every program begins
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?(/[0-9]*[1-9][0-9]*)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r",[ \t\n\r]*\{")  # where the record after a malformed one seems to begin


class RecordError(InputError):
    """What is wrong at one place of a file: `place` is "FILE:LINE", `field` the record's field ("" = the record as a
    whole), `problem` what is wrong, with what is legal."""

    def __init__(self, place: str, field: str, problem: str):
        super().__init__(f"{place}: {problem}")
        self.place, self.field, self.problem = place, field, problem


@contextlib.contextmanager
def telling(complaints: list | None) -> Iterator[None]:
    """A RecordError of the block is raised or, where there is a list for it, put there (two alike in a row as one)."""
    try:
        yield
    except RecordError as error:
        if complaints is None:
            raise
        if str(error) not in map(str, complaints[-1:]):
            complaints.append(error)


def read_objects(path, *, complaints: list | None = None) -> list[tuple[str, dict]]:
    """Every object of the file with where it begins ("FILE:LINE"). InputError: no such file, not UTF-8, malformed JSON,
    something other than objects, or nothing at all."""
    path = pathlib.Path(path).expanduser()
    text = _read_text(path, complaints)
    start = _SPACE.match(text).end()
    objects = []
    with telling(complaints):
        if start == len(text):
            problem = "the file is empty; a JSON list or JSON lines, one object per question, is expected"
            raise RecordError(f"{path}:1", "", problem)
        is_list = text[start] == "["
        for line, value in _list_elements(path, text, start, complaints) if is_list else _lines(path, text, complaints):
            with telling(complaints):
                if not isinstance(value, dict):
                    problem = f"a record is {shown(value)}; one JSON object per question is expected"
                    raise RecordError(f"{path}:{line}", "", problem)
                objects.append((f"{path}:{line}", value))
        if not objects and not complaints:
            raise RecordError(f"{path}:1", "", "the data set is empty; at least one question is needed")
    return objects


def authors_records(
    objects, *, cot: str, split: str, parse_answer: Callable[[str, object], str], complaints: list | None = None
) -> tuple[Record, ...]:
    """Records out of `read_objects`' (place, object) pairs with the authors' fields; `cot` becomes the record's kind.

    Texts stay as they are. A "train" split needs `answer_cot`; for "test" it is not looked at and the record's is "".
    `parse_answer(place, value)` checks and normalises `answer_value` (`parse_number`, `parse_choice`).
    """

    def fields(place, row):
        yield lambda: _item_id(place, row, places)
        yield lambda: text_field(place, row, "question")
        yield lambda: reasoning(place, row) if split == "train" else ""
        yield lambda: parse_answer(place, required(place, row, "answer_value"))

    def reasoning(place, row):
        text = text_field(place, row, "answer_cot")
        check_cot(place, text, cot=cot)
        return text

    check_arguments(cot=cot, split=split)
    places = {}
    whole = (whole_record(place, cot, fields(place, row), complaints) for place, row in objects)
    return tuple(record for record in whole if record is not None)


def whole_record(place: str, kind: str, fields, complaints: list | None) -> Record | None:
    """The record of four functions that give its item_id, question, cot and answer or raise RecordError; with
    `complaints` each of them is asked, and there is None where one of them complained."""
    values = []
    for field in fields:
        with telling(complaints):
            values.append(field())
    return Record(*values, kind, place=place) if len(values) == 4 else None


def _item_id(place: str, row: dict, places: dict[str, str]) -> str:
    """The record's id, which is noted in `places`; RecordError if another record has it."""
    item_id = row.get("item_id")
    if not isinstance(item_id, int) or isinstance(item_id, bool):
        item_id = text_field(place, row, "item_id")
    item_id = str(item_id)
    if item_id in places:
        problem = f"item_id {item_id!r} stands at {places[item_id]} already; every id must be unique"
        raise RecordError(place, "item_id", problem)
    places[item_id] = place
    return item_id


def check_arguments(*, cot: str, split: str) -> None:
    """InputError for an unknown kind of CoT, ValueError for an unknown split."""
    if cot not in ("program", "nl"):
        raise InputError(f"config.data.cot is {cot!r}; legal are 'program' and 'nl'")
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; legal are 'train' and 'test'")


def check_cot(place: str, text: str, *, cot: str) -> None:
    """InputError where a file of programs is read as natural language or the other way round."""
    if cot == "program" and not text.startswith(SIGNATURE + "    "):
        raise RecordError(
            place,
            "answer_cot",
            f"answer_cot begins with {text[:40]!r}; config.data.cot='program' needs {SIGNATURE!r} and a body "
            "indented by four spaces. Is this a file of natural-language reasoning (config.data.cot='nl')?",
        )
    if cot == "nl" and text.startswith("def solution("):
        problem = "answer_cot is a program, but config.data.cot='nl'; read this file with config.data.cot='program'"
        raise RecordError(place, "answer_cot", problem)


def required(place: str, row: dict, field: str) -> object:
    """A field's value; InputError if the record has none."""
    if field not in row:
        present = ", ".join(repr(key) for key in list(row)[:8]) or "nothing"
        raise RecordError(place, field, f"the record has no field {field!r}, only {present}; add it")
    return row[field]


def text_field(place: str, row: dict, field: str) -> str:
    """A field that must hold text; InputError if it is absent, of another type or blank."""
    value = required(place, row, field)
    if not isinstance(value, str):
        raise RecordError(place, field, f"{field} is {shown(value)}; a text is expected")
    if not value.strip():
        raise RecordError(place, field, f"{field} is empty; give it a text or remove the record")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        problem = f"{field} holds half of a surrogate pair, which is no text: {value[:60]!a}; write the whole character"
        raise RecordError(place, field, problem)
    return value


def parse_number(place: str, value: object, field: str = "answer_value") -> str:
    """A gold number as text, as it stands but for thousands commas ("2,125" -> "2125"). JSON numbers are taken too."""
    number = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(number, str):
        number = _THOUSANDS.sub("", number.strip())
        if _NUMBER.fullmatch(number) and math.isfinite(float(number.split("/")[0])):
            return number
    raise RecordError(place, field, f"{field} is {shown(value)}; a number is expected, such as 72, -3.5 or 1/2")


def parse_choice(place: str, value: object, field: str = "answer_value") -> str:
    """A gold multiple-choice answer as a lower-case letter."""
    letter = value.strip().lower() if isinstance(value, str) else ""
    if not re.fullmatch("[a-e]", letter):
        raise RecordError(
            place,
            field,
            f"{field} is {shown(value)}; a letter from a to e is expected "
            "(numbers belong to config.data.task='mathqa-numeric')",
        )
    return letter


def _read_text(path: pathlib.Path, complaints: list | None) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read the data file {path}: {error.strerror}; "
            "config.data.train_file and config.data.test_file must name files that exist"
        ) from error
    with telling(complaints):
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            problem = f"not UTF-8 (byte {raw[error.start]:#04x}); convert the file to UTF-8"
            raise RecordError(f"{path}:{line}", "", problem) from error
    return raw.decode("utf-8-sig", errors="replace")


def _list_elements(path, text: str, start: int, complaints: list | None) -> Iterator[tuple[int, object]]:
    """(line, value) of each element of the JSON list that begins at `start`."""
    position, line, counted = start + 1, 1, 0
    first = True
    while True:
        with telling(complaints):
            position = _SPACE.match(text, position).end()
            closing = text[position : position + 1] == "]"
            if not first and not closing:
                if text[position : position + 1] != ",":
                    raise _malformed(path, text, position, "expected ',' or ']' after a record (is the file cut off?)")
                position = _SPACE.match(text, position + 1).end()
            if closing:
                rest = _SPACE.match(text, position + 1).end()
                if rest != len(text):
                    raise _malformed(path, text, rest, "something follows the end of the list")
                return
            line += text.count("\n", counted, position)
            counted = position
            value, position = _decode(path, text, position)
            yield line, value
            first = False
            continue
        following, first = _NEXT.search(text, position), False  # after a complaint
        if following is None:
            return
        position = following.start()


def _lines(path, text: str, complaints: list | None) -> Iterator[tuple[int, object]]:
    """(line, value) of each line that is not blank. Only line feeds end a line: real questions hold U+2028."""
    for line, content in enumerate(text.split("\n"), start=1):
        start = _SPACE.match(content).end()
        if start == len(content):
            continue
        with telling(complaints):
            value, end = _decode(path, content, start, first_line=line)
            rest = _SPACE.match(content, end).end()
            if rest != len(content):
                raise _malformed(path, content, rest, "something follows the line's object", first_line=line)
            yield line, value


def _decode(path, text: str, position: int, first_line: int = 1) -> tuple[object, int]:
    """The JSON value at `position` of `text`, which begins at `first_line` of the file, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise _malformed(path, text, error.pos, error.msg, first_line) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting without end
        raise _malformed(path, text, position, str(error), first_line) from error


def _malformed(path, text: str, position: int, problem: str, first_line: int = 1) -> RecordError:
    line = first_line + text.count("\n", 0, position)
    column = position - text.rfind("\n", 0, position)
    near = text[position : position + 30].split("\n")[0]
    return RecordError(
        f"{path}:{line}",
        "",
        f"malformed JSON at column {column}: {problem}, near {near!r}; "
        "a list [...] of objects, or one object on each line, is expected",
    )


def shown(value: object) -> str:
    """A value in a message: short, with its JSON type."""
    names = {str: "text", bool: "true/false", int: "number", float: "number", list: "list", dict: "object"}
    text = json.dumps(value, ensure_ascii=False)
    return f"{names.get(type(value), 'null')} {text[:60]}{'...' if len(text) > 60 else ''}"
