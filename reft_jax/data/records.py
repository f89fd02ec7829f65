"""What a data set is made of: records, and the three splits of them. Host side, strings only."""

import dataclasses

SIGNATURE = "def solution():\n"  # how every program begins


@dataclasses.dataclass(frozen=True)
class Record:
    """One question.

    `kind` says what `cot` is: "program" (Python that begins with `def solution():`), "nl" (reasoning without the
    closing answer sentence, which `prompts.target` adds) or "text" (the complete target as it stands). Test records
    have an empty `cot`. `also`: answers that are as right (letters of equal options). `tags` are for slicing results (for
    instance the number of operations). `place` is where the record was read ("FILE:LINE", of TFDS "NAME/SPLIT[i]", "" if it was
    generated); records are equal wherever they stand.
    """

    item_id: str
    question: str
    cot: str
    answer: str
    kind: str
    tags: dict = dataclasses.field(default_factory=dict, hash=False)
    place: str = dataclasses.field(default="", compare=False)
    also: tuple[str, ...] = ()

    @property
    def gold(self) -> str:
        """What responses are graded with (`rewards.score.grade`)."""
        return " or ".join((self.answer, *self.also))


@dataclasses.dataclass(frozen=True)
class Splits:
    """Train, dev and test records, and `notes`: what a user must be told about them, one line each."""

    train: tuple[Record, ...]
    dev: tuple[Record, ...]
    test: tuple[Record, ...]
    notes: tuple[str, ...] = ()
