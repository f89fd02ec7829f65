"""Matcher `gsm8k_strict`: lm-evaluation-harness's strict-match of gsm8k, the number after the first "#### " (the rest is in `gsm8k.py`)."""

import re

from reft_jax.rewards.matchers import gsm8k
from reft_jax.rewards.matchers.base import NOTHING, Found, Matcher, found

_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def find(text: str, kind: str) -> Found:
    match = _ANSWER.search(text, 0, gsm8k.end(text))
    return found(gsm8k.clean(match[1]), *match.span(1)) if match else NOTHING


MATCHER = Matcher(
    about="lm-evaluation-harness, gsm8k strict-match: the text after the first ####",
    kinds=("number",),
    find=find,
    bare=gsm8k.bare,
    gold=gsm8k.bare,
    agree=gsm8k.agree,
)
