"""What follows the last "Therefore, the answer is:" of a response, as a number or a choice: for the matchers that read it there.

The key is a number rounded to 4 decimals without trailing zeros, or a lower-case letter; numbers agree within 1e-2 absolute (ReFT,
arXiv 2401.08967, section 3).
"""

import math
import re

from reft_jax.rewards.matchers import quantity
from reft_jax.rewards.matchers.base import MAX_ANSWER, NOTHING, Found, found

TRIGGER = "Therefore, the answer is:"
TOLERANCE = 1e-2

_CHOICE = re.compile(
    r"[\s<(\[{\"'`*]*(?:(?:option|choice)\s*:?\s*)?[<(\[{\"'`*]*(?P<letter>[a-e])(?:\s*[)\]}>.:,;\"'`*].*|\s*)",
    re.IGNORECASE | re.DOTALL,
)


def closing(text: str) -> tuple[int, int] | None:
    """(start, end) of what stands after the text's last closing sentence, without the space around it."""
    place = text.rfind(TRIGGER)
    if place < 0:
        return None
    remainder = text[place + len(TRIGGER) :]
    start = len(text) - len(remainder.lstrip())
    return start, start + len(remainder.strip())


def find_with(bare):
    """The `find` of a matcher whose `bare` reads what follows the sentence."""

    def find(text: str, kind: str) -> Found:
        place = closing(text)
        return found(bare(text[slice(*place)], kind), *place) if place else NOTHING

    return find


def bare(answer: str, kind: str) -> str | None:
    if kind == "number":
        return number_key(lenient_number(answer))
    answer = answer.strip()
    match = _CHOICE.fullmatch(answer) if len(answer) <= MAX_ANSWER else None
    return match["letter"].lower() if match else None


def agree(key: str, gold: str, kind: str) -> bool:
    if kind == "choice":
        return key.strip().lower() == bare(gold, kind)
    x, y = lenient_number(key), lenient_number(gold)
    # 1.01 - 1.0 is 0.0100...09 in binary: the slack makes the limit the decimal one.
    return x is not None and y is not None and abs(x - y) <= TOLERANCE + 1e-9


def number_key(value: float | None) -> str | None:
    if value is None:
        return None
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def strict_number(answer: str) -> float | None:
    """What `float()` takes, if it is finite."""
    try:
        value = float(answer.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def lenient_number(answer: str) -> float | None:
    """The number at the start of `answer` with at most words behind it (`quantity.py`)."""
    answer = answer.strip()
    if len(answer) > MAX_ANSWER:
        # Only a plain spelling may be long (1e300 written out is 301 digits).
        return strict_number(answer) if len(answer) <= 2 * MAX_ANSWER else None
    value = quantity.read(answer)
    try:
        return None if value is None else float(value)
    except OverflowError:
        return None
