r"""Matcher `auto`: the answer wherever a response states it, read leniently and compared exactly.

What is read is the first of these that states an answer:

1. what follows the last closing sentence, on its line or, where nothing does, on the next: "The answer is", "Therefore, the answer is:",
   "Final answer:" and the like, with or without a colon, in any case, without what explains it (a next sentence, "because ...");
2. the last \boxed{...};
3. what follows the last "####" on its line;
4. the last line, if it is an answer alone: a number with its unit, a letter, or what stands in dollars.

Where a sentence states none, as in "The answer is not 42", only what stands behind it counts. A box in what is read is opened. Numbers and
expressions are read as by `math`, numbers also as by `reft` ("5 km", "5k"), choices as by `reft`. Keys and agreement are those of
`mathematics.py`: integers are exact, and the tolerance, for rounded decimals alone, is relative: 0 is not right for 0.01, as it is under
`reft`.
"""

import re
from collections.abc import Iterator

from reft_jax.rewards.matchers import dress, mathematics, quantity
from reft_jax.rewards.matchers.base import MAX_ANSWER, NOTHING, Found, Matcher, backwards, found

MAX_SENTENCES = 20  # how many that only look like one are passed over
_WORDS = ("answer", "Answer", "ANSWER")
_SENTENCE = re.compile(
    r"answer[*_]*(?:\sto\s(?:the|this)\s(?:question|problem))?\s{0,3}(?:(?:is|equals|(?:should|would|must|will)\sbe)\b|:|=)[*_:\s]{0,9}"
    r"(?:(?:therefore|thus|then|simply|just|equal to)\b[,:]?\s{0,3})?",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"\.\s|,?\s(?:because|since|which|so)\b")  # what follows explains the answer
_ASIDE = re.compile(r"\s\([^()\n]*\)\.?\s*$")
_DELIMITED = re.compile(r"\$[^$]+\$\.?|\\\([^$]+\\\)\.?|\\\[[^$]+\\\]\.?")
_LETTER = re.compile(r"\*{0,2}\(?[A-Ea-e]\)?\.?\*{0,2}")
_NAMED = re.compile(r"^[A-Za-z]\s*=")
_STEP = re.compile(r"\d+[.)]\s")


def find(text: str, kind: str) -> Found:
    for start, end in _places(text, kind):
        if (key := bare(text[start:end], kind)) is not None:
            return found(key, start, end)
    return NOTHING


def bare(answer: str, kind: str) -> str | None:
    """The key of an answer that stands alone; None if it is none of that kind."""
    key = mathematics.bare(answer, kind)
    if key is not None or kind != "number" or len(answer) > MAX_ANSWER:
        return key
    value = quantity.read(answer.strip())
    return None if value is None else mathematics.bare(str(value), kind)


def agree(key: str, gold: str, kind: str) -> bool:
    right = bare(gold, kind)
    return right is not None and mathematics.agree(key, right, kind)


def _places(text: str, kind: str) -> Iterator[tuple[int, int]]:
    """(start, end) of what may be the answer, in the order in which it counts."""
    end, begin = len(text.rstrip()), 0
    if (place := _sentence(text)) is not None:
        begin = place
        stop = _line_end(text, begin, end)
        said = text[begin : min(stop, begin + 2 * MAX_ANSWER)]
        if clause := _CLAUSE.search(said) or (kind == "number" and _ASIDE.search(said)):
            yield begin, begin + clause.start()
        yield begin, stop
    if (box := dress.last_box(text)) and box[0] >= begin:
        yield box
    if (mark := text.rfind("####")) >= begin:
        yield mark + 4, _line_end(text, mark + 4, end)
    last = text.rfind("\n", 0, end) + 1
    if last >= begin and end - last <= MAX_ANSWER and _is_alone(text[last:end].strip(), kind):
        yield last, end


def _sentence(text: str) -> int | None:
    """Where the last closing sentence of a text ends."""
    for place in backwards(text, _WORDS, MAX_SENTENCES):
        if match := _SENTENCE.match(text, place, place + 80):
            return match.end()
    return None


def _line_end(text: str, start: int, end: int) -> int:
    """Where the line from `start` on ends, or the display that it opens."""
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if text.startswith(opening, start) and (close := text.find(closing, start + 2, start + 2 * MAX_ANSWER)) >= 0:
            return close + 2
    line = text.find("\n", start, end)
    return end if line < 0 else line


def _is_alone(line: str, kind: str) -> bool:
    """Whether a line is nothing but an answer."""
    if kind == "choice":
        return bool(_LETTER.fullmatch(line))
    few = len(line.split()) <= 3 and not _STEP.match(line)
    return bool(_DELIMITED.fullmatch(line)) or (few and quantity.read(_NAMED.sub("", line)) is not None)


MATCHER = Matcher(
    about="the answer wherever it is stated (sentence, box, ####, last line), read leniently, integers exactly",
    kinds=("number", "choice", "expression"),
    find=find,
    bare=bare,
    gold=bare,
    agree=agree,
    proof=mathematics.proof,
)
