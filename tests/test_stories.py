"""The generated stories: every problem has a solution that grades as right, splits share no question, and wording has its range."""

import collections
import random
import re

import pytest

from reft_jax import recipe, tasks
from reft_jax.data import prompts
from reft_jax.data.splits import question_words
from reft_jax.errors import InputError
from reft_jax.rewards import score
from reft_jax.tasks import stories
from tests import tiny

NUM = 400


@pytest.fixture(scope="module")
def train():
    """{cot: records} of the same questions."""
    return {cot: stories.generate("train", NUM, seed=0, cot=cot) for cot in stories.COTS}


def values(step, known):
    first, *others = (known[letter] for letter in step.operands)
    for other in others:
        first = {"+": first + other, "-": first - other, "*": first * other, "/": first / other}[step.op]
    return first


# ------------------------------------------------------------------ scenes


def test_every_scene_tells_asks_and_names_what_its_equations_are_about():
    found, _ = stories.scenes()
    assert len(found) == len({scene.name for scene in found}) > 50
    for scene in found:
        assert scene.equations and any(quantity.asks for quantity in scene.quantities.values()), scene.name
        for letter, quantity in scene.quantities.items():
            assert quantity.names and all(quantity.names), (scene.name, letter)
            assert quantity.tells or quantity.asks, (scene.name, letter)
            slots = [re.findall(r"\{(?:money_)?([a-z])\}", tell) for tell in quantity.tells]
            assert all(slot == [letter] for slot in slots) or quantity.size.isdigit(), (scene.name, letter)
        for left, op, right in scene.equations:
            assert {left, *right} <= scene.quantities.keys() and op in "+*" and len(right) in (2, 3), scene.name


def test_derivations_compute_what_the_equations_say():
    rng, num_of = random.Random(0), collections.Counter()
    for num_ops in stories.NUM_OPS:
        for scene, target, steps, leaves in (way for ways in stories.derivations(num_ops) for way in ways):
            while (numbers := stories.numbers(scene, (2, 60), rng)) is None:
                pass
            for left, op, right in scene.equations:
                parts = [numbers[letter] for letter in right]
                assert numbers[left] == (sum(parts) if op == "+" else parts[0] * parts[1]), scene.name
            known = {letter: numbers[letter] for letter in leaves}
            for step in steps:
                known[step.left] = values(step, known)
            assert steps[-1].left == target and known == {letter: numbers[letter] for letter in known}, scene.name
            assert sum(len(step.operands) - 1 for step in steps) == num_ops and not {s.left for s in steps} & {*leaves}
            num_of[num_ops] += 1
    assert min(num_of.values()) > 30


def test_words_have_their_plurals():
    assert [stories.plural(noun) for noun in ("apple", "box", "piece of candy", "puppy", "toy", "glass of milk", "bench")] == [
        "apples", "boxes", "pieces of candy", "puppies", "toys", "glasses of milk", "benches",
    ]  # fmt: skip


# ------------------------------------------------------------------ records


def test_a_record_is_a_function_of_seed_split_and_index():
    assert (
        stories.generate("train", 30, seed=3, cot="program")
        == stories.generate("train", 60, seed=3, cot="program")[:30]
    )
    assert stories.generate("train", 5, seed=3, cot="nl") != stories.generate("train", 5, seed=4, cot="nl")


def test_the_question_does_not_depend_on_the_cot(train):
    assert len({tuple((r.question, r.answer) for r in records) for records in train.values()}) == 1


@pytest.mark.parametrize("cot", ["program", "nl"])
def test_every_solution_grades_as_right(cot, train):
    for docstring in (False, True):
        texts = [prompts.target(record, docstring=docstring) for record in train[cot][:200]]
        golds = [record.answer for record in train[cot][:200]]
        grades = score.grade("stories", cot, texts, golds, matcher="reft", timeout_s=10.0)
        assert [(text, grade) for text, grade in zip(texts, grades, strict=True) if not grade.correct] == []


def test_prose_ends_with_the_answer(train):
    for record in train["nl"]:
        assert record.cot.endswith(f"Therefore, the answer is <{record.answer}>.")


def test_the_corpus_holds_both_kinds_as_whole_targets(train):
    kinds = collections.Counter(record.cot.startswith("def solution():\n") for record in train["both"])
    assert {record.kind for record in train["both"]} == {"text"} and min(kinds.values()) > NUM / 3
    for record in train["both"]:
        if not record.cot.startswith("def"):
            assert record.cot.endswith(f"\nTherefore, the answer is: {record.answer}")
    checks = stories.generate("dev", 5, seed=0, cot="program") + stories.generate("test", 5, seed=0, cot="program")
    assert {record.kind for record in checks} == {"program"} and not any(record.cot for record in checks[5:])


def test_numbers_are_positive_and_no_larger_than_said(train):
    for record in train["program"]:
        told = [float(number) for number in re.findall(r"\d+(?:\.\d)?", record.question)]
        assert told and all(1 <= number <= stories.MAX_NUMBER for number in [*told, int(record.answer)]), (
            record.question
        )


def test_programs_use_the_numbers_and_the_words_of_the_question(train):
    named = 0
    for record in train["program"]:
        lines = re.findall(r"    (\w+) = ([\d.]+)\n", record.cot)
        told = re.findall(r"\d+(?:\.0)?", record.question)
        assert all(number in told or number in ("2", "7") for _, number in lines), record
        words = set(re.findall("[a-z]+", record.question.lower()))
        named += any(set(name.split("_")) & words - {"in", "to", "of", "a", "the"} for name, _ in lines)
    assert named > 0.9 * NUM


def test_no_question_is_in_two_splits():
    words = {}
    for split, num in dict(train=200, dev=40, test=40).items():
        both = [record for seed in (0, 1) for record in stories.generate(split, num, seed=seed, cot="nl")]
        words[split] = {question_words(record.question) for record in both}
    assert not words["train"] & words["dev"] and not words["train"] & words["test"] and not words["dev"] & words["test"]
    one = [question_words(record.question) for record in stories.generate("train", NUM, seed=0, cot="program")]
    assert len(set(one)) == NUM


def test_wording_has_the_range_of_the_real_questions(train):
    records = train["program"]
    share = {
        "spaced": sum(record.question == record.question.lower() for record in records) / NUM,
        "distractor": sum(record.tags["distractor"] for record in records) / NUM,
        "if": sum("if " in record.question for record in records) / NUM,
        "some": sum(" some " in record.question for record in records) / NUM,
    }
    assert (
        0.5 < share["spaced"] < 0.75 and 0.25 < share["distractor"] < 0.6 and share["if"] > 0.2 and share["some"] > 0.02
    )
    ops = collections.Counter(record.tags["num_ops"] for record in records)
    assert ops[1] > 0.3 * NUM and ops[2] > 0.3 * NUM and ops[3] > 0.05 * NUM
    signs = collections.Counter(sign for record in records for sign in re.findall(r" ([-+*/]|//) ", record.cot))
    assert min(signs["+"], signs["-"], signs["*"], signs["/"] + signs["//"]) > NUM / 8, signs
    assert len({record.tags["scene"] for record in records}) > 50


@pytest.mark.parametrize(
    "arguments, said", [(("pretrain", 1, "nl"), "split: got 'pretrain'"), (("train", 1, "text"), "cot: got 'text'")]
)
def test_wrong_arguments(arguments, said):
    split, num, cot = arguments
    with pytest.raises(InputError, match=said):
        stories.generate(split, num, seed=0, cot=cot)


# ------------------------------------------------------------------ as a data set


def data_of(arg="", *overrides):
    return recipe.load(f"configs/pretrain_text.py:smoke,{arg}", overrides)[0].data


def test_the_questions_of_a_file_are_text_without_their_solutions(tmp_path):
    path = tmp_path / "train.json"
    rows = [
        f'{{"item_id": "svamp_{i}", "question": "Has Ann {i} cats ?", "answer_cot": "GOLD", "answer_value": "{i}"}}'
        for i in range(60)
    ]
    path.write_text(f"[{', '.join(rows)}]")
    loaded = tasks.load(data_of(f"cot=nl,num_train=8,questions_file={path}"))
    texts = [record for record in loaded.train if record.kind == "text"]
    assert len(texts) == 60 - 32 and all(record.cot.startswith("Has Ann") and not record.question for record in texts)
    assert "GOLD" not in repr(loaded) and "28 of 60 questions of" in loaded.notes[0]
    assert prompts.prompt(texts[0]) == "Question:\n\nAnswer reasoning:\n"


def test_what_a_run_on_real_data_takes_as_dev_is_not_read(monkeypatch):
    monkeypatch.setattr(stories, "generate", lambda *args, **kwargs: ())
    folder = tiny.shared_data()
    sizes = ("data.dev_size", "200"), ("data.num_train", "4000")
    texts = tasks.load(data_of(f"questions_file={folder}/svamp_python_sdp.json", *sizes)).train
    read = {record.cot for record in texts}
    assert 2500 < len(texts) < 2700
    test = f"test_file={folder}/svamp_test_set.json"
    for cot, name in (("program", "svamp_python_sdp.json"), ("nl", "svamp_nl.json")):
        spec = f"configs/paper_text.py:cot={cot},base=B,train_file={folder}/{name},{test}"
        found = tasks.load(recipe.load(spec)[0].data)
        held_out = {question_words(record.question) for record in (*found.dev, *found.test)}
        assert len(found.dev) > 190 and len(found.test) == 1000 and len(found.train) == 2800
        assert not held_out & {question_words(text) for text in read}


@pytest.mark.parametrize(
    "override, said",
    [(("data.annotations", "worked"), "legal for stories are diverse"), (("data.source", "files"), "generated")],
)
def test_settings_that_do_not_go_together(override, said):
    with pytest.raises(InputError, match=said):
        data_of("", override)
