"""What the matchers `gsm8k_strict` and `gsm8k_flexible` share: the two scores of lm-evaluation-harness's task gsm8k (version 3.0).

There a response ends before "Question:" or an end-of-turn mark. Of what either reads in it, commas and dollars and one final dot are
dropped, and what is left is compared with the gold answer as text: "18.0", "18.50" and "007" are not 18, 18.5 and 7, and have keys (and
votes) of their own.

The gold answer is spelled as GSM8K spells it: a whole number without decimals ("72.0" in other files is 72). The harness runs no programs; what
one returns is spelled like a gold answer, so that 18.0 is 18.

Source: github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/gsm8k/gsm8k.yaml and lm_eval/filters/extraction.py.
"""

from reft_jax.rewards.matchers.base import MAX_ANSWER
from reft_jax.rewards.matchers.sentence import strict_number

STOPS = ("Question:", "</s>", "<|im_end|>")


def bare(answer: str, kind: str) -> str | None:
    """A gold answer, or what a program returned: a whole number has no decimals."""
    text = clean(answer.rpartition("#### ")[2].strip())
    value = strict_number(text) if text else None
    if value is None:
        return None
    return f"{value:.0f}" if value == int(value) and abs(value) < 2**53 else text


def agree(key: str, gold: str, kind: str) -> bool:
    return key == bare(gold, kind)


def end(text: str) -> int:
    """Where the harness would have stopped generating."""
    return min((place for stop in STOPS if (place := text.find(stop)) >= 0), default=len(text))


def clean(answer: str) -> str | None:
    """The key of what was read; None if it holds no digit."""
    if len(answer) > 2 * MAX_ANSWER:
        return None
    answer = answer.replace(",", "").replace("$", "").removesuffix(".")
    return answer if any("0" <= character <= "9" for character in answer) else None
