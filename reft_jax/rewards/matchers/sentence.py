"""What follows the last "Therefore, the answer is:" of a response, as a number or a choice: for the matchers that read it there.

The key is a number rounded to 4 decimals without trailing zeros, or a lower-case letter; numbers agree within 1e-2 absolute (ReFT,
arXiv 2401.08967, section 3).
"""

import math
import re
import unicodedata

from reft_jax.rewards.matchers.base import MAX_ANSWER, NOTHING, Found, found

TRIGGER = "Therefore, the answer is:"
TOLERANCE = 1e-2

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)"
_NUMBER = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{{1,3}}(?![\w.]))?"
_CURRENCY = r"(?:(?:US|CA|AU)?\\?\$|[€£¥₹])"
_SIGN = rf"(?:(?P<sign>[-+]?)\s?{_CURRENCY}?|{_CURRENCY}\s?(?P<inner_sign>-))\s?"
_POWER = r"\s?(?:[x×*·]|\\times)\s?10\s?\^\s?[{(]?(?P<power>[+-]?\d{1,3})(?!\d)[)}]?"
_NUMERIC = re.compile(
    rf"[\s<(\[{{\"'`*=]*{_SIGN}(?:(?P<whole>\d+)\s{{1,3}}(?=\d+\s?/))?"
    rf"(?P<num>{_NUMBER})(?:\s?/\s?(?P<den>{_NUMBER})|{_POWER})?(?P<rest>(?![\^+=:⁰¹²³⁴-⁹]).*)",
    re.ASCII | re.DOTALL,
)
_UNIT_POWER = re.compile(r"[a-wyz]\^?-?\d(?!\d)", re.ASCII | re.IGNORECASE)  # m2, s^-1; not 5x3
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


def ascii_of(character: str) -> str:
    """Digits, minus signs and fractions of other alphabets as 0-9, - and " 1/2"; any other character as it is."""
    if character in "−－–":
        return "-"
    decimal = unicodedata.decimal(character, None)
    if decimal is not None:
        return str(decimal)
    kind, _, parts = unicodedata.decomposition(character).partition(" ")
    if kind == "<fraction>" and not parts.endswith("2044"):  # "⅟" has no denominator
        return " " + "".join(chr(int(part, 16)) for part in parts.split()).replace("⁄", "/")
    return character


def lenient_number(answer: str) -> float | None:
    """A number at the start of `answer`, then at most words: a second number would make the answer ambiguous."""
    answer = answer.strip()
    if len(answer) > MAX_ANSWER:
        # Only a plain spelling may be long (1e300 written out is 301 digits).
        return strict_number(answer) if len(answer) <= 2 * MAX_ANSWER else None
    match = _NUMERIC.fullmatch(answer if answer.isascii() else "".join(map(ascii_of, answer)).strip())
    if match is None or re.search(r"\d", _UNIT_POWER.sub("", match["rest"])):
        return None
    value = float(match["num"].replace(",", "") + ("e" + match["power"] if match["power"] else ""))
    if match["den"] is not None:
        denominator = float(match["den"].replace(",", ""))
        if denominator == 0:
            return None
        value /= denominator
    if match["whole"] is not None:
        if not 0 < value < 1:
            return None  # "5 6/2" is two numbers
        value += float(match["whole"])
    if match["sign"] == "-" or match["inner_sign"]:
        value = -value
    return value if math.isfinite(value) else None
