"""Answers in text: find the one a response states, give it one canonical spelling, compare two of them.

The canonical spelling is at once what is stored, what is voted on and what is compared with the gold answer. So with the
matcher `reft` "42", "42.0" and "$42.00001" are one key; with every matcher two responses with equal keys are graded alike. Different keys
that agree (6.67 and 6.667) vote for each other: `matchers.same`, `estimates.weighted_majority`.
What each matcher reads and what it takes for equal is written in `rewards/matchers`.

Any text will do: it is searched once, regular expressions see at most a few hundred characters of it or take linear time, and a
text of a megabyte takes milliseconds.
"""

from reft_jax.rewards import matchers
from reft_jax.rewards.matchers.sentence import TRIGGER as TRIGGER

KINDS = matchers.KINDS


def extract(text: str, *, kind: str, matcher: str) -> str | None:
    """The canonical answer of a response's text, or None where there is none.

    `kind`: "number", "choice" (a letter a-e) or "expression". `matcher`: a file of `rewards/matchers`, or the path of one of your own. Time
    is linear in the length of `text`. Unknown names, and a matcher that does not read that kind, raise InputError.
    """
    return matchers.match(text, kind=kind, matcher=matcher).value


def canonical(answer: str, *, kind: str, matcher: str = "reft") -> str | None:
    """The canonical spelling of a bare answer ("$1,000." -> "1000", "(B)" -> "b"); None if it is none of that kind."""
    return matchers.get(matcher, kind).bare(answer, kind)


def equal(a: str | None, b: str | None, *, kind: str, matcher: str = "reft") -> bool:
    """Whether the key `a` agrees with the answer `b`. `reft`: numbers within 1e-2 absolute, choices by lower-case letter.

    None, NaN, infinities and what is not of that kind agree with nothing.
    """
    return matchers.get(matcher, kind).agree(a, b, kind) if a is not None and b is not None else False
