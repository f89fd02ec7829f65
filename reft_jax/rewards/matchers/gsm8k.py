"""Matchers `gsm8k_strict` and `gsm8k_flexible`: the two scores of lm-evaluation-harness's task gsm8k (version 3.0).

There a response ends before "Question:" or an end-of-turn mark. strict-match takes what follows the first "#### " in it,
flexible-extract its last number: the last run of two or more of the characters $ 0-9 . , or else of digits, with a minus before it. Of
that, commas and dollars and one final dot are dropped, and what is left is compared with the gold answer as text: "18.0", "18.50" and "007"
are not 18, 18.5 and 7, and have keys (and votes) of their own. "50%" is 50, "$5" is 5, "3/4" is 4 to flexible-extract.

The gold answer is spelled as GSM8K spells it: a whole number without decimals ("72.0" in other files is 72). The harness runs no programs; what
one returns is spelled like a gold answer, so that 18.0 is 18.

Source: github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/gsm8k/gsm8k.yaml and lm_eval/filters/extraction.py.
"""

import re

from reft_jax.rewards.matchers.base import MAX_ANSWER, NOTHING, Found, Matcher, found
from reft_jax.rewards.matchers.reft import strict_number

STOPS = ("Question:", "</s>", "<|im_end|>")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
# The last match in a text is the first one in its mirror image: reading a megabyte from the start would find 500,000.
_FLEXIBLE_MIRRORED = re.compile(r"[$0-9.,](?:[$0-9.,]+|(?<=[0-9]))-?")


def strict(text: str, kind: str) -> Found:
    match = _STRICT.search(text, 0, _end(text))
    return found(_clean(match[1]), *match.span(1)) if match else NOTHING


def flexible(text: str, kind: str) -> Found:
    end = _end(text)
    match = _FLEXIBLE_MIRRORED.search(text[:end][::-1])
    return found(_clean(match[0][::-1]), end - match.end(), end - match.start()) if match else NOTHING


def bare(answer: str, kind: str) -> str | None:
    """A gold answer, or what a program returned: a whole number has no decimals."""
    text = _clean(answer.rpartition("#### ")[2].strip())
    value = strict_number(text) if text else None
    if value is None:
        return None
    return f"{value:.0f}" if value == int(value) and abs(value) < 2**53 else text


def agree(key: str, gold: str, kind: str) -> bool:
    return key == bare(gold, kind)


def _end(text: str) -> int:
    """Where the harness would have stopped generating."""
    return min((place for stop in STOPS if (place := text.find(stop)) >= 0), default=len(text))


def _clean(answer: str) -> str | None:
    if len(answer) > 2 * MAX_ANSWER:
        return None
    answer = answer.replace(",", "").replace("$", "").removesuffix(".")
    return answer if any("0" <= character <= "9" for character in answer) else None


STRICT, FLEXIBLE = (
    Matcher(about=about, kinds=("number",), find=find, bare=bare, gold=bare, agree=agree)
    for about, find in (
        ("lm-evaluation-harness, gsm8k strict-match: the text after the first ####", strict),
        ("lm-evaluation-harness, gsm8k flexible-extract: the last number of the text", flexible),
    )
)
