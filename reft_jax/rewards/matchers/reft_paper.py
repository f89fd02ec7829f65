"""Matcher `reft_paper`: what the ReFT authors' code reads after the last "Therefore, the answer is:" (arXiv 2401.08967).

That is what `float()` takes, and for a choice the remainder in lower case without quotes; a program is cut at its first blank line, and
None that it returns is the choice "none". Keys and gold answers are those of `reft`. It is stricter than their code in two points: without
the sentence there is no answer (they try the whole text, and pay a bare "42"), and NaN is none (they pay it as a wrong answer).
"""

from reft_jax.rewards.matchers import sentence
from reft_jax.rewards.matchers.base import Matcher


def bare(answer: str, kind: str) -> str | None:
    if kind == "number":
        return sentence.number_key(sentence.strict_number(answer))
    return answer.lower().replace('"', "").replace("'", "").strip() or None


def program(response: str) -> str:
    """The lines before the first that is empty or all space."""
    lines = response.strip("\n").split("\n")
    blank = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
    return "\n".join(lines[:blank])


MATCHER = Matcher(
    about="the ReFT authors' code: what float() takes after the same words",
    kinds=("number", "choice"),
    find=sentence.find_with(bare),
    bare=bare,
    gold=sentence.bare,
    agree=sentence.agree,
    program=program,
    none_counts=("choice",),
)
