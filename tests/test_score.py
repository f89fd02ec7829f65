"""Grades, on cases and on the real gold answers."""

import json

import pytest

from reft_jax.errors import InputError
from reft_jax.rewards import score as score_lib
from reft_jax.rewards.program import ProgramResult, VerifierError
from reft_jax.rewards.score import Grade, audit_gold, grade
from tests.tiny import shared_data

SENTENCE = "Therefore, the answer is: "
LIMITS = {"timeout_s": 0.5, "memory_mb": 128, "workers": 2}


def returns(expression: str) -> str:
    return f"def solution():\n    return {expression}"


def test_nl_answers_are_graded_by_status():
    texts = [SENTENCE + "1,000 pens", SENTENCE + "7", SENTENCE + "seven", "no sentence", "x = 1\n" + SENTENCE + "0.67"]
    assert grade("gsm8k", "nl", texts, ["1000.0", "8", "7", "7", "2/3"]) == [
        Grade("correct", "1000", True),
        Grade("wrong", "7", False),
        Grade("no_answer", None, False),
        Grade("no_answer", None, False),
        Grade("correct", "0.67", True),
    ]


def test_programs_are_graded_by_status():
    programs = [
        returns("3 * 4.001"),
        returns("13"),
        returns("None"),
        returns("1 / 0"),
        "def solution():\n    while True: pass",
        returns("len(bytearray(2 ** 40))"),
        returns("open('/etc/passwd').read()"),
        returns("'12 pens'"),
        "def solution():",
        returns("sympy.Rational(24, 2)"),
    ]
    grades = grade("arithmetic", "program", programs, ["12"] * len(programs), **LIMITS)
    assert grades == [
        Grade("correct", "12.003", True),
        Grade("wrong", "13", False),
        Grade("no_answer", None, False),
        Grade("error", None, False),
        Grade("timeout", None, False),
        Grade("error", None, False),
        Grade("blocked", None, False),
        Grade("correct", "12", True),
        Grade("error", None, False),
        Grade("correct", "12", True),
    ]
    assert {g.status for g in grades} <= set(score_lib.STATUSES)


def test_multiple_choice():
    texts = [SENTENCE + said for said in ("b", "(B)", "c ) 27.675", "38.0")]
    assert [g.status for g in grade("mathqa", "nl", texts, ["b"] * 4)] == ["correct", "correct", "wrong", "no_answer"]
    programs = [returns("'B'"), returns("'a'"), returns("38.0"), returns("None")]
    assert [g.status for g in grade("mathqa", "program", programs, ["b"] * 4, **LIMITS)] == ["correct", "wrong"] + [
        "no_answer"
    ] * 2


def test_letters_of_equal_options_are_both_right():
    texts = [SENTENCE + said for said in ("b", "E", "c", "b or e")]
    golds = ["b or e"] * 4
    assert [g.status for g in grade("mathqa", "nl", texts, golds)] == ["correct", "correct", "wrong", "no_answer"]
    with pytest.raises(InputError, match="gold answer 0 of mathqa is 'b or f'"):
        grade("mathqa", "nl", texts[:1], ["b or f"])


def test_the_authors_matcher():
    texts = [SENTENCE + said for said in ("5", "5 apples", "$5")]
    assert [g.status for g in grade("svamp", "nl", texts, ["5"] * 3, matcher="reft_paper")] == [
        "correct",
        "no_answer",
        "no_answer",
    ]
    # Cut at the first blank line; text is no number; a missing choice is the answer "none", which is paid as a wrong one.
    programs = [returns("5") + "\n\nand so on", returns("'5 apples'")]
    assert [g.status for g in grade("svamp", "program", programs, ["5"] * 2, matcher="reft_paper", **LIMITS)] == [
        "correct",
        "no_answer",
    ]
    assert grade("svamp", "program", programs[:1], ["5"], **LIMITS)[0].status == "error"
    none = grade("mathqa", "program", [returns("None")], ["b"], matcher="reft_paper", **LIMITS)
    assert none == [Grade("wrong", "none", False)]


def test_equal_programs_run_once(monkeypatch):
    seen = []

    def run(programs, **limits):
        seen.append(list(programs))
        return [ProgramResult("ok", "5")] * len(programs)

    monkeypatch.setattr(score_lib, "run_programs", run)
    grades = grade("svamp", "program", ["p", "q", "p", "p"], ["5", "5", "6", "5"])
    assert seen == [["p", "q"]] and [g.correct for g in grades] == [True, True, False, True]


def test_programs_that_ran_ahead_are_not_run_again(monkeypatch):
    ran = []

    def watched(programs, **limits):
        ran.extend(programs)
        assert limits == LIMITS
        return [ProgramResult("ok", program[-1]) for program in programs]

    monkeypatch.setattr(score_lib, "run_programs", watched)
    ahead = score_lib.Ahead(matcher="reft_paper", **LIMITS)
    for _ in range(2):  # it begins anew after each use
        programs = ["1\n\nprint(7)", "2", "1", "3"]
        for program in programs[:3]:
            ahead.add(program)
        grades = grade("svamp", "program", programs, ["1", "1", "1", "3"], matcher="reft_paper", ahead=ahead, **LIMITS)
        assert [g.extracted for g in grades] == ["1", "2", "1", "3"] and sorted(ran) == ["1", "2", "3"]
        assert ahead.hidden_s >= 0
        ran.clear()
    assert grade("svamp", "program", ["4"], ["4"], matcher="reft_paper", ahead=ahead, **LIMITS)[0].correct


def test_a_failure_ahead_is_raised_where_the_grades_are_asked_for(monkeypatch):
    def broken(programs, **limits):
        if programs:
            raise VerifierError("no processes left")
        return []

    monkeypatch.setattr(score_lib, "run_programs", broken)
    ahead = score_lib.Ahead(**LIMITS)
    ahead.add("1")
    with pytest.raises(VerifierError, match="no processes left"):
        grade("svamp", "program", ["1"], ["1"], ahead=ahead, **LIMITS)


def test_ahead_gives_what_grading_at_once_gives():
    programs = [returns(str(i % 7)) for i in range(30)] + ["def solution():\n    while True: pass", "nonsense("]
    golds, limits = ["3"] * len(programs), LIMITS | dict(timeout_s=3.0)  # a busy machine may hold up an honest one
    ahead = score_lib.Ahead(**limits)
    for program in programs:
        ahead.add(program)
    assert grade("svamp", "program", programs, golds, ahead=ahead, **limits) == grade(
        "svamp", "program", programs, golds, **limits
    )


def test_a_verifier_failure_is_not_a_reward_of_zero(monkeypatch):
    """Defect: an exception of the verifier counted as reward 0."""
    fault = ProgramResult("error", None, "verifier: lost two servers")

    def run(num_faults):
        monkeypatch.setattr(
            score_lib,
            "run_programs",
            lambda programs, **limits: [fault] * num_faults + [ProgramResult("ok", "5")] * (20 - num_faults),
        )
        return grade("svamp", "program", [f"p{i}" for i in range(20)], ["5"] * 20)

    assert [g.status for g in run(2)] == ["error"] * 2 + ["correct"] * 18
    with pytest.raises(VerifierError, match="3 of 20 .* lost two servers"):
        run(3)


def test_votes_and_grades_agree_on_equal_keys():
    """Defect: votes that count "42" and "42.0" apart."""
    grades = grade("gsm8k", "nl", [SENTENCE + said for said in ("42", "42.0", "$42.00", "42.")], ["42"] * 4)
    assert {g.extracted for g in grades} == {"42"} and all(g.correct for g in grades)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("svmp", "nl", [], []),
            "'svmp' is no file of tasks; did you mean 'svamp'.*legal are arithmetic, gsm8k, math, mathqa, mathqa-numeric, ",
        ),
        (("svamp", "python", [], []), "cot='python' is unknown; legal: nl, program"),
        (("svamp", "nl", [SENTENCE], ["five"]), "gold answer 0 of svamp is 'five'"),
        (("mathqa", "nl", [SENTENCE], ["38"]), "gold answer 0 of mathqa is '38'"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        grade(*arguments)


def test_bad_matcher_and_lengths_are_named():
    with pytest.raises(InputError, match="'exact' is no file of rewards/matchers; legal are auto, gsm8k_flexible, "):
        grade("svamp", "nl", [], [], matcher="exact")
    with pytest.raises(ValueError, match="1 texts but 0 golds"):
        grade("svamp", "nl", ["x"], [])


def test_audit_names_the_gold_that_does_not_grade_correct():
    programs = [returns("5"), returns("6"), "def solution():\n    return x"]
    found = audit_gold("svamp", "program", programs, ["5.0"] * 3, ["a", "b", "c"], **LIMITS)
    assert found == [("b", Grade("wrong", "6", False)), ("c", Grade("error", None, False))]


@pytest.mark.parametrize("matcher", ["reft", "reft_paper"])
def test_real_gold_grades_correct(matcher):
    def rows(name):
        return json.loads((shared_data() / name).read_text())

    def audit(task, cot, records, text):
        texts, golds, ids = zip(*((text(r), r["answer_value"], r["item_id"]) for r in records), strict=True)
        # A busy machine can hold up one process for seconds.
        return audit_gold(task, cot, texts, golds, ids, matcher=matcher, timeout_s=20.0)

    def sentence(record):
        return f"{record.get('answer_cot', '')}\n{SENTENCE}{record['answer_value']}"

    programs = rows("svamp_python_sdp.json")
    # All of them with the default matcher, every fifth with the other one: time.
    assert audit("svamp", "program", programs[:: 1 if matcher == "reft" else 5], lambda r: r["answer_cot"]) == []
    assert audit("svamp", "nl", rows("svamp_nl.json"), sentence) == []
    for task in ("svamp", "gsm8k", "mathqa", "mathqa-numeric"):
        assert audit(task, "nl", rows(f"{task}_test_set.json"), sentence) == []
    shifted = [r | {"answer_value": str(float(r["answer_value"]) + 1)} for r in programs[:50]]
    assert len(audit("svamp", "program", shifted, lambda r: r["answer_cot"])) == 50
