"""MathQA from files in the ReFT authors' form or its own; multiple choice (the answer is a letter) or numeric.

The numeric variant has the same questions without the options: with options, a wrong chain of thought that ends on the
right letter is paid (ReFT, section on reward hacking). MathQA's own form (Amini et al., arXiv 1905.13319) has `Problem`,
`Rationale` (the N-CoT), `options` ("a ) 38 , b ) 27.675 , ...") and `correct` (the letter); question and options are put
together as the authors have them. Its numeric answer is the one number in the right option, without its unit; questions
whose right option holds none, or several ("7 1 / 2", "288 cm 2"), are left out of the numeric variant. On the authors'
1,605 test questions 1,574 come out with their label, 26 are left out, and 5 differ: there the label is the less
plausible one (the option "$ 1,354" is labelled 1.0, "- 6" 6.0).

Options may be equal: of 6 of the authors' test questions, the right one's text or value ("1 / 3" and "2 / 6") stands under another letter
too, which then counts as right (`Record.also`).
"""

import dataclasses
import re
from fractions import Fraction

from reft_jax.data import reader
from reft_jax.tasks import base, tfds

_OPTION = re.compile(r"(?:^|,|\[)[\s'\"]*([a-e])\s*\)")  # also "['a ) 1', 'b ) 2']"
_FRACTION = re.compile(r"(?<=\d)\s*/\s*(?=\d)")
_NUMBER = re.compile(r"(?<![\w.])-?\s?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/0*[1-9]\d*)?(?![\d^])")


def right_option(row: reader.Row) -> tuple[str, str]:
    """(letter, text) of the right option."""
    options = split_options(row.text("options"))
    letter = reader.parse_choice(row.place, row["correct"], "correct")
    if letter not in options:
        raise row.wrong("options", f"options has no {letter!r} ), which is the correct one; add it")
    return letter, options[letter]


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    kind = "choice"
    own = reader.Form(
        told_by="Problem",
        item_id=("item_id", lambda row, data: f"mathqa_{row.index}"),
        question=("Problem", lambda row, data: f"{row.text('Problem')}\n{row.text('options')}"),
        cot=("Rationale", lambda row, data: row.text("Rationale").strip().strip('"').strip()),
        answer=("correct", lambda row, data: right_option(row)[0]),
    )
    published = tfds.Published(
        name="mathqa",
        homepage="https://math-qa.github.io",
        files={
            split: f"https://math-qa.github.io/math-QA/data/MathQA.zip#{name}.json"
            for split, name in dict(train="train", validation="dev", test="test").items()
        },
    )

    def read(self, raw, data, *, split, complaints=None):
        records = super().read(raw, data, split=split, complaints=complaints)
        if self.kind != "choice":
            return records
        return tuple(
            dataclasses.replace(record, also=equal_options(record.question, record.answer)) for record in records
        )


def split_options(text: str) -> dict[str, str]:
    """{letter: text} of "a ) 38 , b ) 27.675 , c ) none" (or of the list that some records spell out)."""
    begins = list(_OPTION.finditer(text))
    ends = [found.start() for found in begins[1:]] + [len(text)]
    return {found[1]: text[found.end() : end].strip(" ,'\"[]") for found, end in zip(begins, ends, strict=False)}


def option_numbers(question: str) -> dict[str, str]:
    """{letter: number} of the options on a question's last line; without those that hold none, or several."""
    options = split_options(question.rpartition("\n")[2])
    return {letter: number for letter, text in options.items() if (number := only_number(text)) is not None}


def equal_options(question: str, letter: str) -> tuple[str, ...]:
    """The other letters whose option, on a question's last line, is that of `letter`: its text, or the same number with the same words."""
    options = {letter: _value(text) for letter, text in split_options(question.rpartition("\n")[2]).items()}
    right = options.pop(letter, None)
    return tuple(other for other, value in options.items() if value == right) if right else ()


def _value(option: str) -> tuple:
    """What equal options have in common: the words around the only number, and its value; () of an empty one."""
    text, number = " ".join(_FRACTION.sub("/", option.lower()).split()), only_number(option)
    if number is None:
        return (text,) if text else ()
    return *_NUMBER.sub("#", text).split(), Fraction(number)


def only_number(option: str) -> str | None:
    """The number of an option that holds one and only one ("rs . 1,560" -> "1560", "3 / 4" -> "3/4"), else None."""
    found = _NUMBER.findall(_FRACTION.sub("/", option))
    return found[0].replace(",", "").replace(" ", "") if len(found) == 1 else None
