"""Which questions are the same one, what the dev split does when files change, and test questions that stand in train."""

import dataclasses
import json
import pathlib

import pytest

from reft_jax import recipe, tasks
from reft_jax.data import splits
from reft_jax.data.records import Record
from reft_jax.errors import InputError
from reft_jax.run import sources
from tests import runs
from tests.test_data_files import Data
from tests.tiny import read, shared_data


def records(num, start=0):
    return [Record(f"r_{i}", f"How many apples are {i}?", "c", "1", "nl") for i in range(start, start + num)]


def write(path: pathlib.Path, questions):
    rows = [
        {"item_id": f"svamp_{i}", "question": question, "answer_cot": "Some.", "answer_value": "1"}
        for i, question in enumerate(questions)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


# ------------------------------------------------------------------ the same question


@pytest.mark.parametrize("one, other", [
    ("Tom's dog has 3 legs .", "tom ’ s DOG\u00a0has 3 legs"),
    ("Tom has 3,  Ann 4!", "tom has 3; ann 4"),
    ("caf\u00e9", "cafe\u0301"),
    ("a 3-year-old", "A 3 year old"),
    ("\uff12 apples", "2 apples"),
    ("5\u22123", "5 - 3"),
    ("3+4", "3 + 4"),
    ("ratio 3 : 2", "ratio 3:2"),
    ("__x__", "x"),
])  # fmt: skip
def test_case_spacing_punctuation_and_unicode_form_do_not_count(one, other):
    assert splits.question_words(one) == splits.question_words(other) != ""


@pytest.mark.parametrize("several", [
    ["3 - 2", "3 / 2", "3 * 2", "3 + 2", "3 : 2", "3 % 2", "3 ^ 2", "3 2", "3.2", "3,2", "$3 2", "(3) 2", "3 \u00d7 2", "32"],
    ["1,000", "1000", "1 000", "1.000", "one thousand"],
    ["x\u00b2", "x2", "x"],
    ["\u00bd", "1/2", "12"],
    ["is 5", "is .5", "is -5"],
    ["2 * (3 + 4)", "2 * 3 + 4"],
    ["Tom", "Toms", "Tim"],
])  # fmt: skip
def test_numbers_as_they_are_spelt_and_signs_count(several):
    assert len({splits.question_words(text) for text in several}) == len(several)


# ------------------------------------------------------------------ the dev split


def test_dev_follows_neither_order_nor_other_records():
    base = records(300)
    dev = set(splits.cut_dev(base, 40, seed=7)[1])
    assert set(splits.cut_dev(base[::-1], 40, seed=7)[1]) == dev
    for num in (1, 5, 60):
        added = records(num, start=1000)
        grown = set(splits.cut_dev([*added, *base], 40, seed=7)[1])
        assert len(grown) == 40 and len(dev - grown) == len(grown & set(added)) <= num
    # Records taken away elsewhere move nothing.
    train = [record for record in base if record not in dev]
    assert set(splits.cut_dev([*train[100:], *dev], 40, seed=7)[1]) == dev


def test_dev_does_not_depend_on_the_test_file(tmp_path):
    train = write(tmp_path / "train.json", [f"How many {i}?" for i in range(50)])
    data = Data(train_file=train, dev_size=9)
    test = write(tmp_path / "test.json", ["Something else?"])
    assert tasks.load(dataclasses.replace(data, test_file=test)).dev == tasks.load(data).dev


def test_dev_questions_that_differ_in_punctuation_alone_are_noted(tmp_path):
    questions = [f"How many {i}{mark}" for i in range(20) for mark in ("?", " .")]
    found = tasks.load(Data(train_file=write(tmp_path / "train.json", questions), dev_size=10))
    (note,) = found.notes
    both = {splits.question_words(r.question) for r in found.dev} & {
        splits.question_words(r.question) for r in found.train
    }
    assert both and f"{len(both)} of 10 dev questions stand in train too but for their punctuation" in note


def test_generated_records_are_what_they_were():
    """The demo's records, before there was any other source than files: its data must never change."""
    config, _ = recipe.load(str(runs.ROOT / "configs" / "demo.py") + ":smoke")
    found = tasks.load(config.data)
    assert sources.of_records(found) == "4b0251178904275397e3cde0c7a5a5f5bed0c7fbddbf577f21df9350bfd10ced"
    assert found.notes == () and {r.place for part in (found.train, found.dev, found.test) for r in part} == {""}


# ------------------------------------------------------------------ overlap


def test_test_questions_in_train_are_refused_with_both_places(tmp_path):
    train = write(tmp_path / "train.json", [f"How many are {i} ?" for i in range(100)])
    test = write(tmp_path / "test.json", [f"how MANY are {i}" for i in range(92, 112)])
    data = Data(train_file=train, test_file=test, dev_size=10)
    with pytest.raises(InputError) as caught:
        tasks.load(data)
    said = str(caught.value)
    assert "\n" not in said and "8 of 20 test questions" in said and f"{test}:1 = {train}:93, " in said
    assert f"{test}:5 = {train}:97 and 3 more" in said and "config.data.max_overlap=0.01" in said
    with pytest.raises(InputError):
        tasks.load(dataclasses.replace(data, max_overlap=0.39))
    for allowed in (0.4, 1.0):
        found = tasks.load(dataclasses.replace(data, max_overlap=allowed))
        assert len(found.test) == 20 and len(found.train) == 90
        assert (
            f"8 of 20 test questions stand in the training data too (case and punctuation aside): {test}:1 = "
            in found.notes[0]
        )
        assert "kept" in found.notes[0]


def test_one_in_a_hundred_runs_with_a_note_and_none_may_be_asked_for(tmp_path):
    train = write(tmp_path / "train.json", [f"How many are {i} ?" for i in range(100)])
    test = write(tmp_path / "test.json", [f"How many are {i} ?" for i in range(99, 199)])
    data = Data(train_file=train, test_file=test)
    assert tasks.load(data).notes[0].startswith("1 of 100 test questions stand in the training data too")
    with pytest.raises(InputError, match="max_overlap=0.0"):
        tasks.load(dataclasses.replace(data, max_overlap=0.0))


def test_published_files_share_no_question():
    root = shared_data()
    pairs = (
        (
            read("gsm8k", root / "gsm8k" / "train.jsonl", cot="nl"),
            read("gsm8k", root / "gsm8k_test_set.json", cot="nl", split="test"),
        ),
        *(
            (
                read("svamp", root / f"svamp_{form}.json", cot=cot),
                read("svamp", root / "svamp_test_set.json", cot=cot, split="test"),
            )
            for form, cot in (("nl", "nl"), ("python_sdp", "program"))
        ),
    )
    for train, test in pairs:
        assert splits.shared(train, test) == []
        assert len(splits.shared(train, train)) == len(train)
