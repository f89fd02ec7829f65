"""The golden table, and what must hold for any text: of every matcher."""

import collections
import pathlib
import random
import re
import subprocess
import sys
import time

import pytest

from reft_jax import recipe
from reft_jax.config import choices
from reft_jax.errors import InputError
from reft_jax.rewards import answer, matchers
from reft_jax.rewards.matchers import algebra, gsm8k_flexible, gsm8k_strict
from reft_jax.rewards.matchers import math as boxed
from reft_jax.rewards.score import Ahead, Grade, VerifierError, grade
from tests.matcher_cases import EQUALITIES, PROGRAMS, QUANTITIES, SENTENCE, cases

LIMITS = {"timeout_s": 20.0, "memory_mb": 512, "workers": 1}  # a busy machine can hold up one process for seconds
NAMES = choices.names("rewards/matchers")
PAIRS = [(name, kind) for name in NAMES for kind in matchers.get(name).kinds]


def table():
    rows = collections.defaultdict(list)
    for matcher, task, *row in cases():
        rows[matcher, task].append(row)
    return rows


@pytest.mark.parametrize(("matcher", "task"), list(table()))
def test_the_golden_table(matcher, task):
    rows = table()[matcher, task]
    grades = grade(task, "nl", [row[0] for row in rows], [row[1] for row in rows], matcher=matcher, **LIMITS)
    for (text, gold, value, status), got in zip(rows, grades, strict=True):
        assert (got.extracted, got.status) == (value, status), (text, gold)
        assert got.correct == (status == "correct")


def test_the_golden_table_is_large():
    assert len(cases()) + 5 * len(PROGRAMS) > 500 and {c[0] for c in cases()} == set(NAMES)


def test_words_behind_a_number_multiply_it_or_are_what_it_counts_or_leave_no_answer():
    got = {text: answer.canonical(text, kind="number") for texts in QUANTITIES.values() for text in texts}
    assert got == {text: want for want, texts in QUANTITIES.items() for text in texts}


def test_the_same_mathematics_and_only_that_is_right():
    got = []
    for text, gold, _ in EQUALITIES:
        key = answer.extract(f"\\boxed{{{text}}}", kind="expression", matcher="math")
        assert answer.canonical(key, kind="expression", matcher="math") == key, text
        got.append((text, gold, answer.equal(key, gold, kind="expression", matcher="math")))
    assert got == EQUALITIES


@pytest.mark.parametrize("column", range(4))
def test_what_a_program_returns_is_read_as_a_bare_answer(column):
    names = [("reft",), ("reft_paper",), ("gsm8k_strict", "gsm8k_flexible"), ("math", "auto")][column]
    sources = [f"def solution():\n    return {row[0]}" for row in PROGRAMS]
    for name in names:
        grades = grade("gsm8k", "program", sources, [row[1] for row in PROGRAMS], matcher=name, **LIMITS)
        for row, got in zip(PROGRAMS, grades, strict=True):
            key = row[2 + column]
            status = "no_answer" if key is None else "correct" if key.endswith("+") else "wrong"
            assert (got.extracted, got.status) == (key and key.removesuffix("+"), status), (name, row)


def test_the_authors_cut_a_program_at_a_line_of_spaces():
    source = "def solution():\n    return 5\n   \t\nand so on"
    assert grade("svamp", "program", [source], ["5"], matcher="reft_paper", **LIMITS) == [Grade("correct", "5", True)]
    assert grade("svamp", "program", [source], ["5"], **LIMITS)[0].status == "error"


@pytest.mark.parametrize("matcher", NAMES)
def test_ahead_knows_every_matcher(matcher):
    ahead = Ahead(matcher=matcher, **LIMITS)
    ahead.add("def solution():\n    return 5\n\n")
    grades = grade(
        "svamp", "program", ["def solution():\n    return 5\n\n"], ["5.0"], matcher=matcher, ahead=ahead, **LIMITS
    )
    assert grades == [Grade("correct", "5", True)]


@pytest.mark.parametrize("matcher", ["gsm8k-strict", "gsm8k_strikt"])
def test_an_unknown_matcher_names_the_known_and_the_nearest(matcher):
    message = f"'{matcher}' is no file of rewards/matchers; did you mean 'gsm8k_strict'? legal are {', '.join(NAMES)}, "
    message += "or the path of a file of your own (my.py)"
    for ask in (
        lambda: matchers.get(matcher),
        lambda: answer.extract("5", kind="number", matcher=matcher),
        lambda: answer.canonical("5", kind="number", matcher=matcher),
        lambda: answer.equal("5", "5", kind="number", matcher=matcher),
        lambda: grade("svamp", "nl", [], [], matcher=matcher),
        lambda: Ahead(matcher=matcher),
    ):
        with pytest.raises(InputError) as caught:
            ask()
        assert str(caught.value) == message


def test_a_matcher_is_not_asked_for_what_it_does_not_read():
    with pytest.raises(
        InputError,
        match="'gsm8k_strict' does not read answers of kind 'choice'; those that do: auto, math, reft, reft_paper",
    ):
        grade("mathqa", "nl", [], [], matcher="gsm8k_strict")
    with pytest.raises(InputError, match="those that do: auto, math$"):
        grade("math", "nl", [], [], matcher="reft")
    with pytest.raises(InputError, match="gold answer 0 of svamp is '1/2': not a number"):
        grade("svamp", "nl", ["#### 1"], ["1/2"], matcher="gsm8k_strict")


def test_a_config_names_a_matcher_that_reads_its_answers():
    file = str(pathlib.Path(__file__).parents[1] / "configs" / "sft.py")

    def load(data, matcher):
        asked = f"{file}:data={data},cot=nl,model=tiny"
        return recipe.load(asked, [("data.matcher", matcher)])[0].data.matcher

    for name in NAMES:
        assert load("gsm8k", name) == name
    with pytest.raises(
        InputError, match="config.data.matcher: got 'gsm8k_flexible'; the answers of mathqa are of kind 'choice'"
    ):
        load("mathqa", "gsm8k_flexible")
    with pytest.raises(
        InputError,
        match="config.data.matcher: got 'gsm8k_strikt'; did you mean 'gsm8k_strict'.*legal are auto, gsm8k_flexible, gsm8k_strict, math",
    ):
        load("gsm8k", "gsm8k_strikt")


OWN = """
import re
from reft_jax.rewards.matchers.base import NOTHING, Matcher, found

def find(text, kind):
    last = None
    for last in re.finditer(r"<answer>(-?[0-9]+)</answer>", text):
        pass
    return found(last[1], *last.span(1)) if last else NOTHING

def integer(answer, kind):
    return str(int(float(answer)))

def agree(key, gold, kind):
    return key == integer(gold, kind)

MATCHER = Matcher("an integer in tags", ("number",), find, integer, integer, agree)
tags, wrong = MATCHER, "a text"
"""


def test_a_matcher_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(OWN)
    texts = ["so <answer>18</answer>", "so 18"]
    for name in (str(path), f"{path}:tags"):
        assert [g.status for g in grade("gsm8k", "nl", texts, ["18", "18"], matcher=name)] == ["correct", "no_answer"]
    config = f"{pathlib.Path(__file__).parents[1] / 'configs' / 'sft.py'}:data=gsm8k,cot=nl,model=tiny"
    assert recipe.load(config, [("data.matcher", str(path))])[0].data.matcher == str(path)
    for ask, message in (
        (
            lambda: matchers.get(str(path), "choice"),
            "my.py' does not read answers of kind 'choice'; those that do: auto, math, reft",
        ),
        (lambda: matchers.get(f"{path}:wrong"), "my.py:wrong: MATCHER is 'a text'; it must be a Matcher"),
        (lambda: matchers.get(f"{path}:none"), "my.py: defines no none, which a file of rewards/matchers does"),
        (lambda: grade("gsm8k", "nl", [], [], matcher=f"{tmp_path}/no.py"), "no.py: cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            ask()


def test_names_are_listed_and_one_matcher_is_loaded_without_the_others():
    code = (
        "import sys; from reft_jax.config import choices; from reft_jax.rewards import answer, matchers, score\n"
        "choices.names('rewards/matchers'), matchers.get('reft')\n"
        "sys.exit(', '.join(m for m in ('math', 'mathematics', 'algebra', 'reft_paper') if f'reft_jax.rewards.matchers.{m}' in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_spans_are_what_was_read():
    text = f"One: 3.\n{SENTENCE} $1,042. \n"
    for name, key in (("reft", "1042"), ("gsm8k_flexible", "1042"), ("math", "1042 dollar"), ("auto", "1042 dollar")):
        value, status, span = matchers.match(text, kind="number", matcher=name)
        assert (value, status, text[slice(*span)].strip()) == (key, "ok", "$1,042."), name
    text = "#### 3,000 and \\boxed{7}"
    assert [matchers.match(text, kind="number", matcher=name)[2] for name in ("gsm8k_strict", "math")] == [
        (5, 10),
        (22, 23),
    ]
    assert matchers.match("none", kind="number", matcher="math") == (None, "no_answer", None)


# ------------------------------------------------------------------ votes


@pytest.mark.parametrize("matcher", ["auto", "reft", "reft_paper", "math"])
def test_42_and_42_point_0_are_one_vote(matcher):
    keys = {answer.extract(SENTENCE + text, kind="number", matcher=matcher) for text in ("42", "42.0", "42.", "042")}
    assert keys == {"42"}


def test_equal_keys_are_graded_alike_and_are_votes_of_their_own_where_text_is_compared():
    grades = grade("gsm8k", "nl", ["#### 42", "#### 42.0", "#### 42."], ["42"] * 3, matcher="gsm8k_strict")
    assert [(g.extracted, g.correct) for g in grades] == [("42", True), ("42.0", False), ("42", True)]


# ------------------------------------------------------------------ gsm8k: against the harness's patterns, applied as it does


def harness(text: str, pattern: str, group: int) -> str | None:
    """Find all, take one of them, drop what the task ignores: the description in gsm8k*.py as plainly as can be."""
    for stop in ("Question:", "</s>", "<|im_end|>"):
        text = text.split(stop)[0]
    found = re.findall(pattern, text)
    if not found:
        return None
    one = found[group]
    one = one if isinstance(one, str) else next(part for part in one if part)
    for ignored in (",", r"\$", r"\.$"):
        one = re.sub(ignored, "", one.strip())
    return one if re.search("[0-9]", one) else None


def test_gsm8k_matchers_read_what_the_harness_reads():
    rng = random.Random(0)
    pieces = [
        "#### ",
        "####",
        "-",
        "--",
        "$",
        ".",
        ",",
        "5",
        "12",
        "0",
        " ",
        "\n",
        "x",
        "Question:",
        "</s>",
        "3.50",
        "١",
    ]
    read = collections.Counter()
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        strict, flexible = gsm8k_strict.find(text, "number").value, gsm8k_flexible.find(text, "number").value
        assert strict == harness(text, r"#### (\-?[0-9\.\,]+)", 0), text
        assert flexible == harness(text, r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1), text
        read.update(strict=strict is not None, flexible=flexible is not None)
    assert read["strict"] > 500 and read["flexible"] > 5000


# ------------------------------------------------------------------ math: numbers against floats, and sympy in the sandbox


def test_algebra_keeps_the_value():
    """Random expressions, read and printed again, have the value that Python's own arithmetic gives them."""
    rng = random.Random(1)
    names = {"x": 0.7, "y": 1.9, "pi": 3.141592653589793, "e": 2.718281828459045}

    def make(depth):
        if depth == 0:
            return rng.choice([str(rng.randrange(1, 13)), *names, "0.25"])
        a, b = make(depth - 1), make(depth - 1)
        return rng.choice(
            [f"({a}+{b})", f"({a}-{b})", f"{a}*{b}", f"({a})/({b})", f"({a})^2", f"sqrt({rng.randrange(2, 50)})"]
        )

    done = 0
    for _ in range(1500):
        text = make(rng.randrange(1, 4))
        try:
            shown = algebra.show(algebra.read(text))
        except algebra.Unreadable:
            continue
        scope = names | {"sqrt": lambda z: z**0.5}
        try:
            want = eval(text.replace("^", "**"), scope)
        except ZeroDivisionError:
            continue
        got = eval(shown.replace("^", "**"), scope)
        assert got == pytest.approx(want, rel=1e-6, abs=1e-6), (text, shown)
        assert algebra.show(algebra.read(shown)) == shown
        done += 1
    assert done > 1000


def test_latex_and_plain_spellings_are_one_key():
    for same in (
        ["\\frac{1}{\\sqrt{3}}", "\\sqrt{3}/3", "sqrt(3)/3", "\\dfrac{\\sqrt 3}3", "3^{-1/2}", "\\sqrt{\\frac13}"],
        ["(x+y)^2", "x^2+2xy+y^2", "y(2x+y)+x\\cdot x", "{(y + x)}^{2}"],
        ["2+3i", "3i+2", "(2+3i)", "2 + 3 \\cdot i"],
        ["\\frac{-1}{2}", "-\\frac{1}{2}", "-0.5", "−½", "-1/2", "\\frac{1}{-2}"],
    ):
        assert len({boxed.bare(text, "expression") for text in same}) == 1, same


def test_a_proof_holds_no_text_of_the_response(monkeypatch):
    for text in ("__import__('os').system('x')", "x.__class__", "a;b", "sin(x)\nimport os", "f'{x}'", "x if x else y"):
        assert boxed.proof(boxed.bare(text, "expression"), "x") is None, text
    source = boxed.proof(boxed.bare("\\sin^2 x+\\alpha_{12}", "expression"), "1+\\alpha_{12}")
    assert 'Symbol("alpha_{12}")' in source and "Integer(2)" in source
    compile(source, "proof", "exec")


def test_a_proof_that_takes_too_long_is_wrong_and_a_fault_of_the_verifier_is_an_error(monkeypatch):
    from reft_jax.rewards import score
    from reft_jax.rewards.program import ProgramResult

    def answers(result):
        monkeypatch.setattr(score, "run_programs", lambda programs, **limits: [result] * len(programs))
        return grade("math", "nl", ["\\boxed{\\sin x}"], ["\\cos x"], matcher="math")

    assert answers(ProgramResult("timeout")) == [Grade("wrong", "sin(x)", False)]
    assert answers(ProgramResult("ok", "0")) == [Grade("wrong", "sin(x)", False)]
    assert answers(ProgramResult("ok", "1")) == [Grade("correct", "sin(x)", True)]
    with pytest.raises(VerifierError):
        answers(ProgramResult("error", None, "verifier: lost"))


def test_the_last_box_whose_braces_balance_counts():
    assert boxed.last_box("\\boxed{1} \\fbox{2} \\boxed{3") == (16, 17)
    assert boxed.last_box("\\boxed{a\\}b}") == (7, 11)
    assert boxed.last_box("\\boxed{{1}{2}}") == (7, 13)
    assert boxed.last_box("\\boxed{" * 100) is None
    for text, content in (("\\boxed 5", "5"), ("$\\boxed 42$.", "42"), ("\\boxed 3/4, so", "3/4"), ("\\boxed x", "x")):
        assert text[slice(*boxed.last_box(text))] == content
    assert boxed.last_box("\\boxed five") is None


# ------------------------------------------------------------------ any text

ADVERSARIAL = [
    "9" * 10**6,
    " " * 10**6 + "5",
    SENTENCE * 25_000,
    "#### " * 200_000,
    "####" * 250_000,
    "#### " + "1," * 500_000,
    "5 " * 500_000,
    ". " * 500_000,
    "-$" * 500_000,
    "$-" * 500_000,
    "\\boxed{" * 140_000,
    "\\boxed{" + "{" * 10**6,
    "\\boxed{" + "}" * 10**6,
    "\\fbox" * 200_000,
    "\\boxe" * 200_000,
    "\\boxed{" + "(" * 390 + "}",
    "\\boxed{" + "((x+1)^9)^9" * 35 + "}",
    "\\boxed{" + "(x+y+z+w)^8*" * 30 + "1}",
    "\\boxed{" + "\\sqrt" * 70 + "2}",
    "\\boxed{" + "\\frac1" * 60 + "2}",
    "\\boxed{" + "9^" * 190 + "9}",
    "\\boxed{" + "a_b" * 130 + "}",
    "\\boxed{" + "\\sqrt{999999999989}" * 20 + "}",
    "\\boxed{" + "1,000" * 75 + "}",
    "\\boxed{" + "3 1/2 " * 60 + "}",
    "\\boxed{5" + " abc" * 90 + "1}",
    "\\boxed{" + "\\text{" * 60 + "}",
    "\\boxed{" + "-" * 390 + "}",
    "\\boxed{" + "{[(" * 60 + ")]}" * 60 + "}",
    SENTENCE + "\u0301" * 10**6,
    SENTENCE + "\U0001f600" * 10**6,
    SENTENCE + "\ud800" * 10**6,
    SENTENCE + "½" * 10**6,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ADVERSARIAL, ids=range(len(ADVERSARIAL)))
def test_no_text_takes_long(name, text):
    """Some milliseconds each on an idle core; the bound leaves room for a busy one, and catches what is quadratic or worse."""
    for kind in matchers.get(name).kinds:
        start = time.process_time()
        matchers.match(text, kind=kind, matcher=name)
        assert time.process_time() - start < 0.5


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_what_holds_for_any_text(name, kind):
    """A value comes with a span that reads as the same value; equal keys agree; a bare answer's key is its own key."""
    rng = random.Random(2)
    pieces = r"\boxed{ } { } ( ) [ ] | , = + - * / ^ 1 2 30 0.5 . x y pi $ % #### \{ \} \cup \pm abc and b c B ½ − \le < \left(".split()
    pieces += [*r"\frac \sqrt \text{ \, _2 ! sin \log \ i e ' A 7 8 9".split(), " ", "\n", "#### ", SENTENCE]
    matcher, read = matchers.get(name, kind), 0
    for _ in range(3000):
        text = rng.choice([SENTENCE, "#### ", "\\boxed{", ""]) + "".join(rng.choices(pieces, k=rng.randrange(9)))
        text += "}" * text.count("\\boxed{")
        value, status, span = matcher.find(text, kind)
        assert (value is None) == (span is None) == (status == "no_answer"), text
        key = matcher.bare(text[slice(*span)], kind) if span else matcher.bare(text, kind)
        if value is not None and not name.startswith("gsm8k"):
            assert key == value, (text, key, value)
        if key is not None:
            read += 1
            assert key == key.strip() and matcher.bare(key, kind) == key, (text, key)
        if key is not None and matcher.gold(key, kind) == key:
            assert matcher.agree(key, key, kind), (text, key)
    assert read > 15
