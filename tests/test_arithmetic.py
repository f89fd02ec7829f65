"""The generated problems: every gold answer follows from its text, the vocabulary is closed, the mix is as documented."""

import collections
import random
import re

import pytest

from reft_jax.errors import InputError
from reft_jax.tasks import arithmetic, expressions

NAMES = set(arithmetic.MEN + arithmetic.WOMEN)


def make(split, num, *, seed=0, cot="program", annotations="diverse"):
    return arithmetic.generate(split, num, seed=seed, cot=cot, annotations=annotations)


def run(program):
    scope = {}
    exec(program, scope)
    return scope["solution"]()


def check_equations(text):
    """Every `left = right` of the text holds; the last right-hand side."""
    last = None
    for equation in re.split(r"\n|, |\. (?:Then )?", text.rstrip(".")):
        left, right = re.split(r" = | is ", equation)
        assert re.fullmatch(r"[0-9+\-*/() ]+", left), text
        last = int(right)
        assert eval(left) == last, text
    return str(last)


@pytest.mark.parametrize("annotations", ["diverse", "canonical", "worked"])
def test_gold_programs_compute_the_answer(annotations):
    for record in make("train", 250, annotations=annotations):
        assert record.kind == "program" and record.cot.startswith("def solution():\n    ")
        assert str(run(record.cot)) == record.answer


@pytest.mark.parametrize("annotations", ["diverse", "canonical", "worked"])
def test_gold_equations_hold_and_end_in_the_answer(annotations):
    for record in make("train", 250, cot="nl", annotations=annotations):
        assert record.kind == "nl" and "Therefore" not in record.cot
        assert check_equations(record.cot) == record.answer


def test_corpus_is_right_unless_sloppy_and_then_wrong():
    for record in make("pretrain", 1500):
        assert record.kind == "text"
        if record.cot.startswith("def solution():\n"):
            shown = str(run(record.cot))
        elif record.tags["style"] == "nl":
            reasoning, shown = record.cot.split("\nTherefore, the answer is: ")
            assert check_equations(reasoning) == shown
        else:
            shown = check_equations(record.cot)
        assert (shown != record.answer) == record.tags["sloppy"], record


HE, HIS, HIM, WHO, N = "(?:He|She|he|she)", "(?:his|her)", "(?:him|her)", "([A-Z][a-z]+)", "([0-9]+)"
# An independent reading: what a sentence does to the running total t, given its numbers.
SENTENCES = {
    rf"{HE} (?:buys|finds) {N} bags with {N} \w+ each": lambda t, x, y: t + x * y,
    rf"\w+ gives {HIM} {N} bags with {N} \w+ each": lambda t, x, y: t + x * y,
    rf"Then {HE} works {N} more days for {N} dollars per day": lambda t, x, y: t + x * y,
    rf"{HE} also buys {N} \w+ for {N} dollars each": lambda t, x, y: t + x * y,
    rf"{HE} gives {N} \w+ to each of {N} friends|{HE} gives {N} friends {N} \w+ each": lambda t, x, y: t - x * y,
    rf"{HE} buys {N} \w+ for {N} dollars each|{HE} pays {N} dollars each for {N} \w+": lambda t, x, y: t - x * y,
    rf"{HE} buys {N} more \w+|{HE} (?:finds|wins) {N} \w+|{HE} gets {N} \w+ from \w+": lambda t, x: t + x,
    rf"\w+ gives {HIM} {N} \w+|{HE} also pays {N} dollars for shipping|{HE} buys {N} more of these bags|"
    rf"\w+ has {N} \w+ and gets one share": lambda t, x: t + x,
    rf"{HE} (?:sells|loses|spends) {N} \w+|{HE} (?:gives|hands|loses) {N} \w+ to \w+|{HE} sells {N} of the bags": lambda t, x: (
        t - x
    ),
    rf"\w+ takes {N} of {HIS} \w+|{HE} gives [A-Z][a-z]+ {N} \w+|{HE} pays {N} dollars for lunch": lambda t, x: t - x,
    rf"The shop takes {N} dollars off the bill|The bill goes down by {N} dollars": lambda t, x: t - x,
    rf"Then {HE} doubles {HIS} collection|Then {HE} has twice as many \w+ as before": lambda t: t * 2,
    rf"Then {HE} triples {HIS} collection": lambda t: t * 3,
    rf"Then {HE} has {N} times as many \w+ as before": lambda t, x: t * x,
    rf"{HE} gives half of {HIS} \w+ to \w+|{HE} sells half of {HIS} \w+|\w+ takes half of {HIS} \w+": lambda t: t / 2,
    rf"Then {N} friends (?:share|split) (?:the bill|all {HIS} \w+) equally|{HE} puts all {HIS} \w+ in bags of {N}": lambda t, x: (
        t / x
    ),
}
FACTORS = {  # sentences that change one of the two numbers of a product: (which, by how much)
    rf"{HE} puts {N} more \w+ in each box|\w+ puts {N} more \w+ in each box": (1, 1),
    rf"{HE} sells {N} \w+ from each box|\w+ takes {N} \w+ from each box": (1, -1),
    rf"{HE} buys {N} more of these boxes": (0, 1),
    rf"{HE} gives {N} of the boxes to \w+": (0, -1),
    rf"The price goes up by {N} dollars|The price is {N} dollars more now": (1, 1),
    rf"The price goes down by {N} dollars|The shop takes {N} dollars off the price": (1, -1),
}
COMPARISONS = {
    rf"{WHO} has {N} more \w+ than {WHO}|{WHO} has {N} \w+ more than {WHO}": lambda t, x: t + x,
    rf"{WHO} has {N} fewer \w+ than {WHO}|{WHO} has {N} \w+ fewer than {WHO}": lambda t, x: t - x,
    rf"{WHO} has {N} times as many \w+ as {WHO}": lambda t, x: t * x,
    rf"{WHO} has twice as many \w+ as {WHO}": lambda t: t * 2,
    rf"{WHO} has half as many \w+ as {WHO}": lambda t: t / 2,
}
DISTRACTORS = rf"\w+ is {N} years old|{WHO} (?:has|buys) {N} \w+"


def match(table, sentence):
    """(value of the first pattern that is the whole sentence, its numbers, its names)."""
    for pattern, found in table.items():
        if re.fullmatch(pattern, sentence):
            names = [word for word in re.findall("[A-Z][a-z]+", sentence) if word in NAMES]
            return found, [int(word) for word in re.findall("[0-9]+", sentence)], names
    return None, [], []


def read(question, family):
    """The answer to a story by sentence-by-sentence reading; raises where a sentence is not understood."""
    first, *others, asked = re.findall(r"[^.?]+", question.replace(". ", "."))
    numbers = [int(word) for word in re.findall("[0-9]+", first)]
    if family == "compare":
        held = {first.split()[0]: numbers[0]}
        for sentence in others:
            relation, numbers, names = match(COMPARISONS, sentence)
            if relation:
                held[names[0]] = relation(held[names[1]], *numbers)
            else:
                assert re.fullmatch(DISTRACTORS, sentence), sentence
        names = [word for word in re.findall("[A-Z][a-z]+", asked) if word in NAMES]
        sign = -1 if "How many more" in asked else 1
        return held[names[0]] + sign * sum(held[name] for name in names[1:])
    if "Each day" in first:
        days, pay, extra = numbers
        factors = [days, pay + extra if "tips" in first else pay - extra]
    else:
        factors = [1] * (2 - len(numbers)) + numbers
    total = None
    for sentence in others:
        factor, numbers, _ = match(FACTORS, sentence)
        change, changes, _ = match(SENTENCES, sentence)
        if factor:
            assert total is None, question
            factors[factor[0]] += factor[1] * numbers[0]
        elif re.fullmatch(rf"Then {WHO} buys {N} \w+", sentence):
            factors[0] = int(re.findall("[0-9]+", sentence)[0])
        elif change:
            total = factors[0] * factors[1] if total is None else total
            total = change(total, *changes)
        else:
            assert re.fullmatch(DISTRACTORS, sentence), sentence
    return factors[0] * factors[1] if total is None else total


def test_an_independent_reading_of_the_story_gives_the_answer():
    for record in make("pretrain", 1500) + make("test", 1500):
        if record.tags["family"] != "bare":
            assert read(record.question, record.tags["family"]) == int(record.answer), record.question


def test_numbers_and_intermediate_results_stay_in_range():
    rng = random.Random(0)
    for split in ("pretrain", "test"):
        for _ in range(300):
            question, expr, tags = arithmetic.problem(rng, split=split)
            assert len(expressions.steps(expr)) == tags["num_ops"]
            assert all(1 <= expressions.value(node) <= 199 for node in expressions.steps(expr))
            assert all(2 <= int(number) <= 30 for number in re.findall(r"[0-9]+", question))


def test_rewriting_keeps_the_value_and_finds_several_paths():
    rng = random.Random(1)
    num_paths = []
    for _ in range(60):
        _, expr, _ = arithmetic.problem(rng, split="train")
        paths = {expressions.rewrite(expr, rng) for _ in range(40)}
        assert {expressions.value(path) for path in paths} == {expressions.value(expr)}
        num_paths.append(len(paths))
    assert sum(num_paths) / 60 > 8
    assert ("+", 5, ("-", 9, 4)) in expressions.alternatives(("-", ("+", 5, 9), 4))
    assert ("-", 20, ("+", 3, 4)) in expressions.alternatives(("-", ("-", 20, 3), 4))
    assert ("+", ("-", 20, 7), 3) in expressions.alternatives(("-", 20, ("-", 7, 3)))
    assert ("-", 20, ("-", 7, 3)) not in expressions.alternatives(("-", 20, ("+", 7, 3)))


def test_orders_are_topological_and_vary():
    expr = ("-", ("*", ("+", 2, 3), ("+", 4, 5)), ("*", 6, 7))
    orders = {tuple(expressions.shuffled(expressions.steps(expr), random.Random(i))) for i in range(200)}
    assert len(orders) == 8  # 5 operations, root last: the 8 linear extensions
    for order in orders:
        for index, node in enumerate(order):
            assert all(isinstance(side, int) or side in order[:index] for side in node[1:])


def test_canonical_is_one_deterministic_way():
    expr = ("+", ("*", ("-", 20, 5), 2), ("*", 3, 4))
    seen = {arithmetic.annotate(expr, random.Random(i), cot="program", annotations="canonical") for i in range(20)}
    assert seen == {
        (
            "steps_v",
            "def solution():\n    v0 = 20 - 5\n    v1 = v0 * 2\n    v2 = 3 * 4\n    v3 = v1 + v2\n    return v3",
        )
    }


def test_surface_of_each_style():
    expr = ("/", ("-", 20, 5), 3)
    order = expressions.steps(expr)
    shown = {
        style: arithmetic.reasoning(style, expr, order)
        for style in ("steps_abc", "expression", "answer", "equations", "nl_lines", "nl_words", "nl_expression")
    }
    assert shown == {
        "steps_abc": "def solution():\n    a = 20 - 5\n    b = a // 3\n    return b",
        "expression": "def solution():\n    return (20 - 5) // 3",
        "answer": "def solution():\n    return 5",
        "equations": "20 - 5 = 15, 15 / 3 = 5",
        "nl_lines": "20 - 5 = 15\n15 / 3 = 5",
        "nl_words": "20 - 5 is 15. Then 15 / 3 is 5.",
        "nl_expression": "(20 - 5) / 3 = 5",
    }


@pytest.mark.slow
def test_vocabulary_is_closed_and_small():
    known = set(arithmetic.vocabulary())
    assert list(arithmetic.vocabulary()) == sorted(known) and len(known) <= 210
    used = set()
    for split, num, cot, annotations in (
        ("pretrain", 18000, "program", "corpus"),
        ("train", 1000, "program", "diverse"),
        ("dev", 500, "nl", "worked"),
        ("test", 500, "nl", "canonical"),
    ):
        for record in make(split, num, seed=3, cot=cot, annotations=annotations):
            response = f"{record.cot}\nTherefore, the answer is: {record.answer}" if record.kind == "nl" else record.cot
            prompt = f"Question:\n{record.question}\nAnswer reasoning:\n"
            docstring = f'    """{record.question}"""\n'
            for text in (prompt, docstring, response):
                found = arithmetic.pieces(text)
                assert "".join(found) == text
                used.update(found)
    assert used <= known
    assert known - used == {" 0"}  # no number begins with it, but a user's own question may hold it


def test_the_word_tokenizer_is_made_of_pattern_and_vocabulary():
    assert arithmetic.Task().words() == (arithmetic.PIECE, arithmetic.vocabulary())


def test_vocabulary_holds_every_digit_and_name_in_both_positions():
    known = set(arithmetic.vocabulary())
    assert {f"{space}{word}" for space in ("", " ") for word in (*"0123456789", *NAMES)} <= known


def test_a_program_is_cut_alike_whole_and_after_its_prefix():
    for record in make("train", 100):
        head, rest = record.cot[: len("def solution():\n")], record.cot[len("def solution():\n") :]
        assert arithmetic.pieces(head) + arithmetic.pieces(rest) == arithmetic.pieces(record.cot)


def test_tokenizers_cut_with_the_same_regex():
    tokenizers = pytest.importorskip("tokenizers")
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(arithmetic.PIECE), "isolated")
    for record in make("pretrain", 200) + make("train", 50):
        text = f'Question:\n{record.question}\nAnswer reasoning:\n{record.cot}\n    """{record.question}"""\n'
        assert [piece for piece, _ in split.pre_tokenize_str(text)] == arithmetic.pieces(text)


def test_lengths_are_bounded():
    for split, cot, limit in (("pretrain", "program", 35), ("train", "program", 35), ("train", "nl", 47)):
        for annotations in ("diverse", "canonical"):
            for record in make(split, 400, cot=cot, annotations=annotations):
                closing = f"\nTherefore, the answer is: {record.answer}" if record.kind == "nl" else ""
                assert len(arithmetic.pieces(record.cot + closing)) <= limit
                assert len(arithmetic.pieces(record.question)) <= 46


def test_target_mix():
    records = make("test", 1000)
    share = collections.Counter(record.tags["phrasing"] for record in records)["new"] / 1000
    assert 0.60 <= share <= 0.68
    assert {record.tags["num_ops"] for record in records} == {3, 4}
    assert {record.tags["family"] for record in records} == set(arithmetic.FAMILY_WEIGHTS)
    assert all(record.cot == "" and record.kind == "program" for record in records)


def test_corpus_mix():
    records = make("pretrain", 4000)
    styles = collections.Counter(record.tags["style"] for record in records)
    for style, weight in arithmetic.STYLE_WEIGHTS["corpus"].items():
        assert abs(styles[style] / 4000 - weight / 10) < 0.03
    assert abs(sum(record.tags["sloppy"] for record in records) / 4000 - 0.25) < 0.03
    num_ops = collections.Counter(record.tags["num_ops"] for record in records)
    assert set(num_ops) == {1, 2, 3, 4} and num_ops[4] < 700
    new_words = (" wins ", " hands ", " split ", " before", " lunch")
    new_orders = (
        r" \w+ (?:more|fewer) than | gives (?:[A-Z]\w+ \d|\d+ friends|him \d+ bags|her \d+ bags)| loses \d+ \w+ to "
        r"|The bill goes|off the price|dollars more now"
    )
    assert not any(word in record.question for record in records for word in new_words)
    assert not any(re.search(new_orders, record.question) for record in records)
    assert {record.tags["phrasing"] for record in records} == {"known"}


def test_diverse_mix_and_distractors():
    records = make("train", 1000)
    styles = collections.Counter(record.tags["style"] for record in records)
    for style, share in {"steps_v": 0.4, "steps_abc": 0.3, "expression": 0.3}.items():
        assert abs(styles[style] / 1000 - share) < 0.05
    # "years old" is one of three distractors, and a quarter of the questions have one
    assert 0.05 < sum("years old" in record.question for record in records) / 1000 < 0.12


def test_splits_never_share_a_question_and_never_repeat_one():
    questions = {}
    for split, num in (("pretrain", 3000), ("train", 500), ("dev", 300), ("test", 500)):
        for seed in (0, 1) if split != "pretrain" else (0,):
            texts = [record.question for record in make(split, num, seed=seed)]
            assert len(set(texts)) == num
            questions.setdefault(split, set()).update(texts)
    names = list(questions)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            assert not questions[first] & questions[second]


def test_questions_depend_on_split_and_seed_only():
    base = [(record.question, record.answer) for record in make("dev", 60)]
    for cot in ("program", "nl"):
        for annotations in ("diverse", "canonical", "worked", "corpus"):
            assert [(r.question, r.answer) for r in make("dev", 60, cot=cot, annotations=annotations)] == base
    assert [record.question for record in make("dev", 60, seed=1)] != [question for question, _ in base]
    assert make("train", 60) == make("train", 90)[:60]


def test_unknown_names_are_refused_with_the_legal_ones():
    for change in ({"split": "valid"}, {"cot": "python"}, {"annotations": "sloppy"}):
        arguments = {"split": "train", "cot": "program", "annotations": "diverse", **change}
        split = arguments.pop("split")
        (bad,) = change.values()
        with pytest.raises(InputError, match=f"{bad!r} is unknown; one of "):
            arithmetic.generate(split, 1, seed=0, **arguments)
    with pytest.raises(InputError, match="'corpus' annotates the split 'pretrain'"):
        make("train", 1, annotations="corpus")
