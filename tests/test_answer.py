"""Extraction and comparison of answers, as tables of cases; the authors' behaviour and what repairs it."""

import pathlib
import subprocess
import sys
import time

import pytest

from reft_jax.rewards import matchers
from reft_jax.rewards.answer import canonical, equal, extract

SENTENCE = "She has 7 left.\nTherefore, the answer is: "


@pytest.mark.parametrize(
    ("said", "reft", "paper"),
    [
        ("42", "42", "42"),
        ("42.0", "42", "42"),
        ("42.00001", "42", "42"),
        ("-0.5", "-0.5", "-0.5"),
        ("-0", "0", "0"),
        ("-0.00001", "0", "0"),
        ("19.45", "19.45", "19.45"),
        (" 203.0 \n", "203", "203"),
        ("0.33333333", "0.3333", "0.3333"),
        ("1e3", "1000", "1000"),
        ("+7", "7", "7"),
        (".5", "0.5", "0.5"),
        ("007", "7", "7"),
        ("123456789012", "123456789012", "123456789012"),
        # What the authors' float() refuses and a reader would not.
        ("1,000", "1000", None),
        ("1,234,567.5", "1234567.5", None),
        ("12,34,567", "1234567", None),
        ("$5", "5", None),
        ("$ 5.50", "5.5", None),
        ("-$5", "-5", None),
        ("$-5", "-5", None),
        ("\\$5", "5", None),
        ("€20", "20", None),
        ("−3", "-3", None),
        ("5 apples", "5", None),
        ("5 apples.", "5", None),
        ("5km", "5", None),
        ("5 m^2", "5", None),
        ("5 m2", "5", None),
        ("50%", "50", None),
        ("50 %", "50", None),
        ("5 dollars", "5", None),
        ("42.", "42", "42"),
        ("42..", "42", None),
        ("3/4", "0.75", None),
        ("1 1/2", "1.5", None),
        ("-1 1/2 cups", "-1.5", None),
        ("$1 3/4", "1.75", None),
        ("½", "0.5", None),
        ("2½ hours", "2.5", None),
        ("٤٢", "42", "42"),
        ("４２", "42", "42"),
        ("１，０００", None, None),
        ("–3", "-3", None),
        ("－3", "-3", None),
        ("1.5 x 10^3", "1500", None),
        ("1.5 × 10^{-2} m", "0.015", None),
        ("2 \\times 10^2", "200", None),
        ("2e-3", "0.002", "0.002"),
        ("1.", "1", "1"),
        ("5 m²", "5", None),
        ("-3 / 4", "-0.75", None),
        ("1,000/8", "125", None),
        ("<203>", "203", None),
        ("<203>.", "203", None),
        ("**5**", "5", None),
        ("(5)", "5", None),
        ('"5"', "5", None),
        ("= 5", "5", None),
        ("$5/hour", "5", None),
        ("5-year", "5", None),
        ("5 (apples)", "5", None),
        ("5\nThat is all.", "5", None),
        # No number, or more than one, is no answer.
        ("", None, None),
        ("   ", None, None),
        ("five", None, None),
        ("x = 5", None, None),
        ("about 5", None, None),
        ("5 or 6", None, None),
        ("5, 6", None, None),
        ("3,5", None, None),
        ("5:30", None, None),
        ("5 6/2", None, None),
        ("1 1/2/3", None, None),
        ("1 2", None, None),
        ("5¾ 2", None, None),
        ("10²", None, None),
        ("twelve", None, None),
        ("5 x 10^3 x 2", None, None),
        ("5 x 10^1000", None, None),
        ("0x1F", None, None),
        ("⅟", None, None),
        ("1/2/3", None, None),
        ("1/0", None, None),
        ("10^3", None, None),
        ("5*3", None, None),
        ("5 + 3", None, None),
        ("5-3", None, None),
        ("5 = 5", None, None),
        ("1.2.3", None, None),
        ("5\nQuestion:\nTom has 3 pens", None, None),
        ("nan", None, None),
        ("inf", None, None),
        ("-infinity", None, None),
        ("1e999", None, None),
        ("--5", None, None),
        ("-$-5", None, None),
        ("5x3", None, None),
        ("1_000", None, "1000"),
        ("5 " + "very " * 60 + "red apples", None, None),
    ],
)
def test_numbers(said, reft, paper):
    assert extract(SENTENCE + said, kind="number", matcher="reft") == reft
    assert extract(SENTENCE + said, kind="number", matcher="reft_paper") == paper


@pytest.mark.parametrize(
    ("said", "reft", "paper"),
    [
        ("b", "b", "b"),
        (" B ", "b", "b"),
        ("b)", "b", "b)"),
        ("(b)", "b", "(b)"),
        ("B.", "b", "b."),
        ("b ) 27.675", "b", "b ) 27.675"),
        ("option c", "c", "option c"),
        ("Choice: C.", "c", "choice: c."),
        ("(option b)", "b", "(option b)"),
        ("<d>", "d", "<d>"),
        ("none", None, "none"),
        ("a rectangle", None, "a rectangle"),
        ("be", None, "be"),
        ("27.675", None, "27.675"),
        ("f", None, "f"),
        ("", None, None),
    ],
)
def test_choices(said, reft, paper):
    assert extract(SENTENCE + said, kind="choice", matcher="reft") == reft
    assert extract(SENTENCE + said, kind="choice", matcher="reft_paper") == paper


@pytest.mark.parametrize("matcher", ["reft", "reft_paper"])
def test_the_last_sentence_counts_and_without_one_there_is_no_answer(matcher):
    twice = "Therefore, the answer is: 1\nWait.\nTherefore, the answer is: 2"
    assert extract(twice, kind="number", matcher=matcher) == "2"
    assert (
        extract("Therefore, the answer is: 1\nTherefore, the answer is: none", kind="number", matcher=matcher) is None
    )
    for text in ("", "42", "The answer is 42", "Therefore, the answer is 42"):
        assert extract(text, kind="number", matcher=matcher) is None


@pytest.mark.parametrize(
    ("a", "b", "agree"),
    [
        ("42", "42.0", True),
        ("1.01", "1", True),
        ("1.011", "1", False),
        ("0.02", "0.01", True),
        ("0.3333", "1/3", True),
        ("-5", "5", False),
        ("1000", "1,000", True),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("x", "x", False),
        (None, "5", False),
        (None, None, False),
        ("1e300", "1" + "0" * 300, True),
    ],
)
def test_numbers_agree_within_a_hundredth(a, b, agree):
    assert equal(a, b, kind="number") is agree
    assert equal(b, a, kind="number") is agree


def test_choices_agree_by_lower_case_letter():
    assert equal("B", "b", kind="choice") and equal(" b ", "b", kind="choice")
    assert (
        not equal("b)", "b", kind="choice") and not equal("", "", kind="choice") and not equal(None, "b", kind="choice")
    )


def test_a_key_is_a_fixed_point():
    for text in [
        "42.0",
        "-0.5",
        "$1,000",
        "1/3",
        "0.00004",
        "99999.99995",
        "1e15",
        "-3.14159",
        "123456789.987654321",
        "1e300",
    ]:
        key = canonical(text, kind="number")
        assert canonical(key, kind="number") == key == canonical(key, kind="number", matcher="reft_paper")


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE + "9" * 10**6,
        SENTENCE + " " * 10**6 + "5",
        SENTENCE * 30_000,
        SENTENCE + "1," * 500_000,
        SENTENCE + "1/" * 500_000,
        SENTENCE + "(" * 10**6,
        SENTENCE + "1" + ",111" * 250_000 + "x",
        SENTENCE + "a" + " " * 10**6 + ")",
        "Therefore, the answer is" * 40_000,
        SENTENCE + "1" + ",11" * 60 + "x1",
        SENTENCE + "½" * 10**6,
        SENTENCE + "٤" * 10**6,
        SENTENCE + "1 " * 100,
        SENTENCE + "1 1/" * 50,
        SENTENCE + "$ - " * 50,
        SENTENCE + "5 x 10^" * 28,
        SENTENCE + "\u0301" * 10**6,
        SENTENCE + "\U0001f600" * 10**6,
        SENTENCE + "\ud800" * 10**6,
        SENTENCE + "<" * 199 + "5",
    ],
    ids=range(20),
)
def test_a_megabyte_takes_no_time(text):
    start = time.process_time()
    for kind in ("number", "choice"):
        for matcher in matchers.names(kind):
            extract(text, kind=kind, matcher=matcher)
    assert time.process_time() - start < 0.5


def test_unknown_names_raise():
    with pytest.raises(ValueError, match="legal: number, choice"):
        extract(SENTENCE + "5", kind="letter", matcher="reft")
    with pytest.raises(ValueError, match="legal are auto, gsm8k_flexible, gsm8k_strict, math, reft, reft_paper"):
        extract(SENTENCE + "5", kind="number", matcher="exact")


@pytest.mark.slow
def test_fuzzing_for_a_while_finds_nothing(tmp_path):
    pytest.importorskip("atheris")
    script = pathlib.Path(__file__).with_name("fuzz_answer.py")
    # libFuzzer limits the peak of getrusage(), which begins with that of the process that starts it: gigabytes, in pytest. So a
    # shell starts it, which is small.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(script), "-max_total_time=20", "-seed=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
