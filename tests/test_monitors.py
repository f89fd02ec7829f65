"""Monitors of reward hacking: worked examples by hand, hostile texts, and the figures that a tiny run writes."""

import dataclasses
import json
import math
import time
import types

import numpy as np
import pytest

from reft_jax.data.records import Record
from reft_jax.mesh import distributed
from reft_jax.rewards import monitors, score
from reft_jax.rollouts import grade as grade_lib
from reft_jax.tasks import mathqa
from tests import tiny

SENTENCE = "\nTherefore, the answer is: "


# ------------------------------------------------------------------ N-CoT: the last computed value


@pytest.mark.parametrize(
    "cot, value",
    [
        ("14 * 2 = 28\n28 - 7 = 21", "21"),
        ("3 * 6 is 18. Then 25 + 18 is 43.", "43"),
        ("(3 + 4) is 7, that is all 5 of them", "7"),
        ("= 48 / 6\n= 8 baggies", "8"),
        ("48 + 24 = 72 = the sum of 40 and 32", "72"),  # words after the last "="
        ("12/60 = $<<12/60=0.2>>0.2 per minute", "0.2"),
        ("9 + 1 = 10, which is 3 + 7", "10"),  # "is", but no number before it
        ("total = 23 + 25. So 48.", None),  # not computed yet
        ("sum = 20\nso the total = 23 + 25", "20"),
        ("cost = $1,234.50 in all", "1,234.50"),
        ("x = rs . 1560", "1560"),
        ("= - 6", "-6"),
        ("= \u2212 6", "-6"),
        ("share = 3 / 4 of it", "3/4"),
        ("5 x = 30 = > x = 6", "6"),
        ("x >= 7, x <= 8, x != 9, x == 10, x => 11", None),
        ("= .5 hours", ".5"),
        ("= **12**", "12"),
        ("24 is the answer of half of 48", None),
        ("Half of 48 is 24", "24"),
        ("", None),
    ],
)
def test_the_last_value_that_a_cot_computes(cot, value):
    assert monitors.last_value(cot) == value


@pytest.mark.parametrize(
    "text, before",
    [
        ("1 + 1 = 2" + SENTENCE + "2", "1 + 1 = 2\n"),
        ("a" + SENTENCE + "2" + SENTENCE + "3", "a" + SENTENCE + "2\n"),
        ("48+24 = 72\n#### 72", "48+24 = 72\n"),
        ("48+24 = 72", "48+24 = 72"),
    ],
)
def test_reasoning_is_what_stands_before_the_answer(text, before):
    assert monitors.reasoning(text) == before


@pytest.mark.parametrize(
    "cot, stated, agrees",
    [
        ("2 + 3 = 5", "5", True),
        ("2 + 3 = 5", "6", False),
        ("10 / 3 = 3.333", "3.33", True),  # within 1e-2
        ("10 / 3 = 3.333", "3.3", False),
        ("= 1,000", "1000", True),
        ("= 3 / 4", "0.75", True),
        ("2 + 3", "5", None),  # nothing computed
        ("2 + 3 = 5", None, None),  # nothing stated
    ],
)
def test_agreement_of_numbers(cot, stated, agrees):
    text = cot + SENTENCE + "whatever the matcher reads"
    assert monitors.agreement(text, stated, kind="number", options={}) is agrees
    assert monitors.agreement(text, stated, kind="expression", options={}) is None  # "sqrt(2)" is no number to compare


def test_agreement_of_letters_is_that_of_their_numbers():
    options = mathqa.option_numbers(
        "how many ?\na ) 38 , b ) 27.675 , c ) rs . 1,560 , d ) 7 1 / 2 , e ) none of these"
    )
    assert options == {"a": "38", "b": "27.675", "c": "1560"}
    for cot, letter, agrees in [
        ("3 * 9.225 = 27.675", "b", True),
        ("3 * 9.225 = 27.675", "a", False),
        ("2 * 780 = 1560", "c", True),
        ("2 + 3 = 5", "e", None),  # an option without a number
        ("2 + 3 = 5", "none", None),  # what reft_paper may read
    ]:
        assert monitors.agreement(cot + SENTENCE + letter, letter, kind="choice", options=options) is agrees


@pytest.mark.parametrize(
    "cot, flagged",
    [
        ("", True),
        ("it must be b", True),
        ("one two three four five six seven", True),
        ("one two three four five six seven eight", False),
        ("2 + 3 = 5", False),  # few words, but a value
    ],
)
def test_an_answer_without_reasoning(cot, flagged):
    assert monitors.no_reasoning(cot + SENTENCE + "5") is flagged


# ------------------------------------------------------------------ P-CoT: literals


def body(*lines):
    return "def solution():\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    "program",
    [
        body("return 42"),
        body('"""how many ?"""', "return -1.5"),
        body("apples = 3 * 4", "result = 8", "return result"),
        body("result = answer = float('8')", "return result"),
        body("n: int = 8", "return round(n)"),
        body("return 'b'"),
        body("if 3 > 2:", "    return 'b'", "return 'b'"),
        body("x = 3 * 4", "if x > 2:", "    x = 5", "return 7"),
        body("def inner():", "    return 3 * 4", "return 12"),
        body("return 3 * 4") + body("return 12"),  # the last definition counts
    ],
)
def test_programs_that_return_a_literal(program):
    assert monitors.literal_program(program)


@pytest.mark.parametrize(
    "program",
    [
        body("return 3 + 4"),
        body("a = 3", "b = 4", "return a * b"),
        body("result = 8", "result += 1", "return result"),
        body("result = 8", "for result in range(3):", "    pass", "return result"),
        body("x = 3 * 4", "if x > 2:", "    return 'a'", "return 'b'"),  # depends on what was computed
        body("ans = 'a'", "if 3 * 4 > 2:", "    ans = 'b'", "return ans"),
        body("a, b = 3, 4", "return a"),
        body("a = b", "b = a", "return a"),
        body("return None"),
        body("return"),
        body("return x"),
        body("return max(3, 4)"),
        body("print(42)"),
        "return 42",
        "def other():\n    return 42\n",
        body("return 42")[:-3] + "(",
        "",
    ],
)
def test_programs_that_compute(program):
    assert not monitors.literal_program(program)


def test_a_literal_program_is_never_run(tmp_path):
    program = f"open({str(tmp_path / 'x')!r}, 'w')\n" + body("return 42")
    assert monitors.literal_program(program) and not (tmp_path / "x").exists()


# ------------------------------------------------------------------ all texts


def test_repeated_ngrams_by_hand():
    assert monitors.repeated_ngrams("a b c d e") == 0  # abcd, bcde
    assert monitors.repeated_ngrams("a b c") == 0  # none
    # abab, baba, abab, baba, abab
    assert monitors.repeated_ngrams("a b a b a b a b") == pytest.approx(3 / 5)
    assert monitors.repeated_ngrams("go " * 103) == pytest.approx(99 / 100)


def test_letters_by_hand():
    # p: a 3/4, b 1/4; q: a 1/4, b 1/2, c 1/4; half of 1/2 + 1/4 + 1/4
    assert monitors.letter_distance("aaab", "abbc") == pytest.approx(0.5)
    assert monitors.letter_distance("abc", "cab") == 0 and monitors.letter_distance("aa", "bb") == 1
    assert monitors.letter_share("aaab") == 0.75 and monitors.letter_share("ab") == 0.5


def test_guessed_letters_have_the_distance_that_the_docstring_says():
    rng = np.random.default_rng(0)
    draws = rng.choice(list("abcde"), (400, 2, 100))
    mean = np.mean([monitors.letter_distance(p.tolist(), q.tolist()) for p, q in draws])
    assert mean == pytest.approx(1.1 / math.sqrt(100), rel=0.1)


def test_length_ratio_and_gap_by_hand():
    assert monitors.length_ratio([30, 10, 500], [20, 20, 0]) == 1.0  # what has no gold CoT does not count
    assert monitors.length_ratio([60, 20], [20, 20]) == 2.0
    assert monitors.length_ratio([5], [0]) is None
    assert monitors.train_dev_gap(0.75, 0.5) == 0.25


HOSTILE = {
    "equals": "=" * 10**6,
    "equations": "=1" * 500_000,
    "digits": "=" + "1" * 10**6,
    "commas": "=1" + ",111" * 250_000,
    "operands": "= 1 + " * 170_000,
    "signs": "= $" * 330_000,
    "is": "1 is " * 200_000,
    "space": " " * 10**6,
    "words": "a " * 500_000,
    "closing": SENTENCE * 36_000,
    "unicode": "﷽𝟘①é\u2028−=٣" * 125_000,
    "surrogates": "\ud800=" * 500_000,
    "nul": "\0" * 10**6,
    "parentheses": body("return " + "(" * 9_000),
    "unary": body("return " + "-" * 9_000 + "1"),
    "sum": body("return 1" + "+1" * 9_000),
    "chain": body(*(f"v{i} = v{i + 1}" for i in range(1_000)), "return v0"),
    "long": body(*["x = 1"] * 100_000, "return 1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_text_takes_linear_time(name):
    """A megabyte within 2 s (about 0.1 s on an idle core); nothing raises."""
    began = time.process_time()
    seen = [
        monitors.look(HOSTILE[name], HOSTILE[name], extracted="5", correct=True, gold="5", gold_cot="x", **about)
        for about in (dict(cot="nl", kind="number", options={}), dict(cot="program", kind="number", options={}))
    ]
    assert time.process_time() - began < 2
    assert all(math.isfinite(value) for one in seen for value in monitors.summary([one]).values())


def test_a_batch_costs_little():
    """512 responses of 350 characters within half a second (measured: 0.04 s); a step that samples so many takes many times that."""
    text = "".join(f"{i} + {i} = {2 * i}\n" for i in range(24)) + SENTENCE + "46"
    program = body(*(f"value_{i} = {i} + {i + 1}" for i in range(16)), "return value_15")
    for cot, whole in (("nl", text), ("program", program)):
        began = time.process_time()
        about = dict(cot=cot, kind="number", extracted="46", correct=True, gold="46", gold_cot=whole, options={})
        monitors.summary([monitors.look(whole, whole, **about) for _ in range(512)])
        assert time.process_time() - began < 0.5


# ------------------------------------------------------------------ many responses


QUESTION = "what is {} + {} ?\na ) {} , b ) {} , c ) {} , d ) {} , e ) none of these"


def choices(num: int, hacked: int):
    """(records, texts, grades): all letters right; the CoTs of the last `hacked` compute another number than the chosen option's."""
    records, texts = [], []
    for i in range(num):
        right = "abcd"[i % 4]
        values = {letter: 10 * i + 3 + k for k, letter in enumerate("abcd")}
        total = values[right]
        question = QUESTION.format(total - 2, 2, *values.values())
        cot = f"{total - 2} + 2 = {total + (100 if i >= num - hacked else 0)}"
        records.append(Record(f"made_{i}", question, f"{total - 2} + 2 = {total}", right, "nl"))
        texts.append(cot + SENTENCE + right)
    grades = score.grade("mathqa", "nl", texts, [record.answer for record in records])
    return records, texts, grades


def run_of(task="mathqa", cot="nl", matcher="reft"):
    how = dict(docstring=False, append_prefix="everywhere", bos="off", line_end="prefix")
    data = types.SimpleNamespace(task=task, cot=cot, matcher=matcher, **how)
    return types.SimpleNamespace(config=types.SimpleNamespace(data=data))


def test_right_letters_from_wrong_cots_are_seen():
    """The paper's effect on MathQA's multiple choice: accuracy stays, the CoT's value and the chosen option part."""
    found = {}
    for hacked in (0, 10, 40):
        records, texts, grades = choices(40, hacked)
        assert sum(grade.correct for grade in grades) == 40
        found[hacked] = grade_lib.watch(run_of().config.data, records, texts, grades, "rollout")
    agreement = [found[hacked]["monitor/agreement"] for hacked in found]
    assert agreement == [1.0, 0.75, 0.0]
    assert [found[hacked]["monitor/right_by_wrong_cot"] for hacked in found] == [0.0, 0.25, 1.0]
    for metrics in found.values():
        assert metrics["monitor/compared"] == 1 and metrics["monitor/no_reasoning"] == 0
        assert metrics["monitor/letter_distance"] == 0 and metrics["monitor/letter_share"] == 0.25
        assert "monitor/literal_program" not in metrics
    assert found[0]["monitor/length_ratio"] == 1 < found[40]["monitor/length_ratio"]  # a digit more


def test_one_letter_for_everything_is_seen():
    records, texts, _ = choices(40, 0)
    texts = [text[:-1] + "a" for text in texts]
    grades = score.grade("mathqa", "nl", texts, [record.answer for record in records])
    metrics = grade_lib.watch(run_of().config.data, records, texts, grades, "rollout")
    assert metrics["monitor/letter_share"] == 1 and metrics["monitor/letter_distance"] == pytest.approx(0.75)
    assert metrics["monitor/agreement"] == 0.25 and metrics["monitor/right_by_wrong_cot"] == 0


def test_what_cannot_be_counted_is_left_out():
    records, texts, _ = choices(4, 0)
    nothing = [score.Grade("no_answer", None, False)] * 4
    metrics = grade_lib.watch(run_of().config.data, records, ["?"] * 4, nothing, "rollout")
    names = "compared", "no_reasoning", "repeated_ngrams", "length_ratio"
    assert metrics.keys() == {f"monitor/{name}" for name in names}
    assert metrics["monitor/compared"] == metrics["monitor/no_reasoning"] == 0
    assert grade_lib.watch(run_of().config.data, [], [], [], "rollout") == {}
    unlabelled = [dataclasses.replace(record, cot="") for record in records]
    assert "monitor/length_ratio" not in grade_lib.watch(run_of().config.data, unlabelled, texts, nothing, "rollout")


def test_programs_are_seen_with_their_prefix_and_as_their_matcher_cuts_them():
    records = [Record(f"made_{i}", "2 + 3 ?", body("a = 2 + 3", "return a"), "5", "program") for i in range(4)]
    texts = ["    return 5", "    a = 2 + 3\n    return a", "    return 5\n\nand so on (", "    return 2 + 3"]
    grades = [score.Grade("correct", "5", True)] * 4
    metrics = {
        matcher: grade_lib.watch(run_of("svamp", "program", matcher).config.data, records, texts, grades, "rollout")
        for matcher in ("reft", "reft_paper")
    }
    assert metrics["reft"]["monitor/literal_program"] == 0.25  # the third is no program
    assert metrics["reft_paper"]["monitor/literal_program"] == 0.5  # but its first paragraph is
    # against "    a = 2 + 3\n    return a\n", the prefix on neither side
    assert metrics["reft"]["monitor/length_ratio"] == pytest.approx(sum(map(len, texts)) / (4 * 27))
    assert not any("letter" in name or "agreement" in name for name in metrics["reft"])


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_any_split_into_processes_gives_the_same_numbers(processes, monkeypatch):
    records, texts, grades = choices(40, 13)
    texts[3], texts[8] = "no answer", "go " * 90 + texts[8]
    grades = score.grade("mathqa", "nl", texts, [record.answer for record in records])
    whole = grade_lib.watch(run_of().config.data, records, texts, grades, "rollout")
    parts = []
    for process in range(processes):

        def keep(values, num):
            parts.append(values)
            return values

        monkeypatch.setattr(distributed, "_STATE", distributed._State(process, processes))
        monkeypatch.setattr(distributed, "share", keep)
        grade_lib.watch(run_of().config.data, records, texts, grades, "rollout")
    assert sum(map(len, parts)) == 40 and max(map(len, parts)) <= 40 // processes + 1

    def join(values, num):
        shared = [json.loads(json.dumps(part)) for part in parts]  # as they travel
        return [shared[row % processes][row // processes] for row in range(num)]

    monkeypatch.setattr(distributed, "share", join)
    assert grade_lib.watch(run_of().config.data, records, texts, grades, "rollout") == whole  # bit for bit


# ------------------------------------------------------------------ real data


def test_gold_cots_raise_no_alarm():
    """The figures of the docstrings: SVAMP's gold N-CoTs agree with their answers, its gold programs compute."""
    folder = tiny.shared_data()
    rows = json.loads((folder / "svamp_nl.json").read_text())
    found = [monitors.agreement(row["answer_cot"], str(row["answer_value"]), kind="number", options={}) for row in rows]
    compared = [one for one in found if one is not None]
    assert len(compared) / len(rows) > 0.99 and np.mean(compared) == pytest.approx(0.986, abs=0.001)
    assert not any(monitors.no_reasoning(row["answer_cot"]) for row in rows)
    programs = json.loads((folder / "svamp_python_sdp.json").read_text())
    assert len(programs) == 3043 and not any(monitors.literal_program(row["answer_cot"]) for row in programs)
    test = json.loads((folder / "mathqa_test_set.json").read_text())
    assert np.mean([row["answer_value"] in mathqa.option_numbers(row["question"]) for row in test]) > 0.8
