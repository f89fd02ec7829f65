"""What every matcher is made of: the record of functions, and what it says of one text."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from reft_jax.rewards.markdown import program_in

KINDS = ("number", "choice", "expression")
MAX_ANSWER = 200  # characters: an answer is a few words, and the limit bounds the regular expressions' time


class Found(NamedTuple):
    """What a matcher read in a text. `value`: the canonical key, for votes, storage and comparison, or None. `status`: "ok" or
    "no_answer". `span`: (start, end) of what was read, or None; `text[start:end]` alone reads as the same value."""

    value: str | None
    status: str
    span: tuple[int, int] | None


NOTHING = Found(None, "no_answer", None)


def found(value: str | None, start: int, end: int) -> Found:
    return NOTHING if value is None else Found(value, "ok", (start, end))


def backwards(text: str, words: Sequence[str], most: int) -> Iterator[int]:
    """Where any of the words stand in a text, the last first, at most so many: a megabyte of them takes no time."""
    places = [text.rfind(word) for word in words]
    for _ in range(most):
        if (place := max(places)) < 0:
            return
        yield place
        which = places.index(place)
        places[which] = text.rfind(words[which], 0, place)


@dataclasses.dataclass(frozen=True)
class Matcher:
    """One way to read and compare answers. All functions are pure and take any text; none runs it as code.

    `kinds`: what it can read. `find(response, kind)`: the answer of a whole response. `bare(answer, kind)`: the key of an answer
    that stands alone, such as what a program returned. `gold(answer, kind)`: the same of a gold answer; None = not to be graded with.
    `agree(key, gold, kind)`: whether a key is right; equal keys always agree alike, and keys that agree both ways are one vote.
    `program(response)`: what to run of a P-CoT response, by default the program without the Markdown around it. `none_counts`: kinds for which
    a program that returns nothing has answered "none". `proof(key, gold)`: where `agree` denies, the source of a program for `run_programs`
    whose `solution()` returns 1 if the two are equal all the same, or None if that is out of question.
    """

    about: str
    kinds: tuple[str, ...]
    find: Callable[[str, str], Found]
    bare: Callable[[str, str], str | None]
    gold: Callable[[str, str], str | None]
    agree: Callable[[str, str, str], bool]
    program: Callable[[str], str] = program_in
    none_counts: tuple[str, ...] = ()
    proof: Callable[[str, str], str | None] | None = None
