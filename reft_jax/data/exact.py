"""Whether a tokenizer gives back the texts of the records. Normalizers (NFKC, NFC, Lowercase, StripAccents, Replace) and SentencePiece's
spaces change what they are not made for: with NFKC 10² is learnt as 102.

`tokenizer.load` tries what every response may hold; here it is the data's own texts, as they were tokenized.
"""

import collections
import difflib
import re
from collections.abc import Iterable, Sequence

from reft_jax.data import batching, prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.data.records import Record
from reft_jax.errors import InputError

SHOWN = 3  # records and changes that are named
LOOKED_AT = 20  # changed texts in which changes are counted


def check(tokenizer, fitted: batching.Fitted, data, *, purpose: str, where: str) -> str:
    """What a user must be told of prompts that the model reads otherwise than they are written, "" if nothing. InputError for targets, under
    "teach", that come back otherwise: what is learnt would be another text. where: which records, for messages."""
    learnt = [row.response[:-1] for row in fitted.encoded] if purpose == "teach" else []  # without its EOS
    targets = [prompts.target(record, docstring=data.docstring) for record in fitted.records[: len(learnt)]]
    if said := _changes(fitted.records, targets, tokenizers.decode_batch(tokenizer, learnt, after_newline=True)):
        raise InputError(
            f"{where}: the tokenizer does not give back {said}. Programs and answers cannot be learnt with it: take a model whose tokenizer keeps "
            "these characters, or write the records without them"
        )
    asked = [prompts.prompt(record) + prompts.completed(record, "", data, purpose=purpose) for record in fitted.records]
    begins = len(tokenizers.bos_ids(tokenizer, data.bos))
    back = tokenizers.decode_batch(tokenizer, [row.prompt[begins:] for row in fitted.encoded])
    said = _changes(fitted.records, asked, back)
    return (
        said
        and f"{where}: the model reads questions otherwise than they are written: the tokenizer does not give back {said}"
    )


def changes(tokenizer, record: Record, row: prompts.Encoded, data, *, purpose: str) -> str:
    """What becomes of which characters of one record's texts, as a purpose encoded them; "" if they come back."""
    asked, ids = prompts.prompt(record) + prompts.completed(record, "", data, purpose=purpose), row.response[:-1]
    target = prompts.continuation(record, data, purpose=purpose)
    begins = len(tokenizers.bos_ids(tokenizer, data.bos))
    back = (
        *tokenizers.decode_batch(tokenizer, [row.prompt[begins:]]),
        *tokenizers.decode_batch(tokenizer, [ids], after_newline=True),
    )
    return _become(zip((asked, target), back, strict=True))


def _changes(records: Sequence[Record], texts: Sequence[str], back: Sequence[str]) -> str:
    """What becomes of which characters, and in which records; "" if every text came back."""
    changed = [(record, text, now) for record, text, now in zip(records, texts, back, strict=False) if text != now]
    if not changed:
        return ""
    become = _become((text, now) for _, text, now in changed[:LOOKED_AT])
    named = ", ".join(
        f"{record.item_id} ({record.place})" if record.place else record.item_id for record, *_ in changed[:SHOWN]
    )
    return f"{len(changed)} of {len(texts)} texts: {become}; the first are of {named}"


def _become(pairs: Iterable[tuple[str, str]]) -> str:
    """The commonest changes of texts into those that came back."""
    counts = collections.Counter(change for text, now in pairs for change in _differences(text, now))
    become = ", ".join(f"{_named(was)} becomes {_named(now)}" for (was, now), _ in counts.most_common(SHOWN))
    return become + (f" and {len(counts) - SHOWN} more changes" if len(counts) > SHOWN else "")


def _differences(text: str, now: str) -> list[tuple[str, str]]:
    """(what stood there, what came back) wherever two texts differ: by words first, since characters take the square of the time."""
    out = []
    for was, became in _unequal(*(re.findall(r"\s+|\S+\s*", each) for each in (text, now))):
        was, became = "".join(was), "".join(became)
        out += _unequal(was, became) if len(was) < 200 else [(was, became)]
    return out


def _unequal(old, new) -> list:
    """(part of the one, part of the other) wherever two sequences differ."""
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(old[a:b], new[c:d]) for what, a, b, c, d in steps if what != "equal"]


def _named(part: str) -> str:
    """Characters, with their numbers where they are not ASCII: some look alike."""
    part = part if len(part) <= 12 else part[:12] + "..."
    codes = "" if part.isascii() else f" ({' '.join(f'U+{ord(character):04X}' for character in part)})"
    return f"{part!r}{codes}" if part else "nothing"
