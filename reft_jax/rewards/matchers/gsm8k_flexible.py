"""Matcher `gsm8k_flexible`: lm-evaluation-harness's flexible-extract of gsm8k, a response's last number (the rest is in `gsm8k.py`).

That is the last run of two or more of the characters $ 0-9 . , or else of digits, with a minus before it: "50%" is 50, "$5" is 5,
"3/4" is 4.
Whatever is said of that number, it is the answer: "The answer is definitely not 42." is 42 there, and so it is here; `auto` reads none.
"""

import re

from reft_jax.rewards.matchers import gsm8k
from reft_jax.rewards.matchers.base import NOTHING, Found, Matcher, found

# The last match in a text is the first one in its mirror image: reading a megabyte from the start would find 500,000.
_MIRRORED = re.compile(r"[$0-9.,](?:[$0-9.,]+|(?<=[0-9]))-?")


def find(text: str, kind: str) -> Found:
    end = gsm8k.end(text)
    match = _MIRRORED.search(text[:end][::-1])
    return found(gsm8k.clean(match[0][::-1]), end - match.end(), end - match.start()) if match else NOTHING


MATCHER = Matcher(
    about="lm-evaluation-harness, gsm8k flexible-extract: the last number of the text",
    kinds=("number",),
    find=find,
    bare=gsm8k.bare,
    gold=gsm8k.bare,
    agree=gsm8k.agree,
)
