"""Matcher `math`: answers written in LaTeX, the last \\boxed{...} of a response; equal if they are the same mathematics.

What is read is the last \\boxed or \\fbox whose braces balance; in a response without one, the rest of the line after "Therefore, the
answer is:". From it goes what is only dress: $, \\left, spaces, \\text{}, units, currency, per cent ("50\\%" is 50), degrees, a final
dot, "x =" before it, thousands separators. The key is then

- an expression in the canonical form of `algebra.py`: exact, so that 1/2, 0.5 and \\frac{1}{2} are one key, and 0.33 and 1/3 are not;
- a set for {1, 2}, "1, 2", "1 and 2", "1 \\pm 2" (sorted), a tuple or an interval for (1, 2) and [1, 2), a union of intervals for
  \\cup: the keys of the parts, in their brackets;
- an equation or inequality: the keys of both sides;
- otherwise the text itself, in lower case if it is words.

Numbers agree within a relative 1e-6 (a program's 0.333333333 is 1/3); other keys agree if they are the same. Where they are not, and
both are made of expressions in the same brackets, `proof` writes a program that asks sympy, to be run in the sandbox: sympy's own reader
evaluates what it reads as code, so it never gets a text. The program holds nothing but names, numbers and operators that were read and
printed here.
"""

import re
from fractions import Fraction

from reft_jax.rewards.matchers import algebra, quantity, sentence
from reft_jax.rewards.matchers.base import MAX_ANSWER, NOTHING, Found, Matcher, found

RELATIVE = Fraction(1, 10**6)
MAX_BOXES = 20  # how many unbalanced ones are passed over
_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_SYMBOLS = {"×": "*", "·": "*", "÷": "/", "²": "^2", "³": "^3", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt "}
_SYMBOLS |= {"∪": "\\cup "}
_SYMBOLS |= {"≤": "\\le ", "≥": "\\ge ", "±": "\\pm ", "−": "-", "–": "-", "－": "-", "°": "", "，": ",", "\u00a0": " "}
_AND = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=[\s\d)}])(?:and|or)(?=\s)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|,?\\[,!]|,\\ )\d{3})+(?!\d)", re.ASCII)
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,?\\[,!])\d{3})+(?!\d)", re.ASCII)
_UNIT_TEXT = re.compile(
    r"(?<=[\w)}])\s*(?:\\[ ,;:!])*\s*\\(?:text|mathrm|textrm|mbox)\s*\{[^{}\d]*\}(?:\s*\^\s*(?:[23]|\{[23]\}))?"
)
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|mbox|operatorname)\s*\{([^{}]*)\}")
_DRESS = re.compile(
    r"\\(?:left|right|displaystyle|limits|[bB]igg?[lr]?)(?![A-Za-z])|(?<!\\)\\[!,;: ]|\\(?:q?quad)(?![A-Za-z])|~|"
    r"\^\s*\{?\s*\\circ\s*\}?|\\(?:degrees?|circ)(?![A-Za-z])|\\?[$%€£¥₹]|\\[()\[\]]|\*\*"
)
_SPELLINGS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:leqslant|leq|le)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:neq|ne)(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"(?<![\w.}^\\)])(\d+)\s*\\frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)\s?(\d)(?!\d))", re.ASCII), None),
    (re.compile(r"(?<![\w.}^\\)/])(\d+)[ ]+(\d+)\s?/\s?(\d+)(?![\d.])", re.ASCII), None),
)
_UNIT = re.compile(
    r"(?<=[\d)}])\s*(?<![\\A-Za-z])(?:(?:[A-Za-z]{3,}|cm|mm|km|kg|mg|ft|in|hr|mi|oz|lb|ml)(?:\s+(?:per|of|[A-Za-z]{3,}))*)"
    r"(?:\s*\^\s*(?:[23]|\{[23]\}))?$"
)
_PREFIX = re.compile(r"^[A-Za-z](?:_\w|_\{\w+\})?(?:\([A-Za-z]\))?\s*(?:=|\\in(?![A-Za-z]))(?!=)")
_RELATION = re.compile(r"(\\le |\\ge |\\ne |[=<>])")
_KNOWN_WORDS = {*algebra.FUNCTIONS, *algebra.NAMES}


# ---- finding -------------------------------------------------------------------------------------------------------------


def last_box(text: str) -> tuple[int, int] | None:
    """(start, end) of the content of the last \\boxed{...} whose braces balance within a few hundred characters."""
    names = ("\\boxed", "\\fbox")
    places = [text.rfind(name) for name in names]
    for _ in range(MAX_BOXES):
        place = max(places)
        if place < 0:
            return None
        opening = _BOX.match(text, place, min(len(text), place + 20))
        depth, limit = 1, place + 2 * MAX_ANSWER
        for brace in _BRACE.finditer(text, opening.end(), limit) if opening else ():
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return opening.end(), brace.start()
        which = places.index(place)
        places[which] = text.rfind(names[which], 0, place)
    return None


def find(text: str, kind: str) -> Found:
    place = last_box(text)
    if place is None and (place := sentence.closing(text)) is not None:
        line = text.find("\n", *place)
        place = place if line < 0 else (place[0], line)
    return found(bare(text[slice(*place)], kind), *place) if place else NOTHING


def bare(answer: str, kind: str) -> str | None:
    key = _once(answer, kind)
    for _ in range(3):
        again = key if key is None else _once(key, kind)
        if again == key:
            return key
        key = again
    return None  # text in which each reading finds something else


def _once(answer: str, kind: str) -> str | None:
    text = undress(answer) if len(answer) <= 2 * MAX_ANSWER else ""
    if not text or kind == "choice":
        return sentence.bare(text, kind) if text else None
    if kind == "expression":
        return _key(text, 0)
    try:
        value = algebra.read(_without_unit(text))
        return algebra.show(value) if value.is_number else None
    except algebra.Unreadable:
        return None


def agree(key: str, gold: str, kind: str) -> bool:
    right = bare(gold, kind)
    if key == right or right is None:
        return key == right
    x, y = _rational(key), _rational(right)
    return x is not None and y is not None and abs(x - y) <= RELATIVE * abs(y)


def _rational(key: str) -> Fraction | None:
    return Fraction(key) if re.fullmatch(r"-?\d+(?:/0*[1-9]\d*)?", key, re.ASCII) else None


# ---- dress ---------------------------------------------------------------------------------------------------------------


def undress(text: str) -> str:
    """The answer without what does not change it, in the few spellings that `_key` knows. Applied twice it does no more."""
    if not text.isascii():
        text = "".join(_SYMBOLS.get(c, c) if c in _SYMBOLS else quantity.ascii_of(c) for c in text)
    text = _AND.sub(",", text.strip())
    bracketed = text[:1] in "([" or text.startswith("\\")
    grouped = _GROUPED if bracketed and not text.startswith(("\\$", "\\(", "\\[")) else _THOUSANDS
    text = grouped.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _UNIT_TEXT.sub("", text)
    text = _TEXT.sub(r" \1 ", text)
    text = _DRESS.sub(" ", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling if spelling is not None else _mixed, text)
    text = " ".join(text.split()).strip("\"'`").rstrip(".").strip()
    if text.startswith("{") and text.endswith("}") and _closes(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return _PREFIX.sub("", text).strip() if text.count("=") <= 1 else text


def _mixed(found: re.Match) -> str:
    whole, top, bottom = [group for group in found.groups() if group is not None]
    # "5 6/2" is no mixed number
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else found[0]


def _without_unit(text: str) -> str:
    found = _UNIT.search(text)
    return text[: found.start()].strip() if found and found[0].split()[0].split("^")[0] not in _KNOWN_WORDS else text


# ---- keys ----------------------------------------------------------------------------------------------------------------


def _closes(text: str, start: int) -> int:
    """Where the bracket at `start` closes, whatever its kind; -1 if it does not."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside of all brackets."""
    parts, depth, begin, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth <= 0 and text.startswith(separator, i):
            parts.append(text[begin:i])
            begin = i = i + len(separator)
        else:
            i += 1
    return [*parts, text[begin:]]


def _key(text: str, depth: int) -> str | None:
    text = text.strip()
    if not text or depth > 4:
        return _words(text)
    if len(parts := _split(text, "\\cup")) > 1:
        return "U".join(sorted(_keys(parts, depth)))
    for opening, closing in (("\\{", "\\}"), ("{", "}")):
        inside = text[len(opening) : -len(closing)]
        whole = text.startswith(opening) and text.endswith(closing) and _closes(text, len(opening) - 1) == len(text) - 1
        if whole and (opening == "\\{" or "," in inside):
            return "{" + ",".join(sorted(set(_keys(_split(inside, ","), depth)))) + "}"
    if text[0] in "([" and text[-1] in ")]" and _closes(text, 0) == len(text) - 1:
        parts = _split(text[1:-1], ",")
        if len(parts) > 1:
            return text[0] + ",".join(_keys(parts, depth)) + text[-1]
        if text[0] == "[" or WORDS.fullmatch(parts[0].strip()):
            return _key(parts[0], depth + 1)
    if len(parts := _split(text, ",")) > 1:
        return "{" + ",".join(sorted(set(_keys(parts, depth)))) + "}"
    if text.count("\\pm") == 1:
        both = [_key(text.replace("\\pm", sign), depth + 1) for sign in "+-"]
        return "{" + ",".join(sorted(set(both))) + "}"
    sides = _RELATION.split(text)
    if len(sides) > 1:
        return "".join(side if i % 2 else _key(side, depth + 1) or "" for i, side in enumerate(sides))
    try:
        return algebra.show(algebra.read(_without_unit(text)))
    except algebra.Unreadable:
        return _words(text)


WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")


def _keys(parts: list[str], depth: int) -> list[str]:
    return [_key(_PREFIX.sub("", part.strip()), depth + 1) or "" for part in parts]


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
    if _rational(a) is not None and _rational(b) is not None:
        return []
    if a and b and a[0] in "([{" and a[0] == b[0] and a[-1] == b[-1]:
        left, right = _split(a[1:-1], ","), _split(b[1:-1], ",")
        if len(left) > 1 and len(left) == len(right):
            pairs = [_pairs(x, y) for x, y in zip(left, right, strict=True)]
            return [pair for some in pairs for pair in some] if all(pairs) else []
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


MATCHER = Matcher(
    about="the last \\boxed{}, LaTeX or plain: equal if it is the same mathematics (sympy, in the sandbox, where keys differ)",
    kinds=("number", "choice", "expression"),
    find=find,
    bare=bare,
    gold=bare,
    agree=agree,
    proof=proof,
)
