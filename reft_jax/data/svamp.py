"""SVAMP from files in the ReFT authors' form (with N-CoT or P-CoT); answers are numbers.

The authors' N-CoT texts already end with a sentence of their own ("the answer is <203>."); it is left there, as in
their training.
"""

from reft_jax.data import files
from reft_jax.data.records import Record


def read(path, *, cot: str, split: str = "train") -> tuple[Record, ...]:
    """The records of one file; `split` "test" needs no answer_cot. Errors name file:line (InputError)."""
    objects = files.read_objects(path)
    return files.authors_records(objects, cot=cot, split=split, parse_answer=files.parse_number)
