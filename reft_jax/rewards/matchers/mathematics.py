"""The same mathematics: what an answer in LaTeX or plain text is as a key, which keys agree, and the proof that is asked of sympy.

A key is

- an expression in the canonical form of `algebra.py`: exact, so that 1/2, 0.5 and \\frac{1}{2} are one key, and 0.33 and 1/3 are not; 1.5e3
  is 1500, "5 million" is 5000000; behind it its unit, if it has one ("5 foot", "50 percent", "5 dollar");
- a set for {1, 2}, "1, 2", "1, 2, and 3", "1 \\pm 2" (sorted), a tuple or an interval for (1, 2) and [1, 2), a union of intervals for
  \\cup: the keys of the parts, in their brackets;
- an equation or inequality: the keys of both sides, 5 > x as x < 5;
- otherwise the text itself, in lower case if it is words.

Keys agree if they are the same, and beyond that

- a decimal with the number it was rounded or cut from, if that is within a relative 1e-6 (a program's 0.333333333 is 1/3); an integer
  with itself only;
- without a unit with any unit; with another unit never; 5 m, which alone is 5 times m, with 5 meters;
- 50 per cent with 50 and with 0.5; the ratio 3:4 with 3/4; x >= 2 with [2, oo);
- a single letter with itself in the other case (choices); in expressions x and X are two variables;
- tuples and sets whose parts agree.
"""

import functools
import re
from fractions import Fraction

from reft_jax.rewards.matchers import algebra, dress, sentence, units
from reft_jax.rewards.matchers.base import MAX_ANSWER

RELATIVE = Fraction(1, 10**6)
_RELATION = re.compile(r"(\\le |\\ge |\\ne |[=<>])")
_TURNED = {">": "<", "\\ge ": "\\le "}
_EXPONENT = re.compile(r"-?\d+(?:\.\d*)?[eE][+-]?\d{1,3}", re.ASCII)


@functools.lru_cache(maxsize=4096)
def bare(answer: str, kind: str) -> str | None:
    """The key of an answer that stands alone, boxed or not; None if it is none of that kind."""
    key = _once(answer, kind)
    for _ in range(3):
        again = key if key is None else _once(key, kind)
        if again == key:
            return key
        key = again
    return None  # text in which each reading finds something else


def _once(answer: str, kind: str) -> str | None:
    if len(answer) > 2 * MAX_ANSWER:
        return None
    if "box" in answer and (place := dress.last_box(answer)):
        answer = answer[slice(*place)]
    text = dress.undress(answer, lists=kind != "choice")
    if not text or kind == "choice":
        return sentence.bare(text, kind) if text else None
    if kind == "expression":
        return _key(text, 0)
    try:
        return _measured(text, number=True)
    except algebra.Unreadable:
        return None


# ---- agreement -----------------------------------------------------------------------------------------------------------


def agree(key: str, gold: str, kind: str) -> bool:
    """Whether a key agrees with a gold answer, by the rules above."""
    right = bare(gold, kind)
    return key == right or (right is not None and kind != "choice" and _same(key, right))


def _same(a: str, b: str) -> bool:
    if a == b or (len(a) == len(b) == 1 and a.lower() == b.lower()):
        return True
    if parts := _paired(a, b):
        return all(_same(x, y) for x, y in parts)
    if b in (_interval(a), _ratio(a), _lettered(a)) or a in (_interval(b), _ratio(b), _lettered(b)):
        return True
    (a, unit), (b, other) = units.of_key(a), units.of_key(b)
    if unit and other and unit != other:
        return False
    x, y = _rational(a), _rational(b)
    if x is None or y is None:
        return a == b
    percent = "percent" in (unit, other) and unit != other
    return _rounded(x, y) or (percent and (_rounded(x / 100, y) if unit == "percent" else _rounded(x, y / 100)))


def _paired(a: str, b: str) -> list[tuple[str, str]]:
    """The parts of two tuples or sets in the same brackets, place by place; none if they are not made alike."""
    if a[0] not in "([{" or a[0] != b[0] or a[-1] != b[-1]:
        return []
    left, right = dress.split(a[1:-1], ","), dress.split(b[1:-1], ",")
    if len(left) < 2 or len(left) != len(right) or not all(left + right):
        return []
    return list(zip(left, right, strict=True))


def _rational(key: str) -> Fraction | None:
    return Fraction(key) if re.fullmatch(r"-?\d+(?:/0*[1-9]\d*)?", key, re.ASCII) else None


def _rounded(x: Fraction, y: Fraction) -> bool:
    """Whether two numbers are equal or one is the other rounded or cut to its decimals, of which it has at least one."""
    if x == y or 1 in (x.denominator, y.denominator):
        return x == y
    places = min((n for n in map(_places, (x, y)) if n is not None), default=None)
    return places is not None and abs(x - y) < min(Fraction(1, 10**places), RELATIVE * abs(y))


def _places(x: Fraction) -> int | None:
    """How many decimals x has; None if they do not end."""
    n, twos, fives = x.denominator, 0, 0
    while n % 2 == 0:
        n, twos = n // 2, twos + 1
    while n % 5 == 0:
        n, fives = n // 5, fives + 1
    return max(twos, fives) if n == 1 else None


def _lettered(key: str) -> str | None:
    """5 meter as the key of 5 m, which alone is 5 times m."""
    value, unit = units.of_key(key)
    if unit not in units.LETTERS or _rational(value) is None:
        return None
    return algebra.show(algebra.mul(algebra.read(value), algebra.atom(units.LETTERS[unit])))


def _ratio(key: str) -> str | None:
    """3:4 as the key of 3/4."""
    found = re.fullmatch(r"(\d+):0*([1-9]\d*)", key, re.ASCII)
    return str(Fraction(int(found[1]), int(found[2]))) if found else None


def _interval(key: str) -> str | None:
    """x<5, or a set of such, as the key of an interval or a union of them."""
    if key[0] == "{":
        parts = [_interval(part) if part else None for part in dress.split(key[1:-1], ",")]
        return "U".join(sorted(parts)) if None not in parts else None
    match _RELATION.split(key):
        case [low, ("<" | "\\le ") as left, name, ("<" | "\\le ") as right, high] if _is_name(name):
            return f"{'(' if left == '<' else '['}{low},{high}{')' if right == '<' else ']'}"
        case [name, ("<" | "\\le ") as right, high] if _is_name(name):
            return f"(-oo,{high}{')' if right == '<' else ']'}"
        case [low, ("<" | "\\le ") as left, name] if _is_name(name):
            return f"{'(' if left == '<' else '['}{low},oo)"
    return None


def _is_name(side: str) -> bool:
    return len(side) == 1 and side.isalpha()


# ---- keys ----------------------------------------------------------------------------------------------------------------


def _key(text: str, depth: int) -> str | None:
    text = text.strip()
    if not text or depth > 4:
        return _words(text)
    if len(parts := dress.split(text, "\\cup")) > 1:
        return "U".join(sorted(_keys(parts, depth)))
    for opening, closing in (("\\{", "\\}"), ("{", "}")):
        inside = text[len(opening) : -len(closing)]
        whole = (
            text.startswith(opening)
            and text.endswith(closing)
            and dress.closes(text, len(opening) - 1) == len(text) - 1
        )
        if whole and (opening == "\\{" or "," in inside):
            return _set(_keys(dress.split(inside, ","), depth))
    if text[0] in "([" and text[-1] in ")]" and dress.closes(text, 0) == len(text) - 1:
        parts = dress.split(text[1:-1], ",")
        if len(parts) > 1:
            return text[0] + ",".join(_keys(parts, depth)) + text[-1]
        if text[0] == "[" or WORDS.fullmatch(parts[0].strip()):
            return _key(parts[0], depth + 1)
    if len(parts := dress.split(text, ",")) > 1:
        return _set(_keys(parts, depth))
    if text.count("\\pm") == 1:
        return _set(_keys([text.replace("\\pm", sign) for sign in "+-"], depth))
    sides = _RELATION.split(text)
    if len(sides) > 1:
        return _relation(sides, depth)
    try:
        return _measured(text)
    except algebra.Unreadable:
        return _words(text)


def _set(keys: list[str]) -> str:
    return "{" + ",".join(sorted(set(keys) - {""})) + "}"


def _relation(sides: list[str], depth: int) -> str:
    """The key of expressions and the signs between them, from the smaller to the larger; of = and \\ne constants stand last."""
    sides = [side if i % 2 else _key(side, depth + 1) or "" for i, side in enumerate(sides)]
    if set(sides[1::2]) <= _TURNED.keys():
        sides = [_TURNED.get(side, side) for side in reversed(sides)]
    elif len(sides) == 3 and sides[1] in ("=", "\\ne "):
        sides[::2] = sorted(sides[::2], key=lambda side: (not any(map(str.isalpha, side)), side))
    return "".join(sides)


def _measured(text: str, number: bool = False) -> str:
    """The key of an expression, with its unit behind it; algebra.Unreadable if it is none, or, if so asked for, no number."""
    text, unit = units.split(text)
    value = algebra.number(Fraction(text)) if _EXPONENT.fullmatch(text) else algebra.read(text)
    if number and not value.is_number:
        raise algebra.Unreadable(text)
    return algebra.show(value) + (f" {unit}" if unit else "")


WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")


def _keys(parts: list[str], depth: int) -> list[str]:
    return [_key(dress.without_name(part.strip()), depth + 1) or "" for part in parts]


def _words(text: str) -> str | None:
    """What is no expression: words in lower case, anything else without spaces."""
    text = text.strip("() ") if WORDS.fullmatch(text.strip("() ")) else text
    if WORDS.fullmatch(text):
        return text if len(text) == 1 else " ".join(text.lower().split())
    return _LOOSE_SPACE.sub("", text) or None


# ---- proof by sympy ------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[A-Za-z]+(?:_(?:\{\w+\}|\w))?|\d+|[\^+\-*/()]", re.ASCII)
_PYTHON = {"^": "**", "pi": "pi", "e": "E", "i": "I", "abs": "Abs", "ln": "log", "oo": "oo"}
_PYTHON |= {name: name for name in algebra.FUNCTIONS if name not in ("abs", "ln")}
_PYTHON |= {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
_PROGRAM = """from sympy import *


def solution():
    for a, b in ({pairs},):
        d = simplify(a - b)
        if d != 0 and d.equals(0) is not True:
            return 0
    return 1
"""


def proof(key: str, gold: str) -> str | None:
    """A program whose solution() returns 1 if both are equal by sympy; None where there is nothing to ask it."""
    pairs = _pairs(key, bare(gold, "expression") or "")
    if not pairs:
        return None
    return _PROGRAM.format(pairs=", ".join(f"({_python(a)}, {_python(b)})" for a, b in pairs))


def _pairs(a: str, b: str) -> list[tuple[str, str]]:
    """The expressions, place by place, that must be equal; none if the two are not made alike."""
    if a == b:
        return [("0", "0")]
    if parts := _paired(a, b):
        pairs = [_pairs(x, y) for x, y in parts]
        return [pair for some in pairs for pair in some] if all(pairs) else []
    (a, unit), (b, other) = units.of_key(a), units.of_key(b)
    if (unit and other and unit != other) or (_rational(a) is not None and _rational(b) is not None):
        return []
    try:
        # Only what reads as itself is an expression that was printed here.
        return [(a, b)] if all(algebra.show(algebra.read(x)) == x for x in (a, b)) else []
    except algebra.Unreadable:
        return []


def _python(key: str) -> str:
    def spell(token: str) -> str:
        if token.isdigit():
            return f"Integer({token})"
        if token in _PYTHON or not token[0].isalpha():
            return _PYTHON.get(token, token)
        return f'Symbol("{token}")'

    tokens = _TOKEN.findall(key)
    if "".join(tokens) != key:
        raise ValueError(f"not an expression: {key!r}")
    return "".join(map(spell, tokens))
