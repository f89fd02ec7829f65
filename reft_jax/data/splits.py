"""What is cut off, capped or refused when files become train, dev and test records; all of it by the questions' words.

Choices follow a hash of (seed, question), so that they do not depend on the file's order, on other files or on the
process. A dev record leaves dev only for a new training record whose hash ranks before it: n new ones move at most as many
out, and none where they rank behind.
"""

import collections
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

from reft_jax.data.records import Record
from reft_jax.errors import InputError

_WORDS = re.compile(
    r"""-(?=\s?\.?\d)                      # a minus; a hyphen is punctuation
      | (?<![\w.])\.\d+ | \d+(?:[.,]\d+)*  # a number as it is spelt
      | (?<=\d)\s*:\s*(?=\d)               # a ratio
      | (?:(?!\d)\w)+                      # a word
      | [$*/%^=+<>()\[\]{}|]               # signs that are no punctuation
      | [^\s\x00-\x7f]                     # those beyond ASCII, see `_plain`
    """,
    re.VERBOSE,
)


def question_words(question: str) -> str:
    """What makes two questions the same one: words, numbers and signs, whatever the case, the spacing, the punctuation
    and the Unicode form. Numbers stay as they are spelt ("1,000" is not "1000", "x\u00b2" is not "x2"), and so do the
    signs of arithmetic: 3 - 2, 3 / 2, 3 : 2, (3) 2, 3.2 and $3 2 are six questions."""
    text = question
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_plain, text)))
    return " ".join(found[0].strip() for found in _WORDS.finditer(text.replace("_", " ").casefold()))


@functools.cache
def _plain(character: str) -> str:
    """A character in its usual form; a space for punctuation beyond ASCII, "-" for dashes and the minus sign."""
    category = unicodedata.category(character)
    if category == "Pd" or character == "\u2212":
        return "-"
    if category == "No":  # half, squared: another number than its digits
        return character
    text = unicodedata.normalize("NFKC", character)
    return text if text.isascii() or category[0] not in "PZC" else " "


def cut_dev(records: Sequence[Record], size: int, *, seed: int) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """(train, dev), both in the file's order: `size` records chosen by a hash of (seed, question).

    Records with the same question stay together on one side, so dev may come out smaller where nearly all are repeated.
    Raises InputError if nothing would be left to train on.
    """
    if not 0 <= size < len(records):
        raise InputError(
            f"config.data.dev_size is {size} and the training file has {len(records)} records; "
            f"legal are 0 to {len(records) - 1}"
        )
    groups = collections.Counter(_key(record) for record in records)
    chosen, num_chosen = set(), 0
    for key in sorted(groups, key=lambda key: hashed("dev", seed, key)):
        if num_chosen + groups[key] <= size:
            chosen.add(key)
            num_chosen += groups[key]
    train = tuple(record for record in records if _key(record) not in chosen)
    return train, tuple(record for record in records if _key(record) in chosen)


def capped(records, num: int, *, seed: int, field: str) -> tuple[tuple[Record, ...], str]:
    """At most `num` records (0: all) in the file's order, chosen by a hash, and a note if any were left out."""
    if num == 0 or num >= len(records):
        return tuple(records), ""
    ranked = sorted(range(len(records)), key=lambda i: hashed(field, seed, _key(records[i]), records[i].item_id))
    kept = sorted(ranked[:num])
    return tuple(records[i] for i in kept), f"config.data.{field}={num}: {len(kept)} of {len(records)} records are used"


def shared(train: Sequence[Record], test: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(test record, the first training record with its question) of every test question that stands in train."""
    first = {}
    for record in train:
        first.setdefault(question_words(record.question), record)
    pairs = ((record, first.get(question_words(record.question))) for record in test)
    return [(record, found) for record, found in pairs if found is not None]


def check_overlap(train: Sequence[Record], test: Sequence[Record], *, max_overlap: float) -> str:
    """A note ("" for none) on test questions that stand in train; InputError where they are more than the share
    `max_overlap` of test, with the places of both."""
    pairs = shared(train, test)
    if not pairs:
        return ""
    named = named_few([f"{place_of(test_one)} = {place_of(train_one)}" for test_one, train_one in pairs])
    found = f"{len(pairs)} of {len(test)} test questions stand in the training data too (case and punctuation aside): {named}"
    if len(pairs) > max_overlap * len(test):
        raise InputError(
            f"{found}; that is over the share config.data.max_overlap={max_overlap}. Take them out of one of the two, or raise "
            "max_overlap (1.0 allows all)"
        )
    return f"{found}; kept, within the share config.data.max_overlap={max_overlap}"


def near_dev(train: Sequence[Record], dev: Sequence[Record]) -> str:
    """A note on dev questions that differ from a training question only in punctuation (equal ones are never parted)."""
    pairs = shared(train, dev)
    if not pairs:
        return ""
    named = named_few([f"{one.item_id} = {other.item_id}" for one, other in pairs])
    return f"{len(pairs)} of {len(dev)} dev questions stand in train too but for their punctuation (kept): {named}"


def place_of(record: Record) -> str:
    """Where a record stands, for messages."""
    return record.place or record.item_id


def named_few(names: Sequence[str], most: int = 5) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _key(record: Record) -> str:
    """What the dev split and the caps go by; it decides which records past runs were trained on, so it stays as it is."""
    return " ".join(record.question.split()).casefold()


def hashed(*parts: object) -> bytes:
    """A stable order of things: no salt, no dependence on the process (unlike `hash`)."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
