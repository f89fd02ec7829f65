"""Data files: a JSON list or JSON lines, one object per question, read so that every complaint names the file and the line.

A file is UTF-8 with or without a byte order mark, with Unix or Windows line ends; its first character says whether it is a
list. Unusual: a list is decoded element by element, to know the line at which each record begins. What the records must
hold is said by `reader.py`, which is also where `complaints` are explained.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator

from reft_jax.config.paths import expanded
from reft_jax.data import json_text
from reft_jax.errors import InputError

_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r",[ \t\n\r]*\{")  # where the record after a malformed one seems to begin


class RecordError(InputError):
    """What is wrong at one place: `place` is "FILE:LINE" or "NAME/SPLIT[i]", `field` the record's field ("" = the record
    as a whole), `problem` what is wrong, with what is legal."""

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


def read_raw(path, *, complaints: list | None = None) -> list[tuple[str, object]]:
    """Every raw record of the file with where it begins ("FILE:LINE"). InputError: no such file, not UTF-8, malformed JSON,
    or nothing at all."""
    path = expanded(path)
    text = _read_text(path, complaints)
    start = _SPACE.match(text).end()
    raw = []
    with telling(complaints):
        if start == len(text):
            problem = "the file is empty; a JSON list or JSON lines, one object per question, is expected"
            raise RecordError(f"{path}:1", "", problem)
        found = _list_elements(path, text, start, complaints) if text[start] == "[" else _lines(path, text, complaints)
        raw += [(f"{path}:{line}", value) for line, value in found]
        if not raw and not complaints:
            raise RecordError(f"{path}:1", "", "the data set is empty; at least one question is needed")
    return raw


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
        return json_text.DECODER.raw_decode(text, position)
    except json_text.DoubledKey as error:
        line = first_line + text.count("\n", 0, position)
        raise RecordError(f"{path}:{line}", "", str(error)) from error
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
