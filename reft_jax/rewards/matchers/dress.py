"""Answers without their dress: the last box of a text, and LaTeX or plain text in the few spellings that `mathematics.py` knows."""

import re

from reft_jax.rewards.matchers import quantity, units
from reft_jax.rewards.matchers.base import MAX_ANSWER, backwards

MAX_BOXES = 20  # how many unbalanced ones are passed over
_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_BARE_BOX = re.compile(r"\\f?boxed(?:\s*([-+]?\d(?:[\d.,/]*\d)?)|\s+([A-Za-z])(?![A-Za-z]))", re.ASCII)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_SYMBOLS = {"×": "*", "·": "*", "÷": "/", "²": "^2", "³": "^3", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt "}
_SYMBOLS |= {"∪": "\\cup ", "≤": "\\le ", "≥": "\\ge ", "±": "\\pm ", "°": "\\degree "}
_SYMBOLS |= {"−": "-", "–": "-", "－": "-", "，": ",", "\u00a0": " "}
_AND = re.compile(rf",?\s*(?:{units.TEXT}\s*,?\s*(?:and|or)\s*,?\s*\}}|(?<=[\s\d)}},])(?:and|or)(?=\s))")
_BETWEEN = re.compile(r";|,?\s*\\?&")  # items of a list
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|,?\\[,!]|,\\ )\d{3})+(?!\d)", re.ASCII)
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,?\\[,!])\d{3})+(?!\d)", re.ASCII)
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|mbox|operatorname)\s*\{([^{}]*)\}")
_DRESS = re.compile(
    r"\\(?:left|right|displaystyle|limits|[bB]igg?[lr]?)(?![A-Za-z])|(?<!\\)\\[!,;: ]|\\(?:q?quad)(?![A-Za-z])|~|"
    r"\\?[$%€£¥₹]|\\[()\[\]]|\*\*"
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
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"(?<![\w.}^\\)])(\d+)\s*\\frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)\s?(\d)(?!\d))", re.ASCII), None),
    (re.compile(r"(?<![\w.}^\\)/])(\d+)[ ]+(\d+)\s?/\s?(\d+)(?![\d.])", re.ASCII), None),
)
_PREFIX = re.compile(r"^[A-Za-z](?:_\w|_\{\w+\})?(?:\([A-Za-z]\))?\s*(?:=|\\in(?![A-Za-z]))(?!=)")
_SUFFIX = re.compile(r"(?<![<>=])=\s*[A-Za-z]$")


def last_box(text: str) -> tuple[int, int] | None:
    """(start, end) of the content of the last \\boxed{...} whose braces balance within a few hundred characters."""
    for place in backwards(text, ("\\boxed", "\\fbox"), MAX_BOXES):
        opening = _BOX.match(text, place, min(len(text), place + 20))
        if opening is None and (bare := _BARE_BOX.match(text, place)):
            return bare.span(bare.lastindex)
        depth, limit = 1, place + 2 * MAX_ANSWER
        for brace in _BRACE.finditer(text, opening.end(), limit) if opening else ():
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return opening.end(), brace.start()
    return None


def undress(text: str, lists: bool = True) -> str:
    """The answer without what does not change it, in the few spellings that `mathematics.py` knows; with `lists`, "1 and 2" as
    "1, 2". Applied twice it does no more."""
    if not text.isascii():
        text = "".join(_SYMBOLS.get(c, c) if c in _SYMBOLS else quantity.ascii_of(c) for c in text)
    text = _AND.sub(", ", text.strip()) if lists else text.strip()
    bracketed = text[:1] in "([" or text.startswith("\\")
    grouped = _GROUPED if bracketed and not text.startswith(("\\$", "\\(", "\\[")) else _THOUSANDS
    text = grouped.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = units.spell(text)
    text = _TEXT.sub(r" \1 ", text)
    text = _DRESS.sub(" ", text)
    text = text if "\\begin" in text else _BETWEEN.sub(", ", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling if spelling is not None else _mixed, text)
    text = " ".join(text.split()).strip("\"'`").rstrip(".,; ")
    if text.startswith("{") and text.endswith("}") and closes(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text if text.count("=") > 1 else without_name(text)


def without_name(text: str) -> str:
    """Without "x =" before it or "= x" behind it."""
    short = _PREFIX.sub("", text)
    return (_SUFFIX.sub("", text) if short == text else short).strip()


def _mixed(found: re.Match) -> str:
    whole, top, bottom = [group for group in found.groups() if group is not None]
    # "5 6/2" is no mixed number
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else found[0]


def closes(text: str, start: int) -> int:
    """Where the bracket at `start` closes, whatever its kind; -1 if it does not."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def split(text: str, separator: str) -> list[str]:
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
