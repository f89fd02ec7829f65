"""Matcher `math`: answers written in LaTeX, the last \\boxed{...} of a response; equal if they are the same mathematics.

What is read is the last \\boxed or \\fbox whose braces balance, or that stands before a number or letter (\\boxed 5); in a response without one,
the rest of the line after "Therefore, the answer is:". From it goes what is only dress: $, \\left, spaces, \\text{}, a final dot, "x =" before it,
thousands separators. Keys and agreement are those of `mathematics.py`: integers are exact, a decimal may be rounded, a unit may be
missing but be no other. A gold answer may stand in its box.

Where keys do not agree, and both are made of expressions in the same brackets, `proof` writes a program that asks sympy, to be run in the
sandbox: sympy's own reader evaluates what it reads as code, so it never gets a text. The program holds nothing but names, numbers and
operators that were read and printed here.
"""

from reft_jax.rewards.matchers import sentence
from reft_jax.rewards.matchers.base import NOTHING, Found, Matcher, found
from reft_jax.rewards.matchers.dress import last_box
from reft_jax.rewards.matchers.mathematics import agree, bare, proof


def find(text: str, kind: str) -> Found:
    place = last_box(text)
    if place is None and (place := sentence.closing(text)) is not None:
        line = text.find("\n", *place)
        place = place if line < 0 else (place[0], line)
    return found(bare(text[slice(*place)], kind), *place) if place else NOTHING


MATCHER = Matcher(
    about="the last \\boxed{}, LaTeX or plain: equal if it is the same mathematics (sympy, in the sandbox, where keys differ)",
    kinds=("number", "choice", "expression"),
    find=find,
    bare=bare,
    gold=bare,
    agree=agree,
    proof=proof,
)
