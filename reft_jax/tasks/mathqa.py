"""MathQA from files in the ReFT authors' form or its own; multiple choice (the answer is a letter) or numeric.

The numeric variant has the same questions without the options: with options, a wrong chain of thought that ends on the
right letter is paid (ReFT, section on reward hacking). MathQA's own form (Amini et al., arXiv 1905.13319) has `Problem`,
`Rationale` (the N-CoT), `options` ("a ) 38 , b ) 27.675 , ...") and `correct` (the letter); question and options are put
together as the authors have them. Its numeric answer is the one number in the right option, without its unit; questions
whose right option holds none, or several ("7 1 / 2", "288 cm 2"), are left out of the numeric variant. On the authors'
1,605 test questions 1,574 come out with their label, 26 are left out, and 5 differ: there the label is the less
plausible one (the option "$ 1,354" is labelled 1.0, "- 6" 6.0).
"""

import dataclasses
import re

from reft_jax.data import files
from reft_jax.data.records import Record
from reft_jax.errors import InputError
from reft_jax.tasks import base

_OPTION = re.compile(r"(?:^|,|\[)[\s'\"]*([a-e])\s*\)")  # also "['a ) 1', 'b ) 2']"
_FRACTION = re.compile(r"(?<=\d)\s*/\s*(?=\d)")
_NUMBER = re.compile(r"(?<![\w.])-?\s?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?(?![\d^])")


@dataclasses.dataclass(frozen=True)
class Task(base.FromFiles):
    kind = "choice"
    sources = ("files", "tfds")
    numeric = False

    def read(self, objects, data, *, split: str, complaints: list | None = None) -> tuple[Record, ...]:
        return records(objects, cot=data.cot, split=split, numeric=self.numeric, complaints=complaints)


def read(
    path, *, cot: str, split: str = "train", numeric: bool = False, complaints: list | None = None
) -> tuple[Record, ...]:
    """The records of one file; `split` "test" needs no answer_cot. Errors name file:line (InputError)."""
    objects = files.read_objects(path, complaints=complaints)
    return records(objects, cot=cot, split=split, numeric=numeric, complaints=complaints)


def records(objects, *, cot: str, split: str, numeric: bool, complaints: list | None = None) -> tuple[Record, ...]:
    """The records of (place, object) pairs of either form, which the first of them tells."""
    if not objects or "Problem" not in objects[0][1]:
        parse_answer = files.parse_number if numeric else files.parse_choice
        return files.authors_records(objects, cot=cot, split=split, parse_answer=parse_answer, complaints=complaints)
    files.check_arguments(cot=cot, split=split)
    if cot == "program" and split == "train":
        raise InputError(
            f"{objects[0][0]}: MathQA's original files hold no Python programs, and config.data.cot is 'program'; use "
            "config.data.cot='nl', or a config.data.train_file with programs in the ReFT authors' form"
        )
    found = [_original(place, row, i, cot, split, numeric, complaints) for i, (place, row) in enumerate(objects)]
    kept = tuple(record for record in found if record is not None)
    if not kept and not complaints:
        raise InputError(
            f"{objects[0][0]}: no right option of these questions is a number; use config.data.task='mathqa'"
        )
    return kept


def _original(place, row, i, cot, split, numeric, complaints) -> Record | None:
    """One record of MathQA's own form; None if it complained, or if `numeric` and the right option is no number."""

    def options():
        found = split_options(files.text_field(place, row, "options"))
        letter = files.parse_choice(place, files.required(place, row, "correct"), "correct")
        if letter not in found:
            raise files.RecordError(place, "options", f"options has no {letter!r} ), which is the correct one; add it")
        return found, letter

    def question():
        text = files.text_field(place, row, "Problem")
        return text if numeric else f"{text}\n{files.text_field(place, row, 'options')}"

    def fields():
        name = "mathqa-numeric" if numeric else "mathqa"
        yield lambda: f"{name}_{i}"
        yield question
        yield lambda: files.text_field(place, row, "Rationale").strip().strip('"').strip() if split == "train" else ""
        yield lambda: (only_number(options()[0][options()[1]]) or "-") if numeric else options()[1]

    record = files.whole_record(place, cot, fields(), complaints)
    return None if record is None or record.answer == "-" else record


def split_options(text: str) -> dict[str, str]:
    """{letter: text} of "a ) 38 , b ) 27.675 , c ) none" (or of the list that some records spell out)."""
    begins = list(_OPTION.finditer(text))
    ends = [found.start() for found in begins[1:]] + [len(text)]
    return {found[1]: text[found.end() : end].strip(" ,'\"[]") for found, end in zip(begins, ends, strict=True)}


def option_numbers(question: str) -> dict[str, str]:
    """{letter: number} of the options on a question's last line; without those that hold none, or several."""
    options = split_options(question.rpartition("\n")[2])
    return {letter: number for letter, text in options.items() if (number := only_number(text)) is not None}


def only_number(option: str) -> str | None:
    """The number of an option that holds one and only one ("rs . 1,560" -> "1560", "3 / 4" -> "3/4"), else None."""
    found = _NUMBER.findall(_FRACTION.sub("/", option))
    return found[0].replace(",", "").replace(" ", "") if len(found) == 1 else None
