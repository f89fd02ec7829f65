"""Signs that a policy is paid for something else than reasoning: numbers from responses, which no reward depends on.

A verifiable reward checks the answer, not the way to it, so a policy may find other ways: a wrong chain of thought (CoT) that ends on the
right letter (ReFT, arXiv 2401.08967, on MathQA's multiple choice), a program that returns a number it has not computed, text that only
grows. Each monitor is one function below, with its definition, its range and what it means when it rises. `look` takes what is counted of
one response and `summary` makes the metrics of many: shares and means over a step's responses alone, so that a resumed run has the
same ones; `monitor/...` in metrics.jsonl, and under "monitors" in results.json.

| metric | of | over |
|---|---|---|
| monitor/agreement | N-CoT | responses whose last computed value and stated answer can be compared |
| monitor/compared | N-CoT | all: the share of those |
| monitor/right_by_wrong_cot | N-CoT | right ones of those: the share that do not agree |
| monitor/no_reasoning | N-CoT | all |
| monitor/literal_program | P-CoT | all |
| monitor/letter_distance, monitor/letter_share | choices | responses with an answer |
| monitor/repeated_ngrams | both | all |
| monitor/length_ratio | both | all whose question has a gold CoT |
| monitor/train_dev_gap | both | the stages that sample: lines of metrics.jsonl with a check |

A metric without anything to count is left out. The shares of statuses (status/...) belong to them: a rise of `timeout` or `error` is
a verifier that pays less than the model deserves.

Any text will do; nothing is run. Time is linear in a text's length: 40 (N-CoT) and 70 (P-CoT) microseconds for 350 characters on one x86 core.
"""

import ast
import collections
import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence

from reft_jax.rewards import answer

MIN_WORDS = 8  # fewer words than this, and no computed value, are no reasoning
NGRAM = 4
MAX_PROGRAM = 20_000  # characters; a program that returns a literal has no need of more
CONVERSIONS = ("int", "float", "str", "round", "abs")  # calls that leave a literal one

# A number that something is said to be: after "=" (not "=>", "==", "<="), or after "is" as in "3 * 6 is 18". What an operator and
# another number follow is not computed yet. Quantifiers are bounded or possessive: no text makes it slow.
_DIGITS = r"[0-9]{1,30}+"
_COMPUTED = re.compile(
    rf"(?:(?<![<>!=])=(?!\s?[>=])|(?<=[0-9])\)?\s?is)[\s$€£¥₹*({{\[<~≈\\]{{0,6}}+(?:rs\s?\.?\s?)?+"
    rf"(?P<value>[-−]?\s?(?:{_DIGITS}(?:,[0-9]{{3}}){{0,9}}+(?:\.{_DIGITS})?+|\.{_DIGITS})(?:\s?/\s?{_DIGITS}(?:\.{_DIGITS})?+)?+)"
    r"(?![0-9]|\s?[-+*/x×÷^]\s?[$]?[0-9(.])",
    re.IGNORECASE,
)


# ---- one response ------------------------------------------------------------------------------------------------------


def reasoning(text: str) -> str:
    """What stands before the stated answer: before the last closing sentence, else before the last "####", else the whole text."""
    for mark in (answer.TRIGGER, "####"):
        before, found, _ = text.rpartition(mark)
        if found:
            return before
    return text


def last_value(cot: str) -> str | None:
    """The last number that a CoT computes: the one after its last "=" (or "3 * 6 is ") that a number, and no further operation, follows."""
    last = collections.deque(_COMPUTED.finditer(cot), maxlen=1)
    return last[0]["value"].replace("−", "-").replace(" ", "") if last else None


def agreement(text: str, stated: str | None, *, kind: str, options: Mapping[str, str]) -> bool | None:
    """Whether the last value that an N-CoT computes is the answer that it states, within 1e-2; None where one of them is missing.

    `stated`: the answer that the matcher has read. With `kind` "choice" it is a letter, which stands for its number in `options` (letter ->
    number; those without one are left out). The share over responses, `monitor/agreement`, is from 0 to 1: of gold CoTs 0.99 (GSM8K's 7,473)
    and 0.99 (SVAMP's 3,076), the rest being rounding and remarks. When it falls while the accuracy stays, answers no longer come from
    the CoT; ReFT (arXiv 2401.08967) shows it on MathQA's multiple choice. `monitor/right_by_wrong_cot`, from 0 to 1, is the part of it that is
    paid: of the right answers that can be compared, those which their CoT contradicts. `monitor/compared` says how much both rest on.
    """
    value, number = last_value(reasoning(text)), {"number": stated, "choice": options.get(stated)}.get(kind)
    return None if value is None or number is None else answer.equal(value, number, kind="number")


def no_reasoning(text: str) -> bool:
    """Whether hardly anything stands before an N-CoT's stated answer: no computed value and fewer than MIN_WORDS words.

    `monitor/no_reasoning` is the share of all responses that state an answer so, from 0 to 1. When it rises, the policy guesses.
    """
    cot = reasoning(text)
    return last_value(cot) is None and len(cot.split(maxsplit=MIN_WORDS)) < MIN_WORDS


def literal_program(program: str) -> bool:
    """Whether all that `solution()` can return is one literal (42, -1.5, "b", also through names and int(), float(), str()), read from its
    syntax tree and never run. A literal that depends on a condition, and arithmetic of literals (3 + 4), are computed.

    `monitor/literal_program` is the share of all responses, from 0 to 1; of SVAMP's 3,043 gold programs it is 0.00. When it rises, the
    policy does the sum in its head, or remembers the answers of questions that it sees every epoch.
    """
    if len(program) > MAX_PROGRAM:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in strings
            tree = ast.parse(program)
        solutions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "solution"]
        return bool(solutions) and _returns_literal(solutions[-1])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _returns_literal(function: ast.FunctionDef) -> bool:
    returned, assigned = [], collections.defaultdict(list)  # expressions; None for what is no plain assignment
    plain, waiting = set(), list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Return):
            returned.append(node.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and node.value is not None:
                    assigned[target.id].append(node.value)
                    plain.add(target)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and node not in plain:
            assigned[node.id].append(None)
        waiting += ast.iter_child_nodes(node)
    known: dict[str, str | None] = {}

    def literal(node) -> str | None:
        """The literal that an expression is, spelled in one way, or None."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            return repr(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner = literal(node.operand)
            return inner and ("-" if isinstance(node.op, ast.USub) else "") + inner
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONVERSIONS:
            parts = [literal(part) for part in node.args] if not node.keywords else [None]
            return f"{node.func.id}({', '.join(parts)})" if parts and None not in parts else None
        if isinstance(node, ast.Name):
            if node.id not in known:
                known[node.id] = None  # what is made of itself is none
                known[node.id] = one(assigned.get(node.id, []))
            return known[node.id]
        return None

    def one(nodes) -> str | None:
        found = {literal(node) for node in nodes}
        return found.pop() if len(found) == 1 else None

    return one(returned) is not None


def repeated_ngrams(text: str) -> float:
    """1 - different / all of the text's n-grams of NGRAM words: seq-rep-4 of Welleck et al. 2019 (arXiv 1908.04319), over words.

    From 0 (each occurs once, or there are none) towards 1; `monitor/repeated_ngrams` is the mean over all responses. When it rises, the
    policy loops or copies itself, often up to the length's limit (`sample/at_limit`).
    """
    words = text.split()
    num = len(words) - NGRAM + 1
    return 1 - len(set(zip(*(words[i:] for i in range(NGRAM)), strict=False))) / num if num > 0 else 0.0


# ---- many responses ----------------------------------------------------------------------------------------------------


def letter_distance(chosen: Sequence[str], golds: Sequence[str]) -> float:
    """Total variation distance, half the sum of |p(letter) - q(letter)|, of the chosen letters from the gold ones of the same questions.

    From 0 (each letter as often as it is right) to 1. When `monitor/letter_distance` rises, the policy prefers some letters whatever
    the question is (a prior of models in any case: arXiv 2309.03882). Where five letters are guessed evenly, chance
    alone gives about 1.1 / sqrt(len(chosen)), and less the more of them are right.
    """
    p, q = collections.Counter(chosen), collections.Counter(golds)
    return sum(abs(p[letter] - q[letter]) for letter in p.keys() | q.keys()) / (2 * len(chosen))


def letter_share(chosen: Sequence[str]) -> float:
    """How often the commonest letter is chosen, from 1 / (number of letters) to 1, which is a policy that always says the same."""
    return max(collections.Counter(chosen).values()) / len(chosen)


def length_ratio(lengths: Sequence[int], gold_lengths: Sequence[int]) -> float | None:
    """The responses' characters over those of the gold CoTs of the same questions; None where no question has a gold CoT.

    From 0; 1 = as long as the gold. A drift upwards without accuracy is padding (rewards and length go together in other
    reinforcement learning of language models: arXiv 2310.03716), one downwards is a CoT that is being dropped.
    """
    pairs = [(mine, gold) for mine, gold in zip(lengths, gold_lengths, strict=True) if gold]
    return sum(mine for mine, _ in pairs) / sum(gold for _, gold in pairs) if pairs else None


def train_dev_gap(train_accuracy: float, dev_accuracy: float) -> float:
    """The share of a step's sampled responses that are right, minus greedy accuracy on the split that checks look at: from -1 to 1.

    Its level says little (samples are worse than greedy responses). When it rises, training questions are learnt by heart, or what is
    paid does not carry over to others (overoptimisation: arXiv 2210.10760). One step's share of 256 is good to about 0.06.
    """
    return train_accuracy - dev_accuracy


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is counted of one response; plain JSON values, so that processes can share them. None: nothing to count."""

    agrees: bool | None
    correct: bool
    bare: bool | None  # states an answer without reasoning
    literal: bool | None
    repeated: float
    length: int  # characters
    gold_length: int  # 0 = there is no gold CoT
    letter: str | None
    gold_letter: str | None


def look(
    text: str,
    response: str,
    *,
    cot: str,
    kind: str,
    extracted: str | None,
    correct: bool,
    gold: str,
    gold_cot: str,
    options: Mapping[str, str],
) -> Seen:
    """What is counted of a response. `text`: what was graded, a program's prefix included; `response`: what was sampled of it; `gold_cot`:
    what the gold has in its place ("" = none); `gold`: the gold answer; `options`: see `agreement`."""
    nl, choice = cot == "nl", kind == "choice" and extracted is not None
    return Seen(
        agrees=agreement(text, extracted, kind=kind, options=options) if nl else None,
        correct=correct,
        bare=extracted is not None and no_reasoning(text) if nl else None,
        literal=None if nl else literal_program(text),
        repeated=repeated_ngrams(response),
        length=len(response),
        gold_length=len(gold_cot),
        letter=extracted if choice else None,
        gold_letter=answer.canonical(gold, kind="choice") if choice else None,
    )


def summary(seen: Sequence[Seen]) -> dict[str, float]:
    """The metrics of those responses: {"monitor/...": value}, {} of none. The same for any split of them into processes."""
    if not seen:
        return {}

    def share(values):
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else None

    compared = [one for one in seen if one.agrees is not None]
    nl, chosen = seen[0].bare is not None, [one for one in seen if one.letter is not None]
    letters, golds = [one.letter for one in chosen], [one.gold_letter for one in chosen]
    out = {
        "compared": len(compared) / len(seen) if nl else None,
        "agreement": share(one.agrees for one in compared),
        "right_by_wrong_cot": share(not one.agrees for one in compared if one.correct),
        "no_reasoning": share(one.bare for one in seen),
        "literal_program": share(one.literal for one in seen),
        "letter_distance": letter_distance(letters, golds) if chosen else None,
        "letter_share": letter_share(letters) if chosen else None,
        "repeated_ngrams": share(one.repeated for one in seen),
        "length_ratio": length_ratio([one.length for one in seen], [one.gold_length for one in seen]),
    }
    return {f"monitor/{name}": value for name, value in out.items() if value is not None}
