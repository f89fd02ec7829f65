"""The ways to read an answer in a text: text -> (value, status, span). `config.data.matcher` names one.

One file is one matcher: it defines MATCHER, a `Matcher` (base.py) of pure functions, and its docstring says what it reads and takes for
equal; files without a MATCHER are what matchers share. A value is the key that is stored, voted on and compared: equal keys are always
graded alike, and keys that agree both ways vote for each other (`same`). To add a matcher, write such a file here, or anywhere and name its
path (my.py); `tests/matcher_cases.py` is the table of what each one reads.
"""

import functools
from collections.abc import Callable

from reft_jax.config import choices
from reft_jax.errors import InputError
from reft_jax.rewards.matchers.base import KINDS, Found, Matcher

ROOM = "rewards/matchers"


def get(name: str, kind: str | None = None) -> Matcher:
    """The matcher of that name, or of the user's own file of that path; InputError for an unknown one, an unknown kind, or a kind that it
    does not read."""
    matcher = choices.load(ROOM, name) if choices.is_path(name) else _shipped(name)
    if not isinstance(matcher, Matcher):
        raise InputError(f"{name}: MATCHER is {matcher!r}; it must be a Matcher (reft_jax/rewards/matchers/base.py)")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown; legal: {', '.join(KINDS)}")
    if kind is not None and kind not in matcher.kinds:
        raise InputError(
            f"matcher={name!r} does not read answers of kind {kind!r}; those that do: {', '.join(names(kind))}"
        )
    return matcher


@functools.cache
def _shipped(name: str) -> Matcher:
    """Looked up once: monitors ask for every response."""
    return choices.load(ROOM, name)


def names(kind: str) -> list[str]:
    """The matchers that read answers of that kind."""
    return [name for name in choices.names(ROOM) if kind in _shipped(name).kinds]


def match(text: str, *, kind: str, matcher: str) -> Found:
    """(value, status, span) of a response's text by the matcher of that name. Any text will do; a megabyte takes milliseconds."""
    return get(matcher, kind).find(text, kind)


def same(name: str, kind: str) -> Callable[[str, str], bool]:
    """Whether two keys of that matcher are one answer, for votes: whether each is right where the other is gold."""
    rule = get(name, kind)
    return lambda a, b: a == b or (rule.agree(a, b, kind) and rule.agree(b, a, kind))
