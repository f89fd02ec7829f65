"""GSM8K, from its original JSON lines or from files in the ReFT authors' form; answers are numbers.

Original: `question` and `answer`, whose lines are the reasoning with calculator marks (`<<48/2=24>>24`) and whose last
line is `#### 72` (Cobbe et al., arXiv 2110.14168). It holds no programs.
"""

import dataclasses
import re

from reft_jax.data import reader
from reft_jax.tasks import base, tfds

_MARK = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"\s*^####[ \t]*(.*\S)\s*\Z", re.MULTILINE)


def _final(row: reader.Row) -> re.Match:
    """The last line of an original answer."""
    text = row.text("answer")
    if (found := _FINAL.search(text)) is None:
        raise row.wrong("answer", f"answer ends with {text[-40:]!r}; a last line such as '#### 72' is expected")
    return found


def _reasoning(row: reader.Row, data) -> str:
    """What stands before it, with or without the marks (config.data.calculator_marks)."""
    final = _final(row)
    text = final.string[: final.start()]
    if data.calculator_marks == "strip":
        text = _MARK.sub("", text)
    if not text.strip():
        raise row.wrong("answer", "answer has no reasoning before its '####' line; give it some or remove the record")
    return text


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    own = reader.Form(
        told_by="answer",
        item_id=("item_id", lambda row, data: f"gsm8k_{row.index}"),
        question="question",
        cot=("answer", _reasoning),
        answer=("answer", lambda row, data: reader.parse_number(row.place, _final(row)[1], "the number after '####'")),
    )
    published = tfds.Published(
        name="gsm8k",
        homepage="https://github.com/openai/grade-school-math",
        files={
            name: f"https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/{name}.jsonl"
            for name in ("train", "test")
        },
    )
