"""From responses to grades: `grade` (text -> Grade), `audit_gold`. What a grade is paid, `total.py` says.

Unusual: every grade carries a status, so that a program that timed out, one that failed and one that was refused are told
apart from a wrong answer; and a fault of the verifier itself stops the run instead of paying 0.
"""

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Sequence

from reft_jax.config import choices
from reft_jax.errors import InputError
from reft_jax.rewards import matchers
from reft_jax.rewards.program import ProgramResult, VerifierError
from reft_jax.rewards.program import run_as_written as run_programs  # a matcher says what to run of a response

COTS = ("nl", "program")
STATUSES = ("correct", "wrong", "no_answer", "timeout", "error", "blocked")
MAX_VERIFIER_FAILURES = 0.1


@dataclasses.dataclass(frozen=True)
class Grade:
    """What became of one response.

    `status`: one of STATUSES (a program out of memory counts as "error"). `extracted`: the canonical answer, the key
    for votes, by the matcher; None unless the status is "correct" or "wrong". `correct`: whether it equals the gold answer.
    """

    status: str
    extracted: str | None
    correct: bool


class Ahead:
    """Runs programs in a thread of its own while more of them are still being sampled.

    `add` hands over a response's program; `grade(..., ahead=...)` waits for all of them and begins anew. Equal programs are run
    once. The settings are those of `grade`, which must be called with the same.
    """

    def __init__(self, *, matcher: str = "reft", timeout_s: float = 2.0, memory_mb: int = 512, workers: int = 0):
        self._matcher = matchers.get(matcher)
        self._limits = dict(timeout_s=timeout_s, memory_mb=memory_mb, workers=workers)
        self._waiting, self._ran, self._failed = queue.Queue(), {}, None
        self._added: set[str] = set()
        self._busy_s = 0.0
        self.hidden_s = 0.0  # of the last `grade`: how long programs ran before anyone waited for them

    def add(self, text: str) -> None:
        if not self._added:  # a daemon, so that an interrupted run does not wait for it
            threading.Thread(target=self._work, daemon=True).start()
        source = self._matcher.program(text)
        if source not in self._added:
            self._added.add(source)
            self._waiting.put(source)

    def _work(self) -> None:
        while (source := self._waiting.get()) is not None:
            bundle = [source]
            while not self._waiting.empty() and self._waiting.queue[0] is not None:
                bundle.append(self._waiting.get())
            began = time.monotonic()
            try:
                self._ran |= dict(zip(bundle, run_programs(bundle, **self._limits), strict=True))
            except Exception as error:  # raised where the results are asked for
                self._failed = error
            self._busy_s += time.monotonic() - began
            for _ in bundle:
                self._waiting.task_done()
        self._waiting.task_done()

    def take(self) -> dict[str, ProgramResult]:
        """What became of every program since the last call; waits for those that still run."""
        began = time.monotonic()
        if self._added:
            self._waiting.put(None)
            self._waiting.join()
        self.hidden_s = max(self._busy_s - (time.monotonic() - began), 0.0)
        ran, failed, self._ran, self._failed, self._added, self._busy_s = self._ran, self._failed, {}, None, set(), 0.0
        if failed is not None:
            raise failed
        return ran


def grade(
    task: str,
    cot: str,
    texts: Sequence[str],
    golds: Sequence[str],
    *,
    matcher: str = "reft",
    max_verifier_failures: float = MAX_VERIFIER_FAILURES,
    timeout_s: float = 2.0,
    memory_mb: int = 512,
    workers: int = 0,
    ahead: Ahead | None = None,
    ran: dict[str, ProgramResult] | None = None,
) -> list[Grade]:
    """Grades responses (`cot` "nl": text with the closing sentence; "program": the whole program) against gold answers.

    `texts` and `golds` are parallel. `task`, `matcher`: files of `tasks` and of `rewards/matchers`, or paths of your own; what a program returns
    is matched by the matcher's rule for bare answers, and "reft_paper" also cuts a program at its first blank line, and for a choice takes a None
    returned for the answer "none", as the authors do. A gold choice "b or e" is either letter: a question may have equal options. Equal programs
    are run once; so are those with which "math" asks sympy whether two expressions are equal. Unknown names and gold answers that are none raise
    InputError; VerifierError, which holds the programs, when more than the share `max_verifier_failures` of them fail for a reason that is not
    theirs. `timeout_s`, `memory_mb`, `workers`: see `run_programs`; programs that `ahead` has run are not run again, nor those in `ran`, which
    gets what was run here.
    """
    kind = answer_kind(task)
    if cot not in COTS:
        raise InputError(f"cot={cot!r} is unknown; legal: {', '.join(COTS)}")
    rule = matchers.get(matcher, kind)
    if len(texts) != len(golds):
        raise ValueError(f"{len(texts)} texts but {len(golds)} golds: they must be parallel")
    for i, gold in enumerate(golds):
        if any(rule.gold(one, kind) is None for one in _alternatives(gold, kind)):
            raise InputError(
                f"gold answer {i} of {task} is {gold!r}: not {a_kind(kind)}; correct or remove that record"
            )
    limits = dict(timeout_s=timeout_s, memory_mb=memory_mb, workers=workers)
    ran = {} if ran is None else ran

    def run(sources: Sequence[str]) -> list[ProgramResult]:
        left = [source for source in dict.fromkeys(sources) if source not in ran]
        ran.update(zip(left, run_programs(left, **limits), strict=True))
        _check_verifier(sources, ran, max_verifier_failures)
        return [ran[source] for source in sources]

    if cot == "nl":
        outcomes = [("ok", rule.find(text, kind).value) for text in texts]
    else:
        if ahead is not None:
            ran.update(ahead.take())
        outcomes = [_outcome(result, kind, rule) for result in run([rule.program(text) for text in texts])]
    grades = [_grade(status, key, gold, kind, rule) for (status, key), gold in zip(outcomes, golds, strict=True)]
    if rule.proof is not None and kind == "expression":
        doubtful = [i for i, grade in enumerate(grades) if grade.status == "wrong"]
        proofs = {i: source for i in doubtful if (source := rule.proof(grades[i].extracted, golds[i])) is not None}
        for i, result in zip(proofs, run(list(proofs.values())), strict=True):
            if result.status == "ok" and result.value == "1":
                grades[i] = Grade("correct", grades[i].extracted, True)
    return grades


def audit_gold(
    task: str,
    cot: str,
    texts: Sequence[str],
    golds: Sequence[str],
    ids: Sequence[str],
    **how,
) -> list[tuple[str, Grade]]:
    """(id, grade) of the gold targets that do not grade correct: label noise, or a verifier that pays nothing. how: `grade`'s settings."""
    grades = grade(task, cot, texts, golds, **how)
    return [(item_id, g) for item_id, g in zip(ids, grades, strict=True) if not g.correct]


def answer_kind(task: str) -> str:
    """What the task's answers are: "number", "choice" or "expression". InputError for an unknown task."""
    return choices.load("tasks", task)().kind


def a_kind(kind: str) -> str:
    return f"{'an' if kind == 'expression' else 'a'} {kind}"


def _alternatives(gold: str, kind: str) -> list[str]:
    return gold.split(" or ") if kind == "choice" else [gold]


def _check_verifier(sources: Sequence[str], results: dict[str, ProgramResult], most: float) -> None:
    failed = [(source, results[source].detail) for source in sources if results[source].detail.startswith("verifier:")]
    if len(failed) > most * len(sources):
        detail, num = collections.Counter(detail for _, detail in failed).most_common(1)[0]
        text = f"{len(failed)} of {len(sources)} programs could not be judged; {num} times: {detail}"
        raise VerifierError(text, list(dict.fromkeys(failed)))


def _outcome(result: ProgramResult, kind: str, rule: matchers.Matcher) -> tuple[str, str | None]:
    if result.status == "ok":
        return "ok", rule.bare(result.value, kind)
    if result.status == "no_answer" and kind in rule.none_counts:
        return "ok", "none"
    return ("error" if result.status == "memory" else result.status), None


def _grade(status: str, key: str | None, gold: str, kind: str, rule: matchers.Matcher) -> Grade:
    if status != "ok":
        return Grade(status, None, False)
    if key is None:
        return Grade("no_answer", None, False)
    # Compared by its key, so that equal votes are graded alike.
    correct = any(rule.agree(key, one, kind) for one in _alternatives(gold, kind))
    return Grade("correct" if correct else "wrong", key, correct)
