"""The ways to read an answer in a text, by name: text -> (value, status, span). `config.data.matcher` names one.

| name | reads | compares |
|---|---|---|
| reft | after "Therefore, the answer is:", leniently | numbers within 1e-2, choices by letter |
| reft_paper | there, what the ReFT authors' code takes | the same |
| gsm8k_strict | lm-evaluation-harness's strict-match: the first "#### n" | as text, without , $ and a final dot |
| gsm8k_flexible | its flexible-extract: the last number | the same |
| math | the last \\boxed{...}, LaTeX or plain, else as reft | exactly, as expressions; what is left in doubt, by sympy in the sandbox |

A value is the key that is stored, voted on and compared: equal keys are always graded alike. To add a matcher, write a `Matcher`
(base.py) in a file of its own and name it here; `tests/matcher_cases.py` is the table of what each one reads.
"""

import difflib

from reft_jax.errors import InputError
from reft_jax.rewards.matchers import boxed, gsm8k, reft
from reft_jax.rewards.matchers.base import KINDS, Found, Matcher

MATCHERS = {
    "reft": reft.REFT,
    "reft_paper": reft.PAPER,
    "gsm8k_strict": gsm8k.STRICT,
    "gsm8k_flexible": gsm8k.FLEXIBLE,
    "math": boxed.MATH,
}


def get(name: str, kind: str | None = None) -> Matcher:
    """The matcher of that name; InputError for an unknown one, an unknown kind, or a kind that it does not read."""
    if name not in MATCHERS:
        near = difflib.get_close_matches(str(name), MATCHERS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"matcher={name!r} is unknown; legal: {', '.join(MATCHERS)}{hint}")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown; legal: {', '.join(KINDS)}")
    if kind is not None and kind not in MATCHERS[name].kinds:
        raise InputError(
            f"matcher={name!r} does not read answers of kind {kind!r}; those that do: {', '.join(names(kind))}"
        )
    return MATCHERS[name]


def names(kind: str) -> list[str]:
    """The matchers that read answers of that kind."""
    return [name for name, matcher in MATCHERS.items() if kind in matcher.kinds]


def match(text: str, *, kind: str, matcher: str) -> Found:
    """(value, status, span) of a response's text by the matcher of that name. Any text will do; a megabyte takes milliseconds."""
    return get(matcher, kind).find(text, kind)
