"""MathQA from files in the ReFT authors' form: multiple choice (the answer is a letter) or numeric.

The numeric variant has the same questions without the options: with options, a wrong chain of thought that ends on the
right letter is paid (ReFT, section on reward hacking).
"""

from reft_jax.data import files
from reft_jax.data.records import Record


def read(path, *, cot: str, split: str = "train", numeric: bool = False) -> tuple[Record, ...]:
    """The records of one file; `split` "test" needs no answer_cot. Errors name file:line (InputError)."""
    parse_answer = files.parse_number if numeric else files.parse_choice
    return files.authors_records(files.read_objects(path), cot=cot, split=split, parse_answer=parse_answer)
