"""Answers in text: find the one a response states, give it one canonical spelling, compare two of them.

The canonical spelling (a number rounded to 4 decimals without trailing zeros, or a lower-case letter) is at once what
is stored, what is voted on and what is compared with the gold answer. So "42", "42.0" and "$42.00001" are one vote, and
two responses with equal keys are always graded alike. Rules: ReFT (arXiv 2401.08967) section 3, matcher `reft`
repairing what the authors' code refuses ("1,000", "$5", "5 apples", "50%"), matcher `reft_paper` refusing it too.

What `reft` reads as a number, at the start of what follows the trigger and with at most words after it: signs (also
"−", "－" and "–"), thousands separators (1,000 and 12,34,567), currency ($ \\$ US$ € £ ¥ ₹ before, "5 dollars" after),
units ("5 km", "5 m^2", "$5/hour"), per cent as it stands ("50%" is 50), "1.", ".5", 1e3, 1.5 x 10^3, fractions (3/4, ½),
mixed numbers (1 1/2, 1½), decimal digits of any script, brackets, quotes, asterisks and "=" around it. What is none: number
words ("twelve"), "about 5", two numbers ("5 or 6", "5:30"), a decimal comma ("3,5"), arithmetic ("5*3", "10^3", "10²"), hex,
"nan", "inf", what is longer than 200 characters. As a choice: b, B, (b), b), B., <b>, "b ) 27.675", "option b", "choice: b".

Any text will do: it is searched once for the trigger, regular expressions see at most 200 characters, and a text of a
megabyte takes milliseconds.
"""

import math
import re
import unicodedata

TRIGGER = "Therefore, the answer is:"
KINDS = ("number", "choice")
MATCHERS = ("reft", "reft_paper")
TOLERANCE = 1e-2

# An answer is a few words. Longer remainders are not answers, and the limit bounds the regular expressions' time.
_MAX_ANSWER = 200
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


def extract(text: str, *, kind: str, matcher: str) -> str | None:
    """The canonical answer after the last "Therefore, the answer is:" of `text`, or None where there is none.

    `kind`: "number" or "choice" (a letter a-e). `matcher`: "reft" tolerates commas, currency, units, per cent, a
    trailing dot, brackets and fractions; "reft_paper" takes only what `float()` takes, and for a choice the remainder
    as it stands in lower case. Time is linear in the length of `text`. Unknown names raise ValueError.
    """
    before, trigger, remainder = text.rpartition(TRIGGER)
    return canonical(remainder, kind=kind, matcher=matcher) if trigger else None


def canonical(answer: str, *, kind: str, matcher: str = "reft") -> str | None:
    """The canonical spelling of a bare answer ("$1,000." -> "1000", "(B)" -> "b"); None if it is none of that kind."""
    if matcher not in MATCHERS:
        raise ValueError(f"matcher={matcher!r} is unknown; legal: {', '.join(MATCHERS)}")
    if kind == "number":
        value = _lenient_number(answer) if matcher == "reft" else _strict_number(answer)
        return None if value is None else _number_key(value)
    if kind == "choice":
        if matcher == "reft_paper":
            return answer.strip().lower() or None
        match = _CHOICE.fullmatch(answer.strip()) if len(answer.strip()) <= _MAX_ANSWER else None
        return match["letter"].lower() if match else None
    raise ValueError(f"kind={kind!r} is unknown; legal: {', '.join(KINDS)}")


def equal(a: str | None, b: str | None, *, kind: str) -> bool:
    """Whether two answers agree: numbers within 1e-2 absolute, choices by lower-case letter.

    None, NaN, infinities and what is not of that kind agree with nothing.
    """
    if a is None or b is None:
        return False
    if kind == "choice":
        return a.strip().lower() == b.strip().lower() != ""
    if kind != "number":
        raise ValueError(f"kind={kind!r} is unknown; legal: {', '.join(KINDS)}")
    x, y = _lenient_number(a), _lenient_number(b)
    # 1.01 - 1.0 is 0.0100...09 in binary: the slack makes the limit the decimal one.
    return x is not None and y is not None and abs(x - y) <= TOLERANCE + 1e-9


def _number_key(value: float) -> str:
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _strict_number(answer: str) -> float | None:
    try:
        value = float(answer.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _ascii(character: str) -> str:
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


def _lenient_number(answer: str) -> float | None:
    """A number at the start of `answer`, then at most words: a second number would make the answer ambiguous."""
    answer = answer.strip()
    if len(answer) > _MAX_ANSWER:
        # Only a plain spelling may be long (1e300 written out is 301 digits).
        return _strict_number(answer) if len(answer) <= 2 * _MAX_ANSWER else None
    match = _NUMERIC.fullmatch(answer if answer.isascii() else "".join(map(_ascii, answer)).strip())
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
