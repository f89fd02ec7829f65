"""Reading data sets: right records from both file forms, one message naming file:line for each thing that can be wrong."""

import dataclasses
import json
import random
import subprocess
import sys

import pytest

from reft_jax import tasks
from reft_jax.config import choices, records, settings
from reft_jax.data import files, prompts, reader
from reft_jax.data.records import Record
from reft_jax.data.splits import cut_dev
from reft_jax.errors import InputError
from reft_jax.rewards import score
from reft_jax.tasks import arithmetic
from tests.tiny import read, shared_data

PROGRAM = 'def solution():\n    """How many?"""\n    return 3'


@dataclasses.dataclass(frozen=True)
class Data:
    """The fields of config.data that this module reads."""

    task: str = "svamp"
    cot: str = "nl"
    source: str = "files"
    train_file: str = ""
    test_file: str = ""
    seed: int = 42
    num_train: int = 0
    num_test: int = 0
    dev_size: int = 0
    annotations: str = "diverse"
    docstring: bool = True
    calculator_marks: str = "strip"
    max_overlap: float = 0.01
    tfds_dir: str = ""
    manual_dir: str = ""
    questions_file: str = ""


def row(i=0, **changes):
    made = {
        "item_id": f"svamp_{i}",
        "question": f"How many {i}?",
        "answer_cot": f"There are {i}.",
        "answer_value": f"{i}.0",
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


def write(path, rows, **how):
    path.write_text(json.dumps(rows, **how), encoding="utf-8")
    return path


def message(call, *args, **kwargs):
    """The one message of the InputError that the call must raise."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Reading


def test_record_of_the_authors_form_is_taken_as_it_stands(tmp_path):
    path = write(
        tmp_path / "a.json",
        [row(7, question=" Wie viele Äpfel\u2028 🍎 ? ", answer_cot="Zwölf.\n\nThe answer is <7>.")],
    )
    (record,) = read("svamp", path, cot="nl")
    assert record == Record("svamp_7", " Wie viele Äpfel\u2028 🍎 ? ", "Zwölf.\n\nThe answer is <7>.", "7.0", "nl")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_list_and_lines_in_every_encoding_give_the_same_records(tmp_path, indent, ascii_only, mark, line_end):
    rows = [row(0), row(1, question="½ of 4\u2028é?"), row(2)]
    as_list = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    as_lines = "\n\n".join(json.dumps(r, ensure_ascii=ascii_only) for r in rows) + "\n"
    for name, text in (("list", as_list), ("lines", as_lines)):
        (tmp_path / name).write_bytes((mark + text.replace("\n", line_end)).encode())
    expected = tuple(Record(r["item_id"], r["question"], r["answer_cot"], r["answer_value"], "nl") for r in rows)
    assert read("svamp", tmp_path / "list", cot="nl") == expected
    assert read("svamp", tmp_path / "lines", cot="nl") == expected


def test_test_split_has_no_cot_even_where_the_file_has(tmp_path):
    path = write(tmp_path / "a.json", [row(0), row(1, answer_cot=None), row(2, answer_cot=5)])
    assert [r.cot for r in read("svamp", path, cot="program", split="test")] == ["", "", ""]
    assert {r.kind for r in read("svamp", path, cot="program", split="test")} == {"program"}


@pytest.mark.parametrize(
    "value,expected",
    [
        ("2,125", "2125"),
        ("-1,450,000.5", "-1450000.5"),
        ("203.0", "203.0"),
        (" 5 ", "5"),
        (72, "72"),
        (-0.5, "-0.5"),
        ("1/2", "1/2"),
    ],
)
def test_gold_numbers(value, expected):
    assert reader.parse_number("f:1", value, "answer_value") == expected


@pytest.mark.parametrize(
    "value", ["", "a", "12,34", "1/0", "nan", "inf", "1e999", float("nan"), True, None, [1], "5 apples", "٣"]
)
def test_gold_that_is_no_number_is_refused(value):
    assert message(reader.parse_number, "f.json:12", value, "answer_value").startswith("f.json:12: answer_value is ")


def test_gold_choices_are_lower_case_letters():
    assert reader.parse_choice("f:1", " C", "answer_value") == "c"
    for value in ("f", "38.0", "ab", "", 3, None):
        assert "mathqa-numeric" in message(reader.parse_choice, "f:1", value, "answer_value")


# Bad files: where and what


def test_each_bad_field_is_named_with_the_line_its_record_begins_at(tmp_path):
    cases = [
        (row(1, question=None), "the record has no field 'question', only 'item_id', 'answer_cot', 'answer_value'"),
        (row(1, question=5), "question is number 5; a text is expected"),
        (row(1, question=" \n"), "question is empty"),
        (row(1, question="a\ud800b"), "question holds half of a surrogate pair"),
        (row(1, answer_cot=None), "the record has no field 'answer_cot'"),
        (row(1, answer_cot=""), "answer_cot is empty"),
        (row(1, answer_value=None), "the record has no field 'answer_value'"),
        (row(1, answer_value="none"), 'answer_value is text "none"; a number is expected'),
        (row(1, item_id=None), "the record has no field 'item_id'"),
        (row(1, item_id=True), "item_id is true/false true; a text is expected"),
        (row(1, item_id="svamp_0"), "item_id 'svamp_0' stands at"),
        (row(1, answer_cot=PROGRAM), "answer_cot is a program, but config.data.cot='nl'"),
        ([1, 2], "a record is list [1, 2]"),
        (None, "a record is null null"),
    ]
    for bad, problem in cases:
        path = write(tmp_path / "a.json", [row(0), bad, row(2)], indent=2)  # a record takes 6 lines after the "["
        assert message(read, "svamp", path, cot="nl").startswith(f"{path}:8: {problem}")
        path.write_text("\n".join(json.dumps(r) for r in [row(0), row(3), bad]))
        assert message(read, "svamp", path, cot="nl").startswith(f"{path}:3: {problem}")


@pytest.mark.parametrize(
    "text,line,problem",
    [
        ('[\n{"a": 1},\n{"a": }\n]', 3, "Expecting value"),
        ('[\n{"a": 1}\n\n{"a": 2}]', 4, "expected ',' or ']' after a record"),
        ('[\n{"a": 1},\n]', 3, "Expecting value"),
        ('[\n{"a": 1},\n{"a": 1}', 3, "is the file cut off?"),
        ('[\n{"a": "b', 2, "Unterminated string"),
        ('[{"a": 1}]\n]', 2, "something follows the end of the list"),
        ('[{"a": "b\nc"}]', 1, "Invalid control character"),
        ('{"a": 1}\n{"a": 1,\n{"a": 1}', 2, "Expecting property name"),
        ('{"a": 1}\n\n{"a": 1} {"a": 2}', 3, "something follows the line's object"),
        ('{\n"a": 1\n}', 1, "Expecting property name"),
        ('{"a": ' + "1" * 5000 + "}", 1, "Exceeds the limit"),
        ("<html>", 1, "Expecting value"),
    ],
)
def test_malformed_json_is_named_by_line(tmp_path, text, line, problem):
    path = tmp_path / "a.json"
    path.write_text(text)
    said = message(files.read_raw, path)
    assert said.startswith(f"{path}:{line}: malformed JSON at column ") and problem in said


def test_endless_nesting_is_a_message_not_a_crash(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    assert message(files.read_raw, path).startswith(f"{path}:1: malformed JSON")


def test_files_that_are_absent_empty_or_not_text(tmp_path):
    path = tmp_path / "a.json"
    assert f"cannot read the data file {path}: No such file" in message(files.read_raw, path)
    assert "Is a directory" in message(files.read_raw, tmp_path)
    for text in ("", "\n \r\n", "\ufeff"):
        path.write_text(text, encoding="utf-8")
        assert f"{path}:1: the file is empty" in message(files.read_raw, path)
    path.write_text("[\n]")
    assert f"{path}:1: the data set is empty" in message(files.read_raw, path)
    path.write_bytes(b'[\n{"a": "\xff"}]')
    assert f"{path}:2: not UTF-8 (byte 0xff)" in message(files.read_raw, path)


def test_a_file_of_reasoning_is_not_read_as_programs(tmp_path):
    path = write(tmp_path / "a.json", [row(0)])
    assert "config.data.cot='nl'" in message(read, "svamp", path, cot="program")
    path = write(tmp_path / "a.json", [row(0, answer_cot="def solution():\n  return 3")])
    assert "indented by four spaces" in message(read, "svamp", path, cot="program")


def test_mathqa_letters_and_numbers_are_told_apart(tmp_path):
    path = write(tmp_path / "a.json", [row(0, answer_value="B")])
    assert read("mathqa", path, cot="nl")[0].answer == "b"
    assert "a number is expected" in message(read, "mathqa-numeric", path, cot="nl")
    path = write(tmp_path / "a.json", [row(0, answer_value="38.0")])
    assert read("mathqa-numeric", path, cot="nl")[0].answer == "38.0"
    assert "mathqa-numeric" in message(read, "mathqa", path, cot="nl")


@pytest.mark.parametrize("cot", ["nl", "program"])
@pytest.mark.parametrize("name, value", [("mathqa", "D"), ("mathqa-numeric", "38.0")])
def test_mathqa_of_all_four_forms_comes_through_load(tmp_path, name, value, cot):
    texts = dict(nl="So it is that.", program="def solution():\n    return 'd'")
    rows = [row(i, item_id=f"{name}_{i}", answer_value=value, answer_cot=texts[cot]) for i in range(6)]
    splits = tasks.load(Data(task=name, cot=cot, train_file=str(write(tmp_path / "a.json", rows)), dev_size=2))
    assert (len(splits.train), len(splits.dev)) == (4, 2)
    assert {(r.answer, r.cot, r.kind) for r in splits.train} == {(value.lower(), texts[cot], cot)}


@pytest.mark.parametrize(
    "options, right, also",
    [
        ("a ) 23 sec , b ) 15 sec , c ) 15  SEC , d ) 15 min , e ) 15", "b", ("c",)),
        ("a ) 2 / 5 , b ) 1 / 3 , c ) 2 / 6 , d ) 3 / 9 , e ) 1 / 3 rd", "b", ("c", "d")),
        ("a ) 8 am , b ) 8 pm , c ) rs . 8 , d ) none , e ) 9 / π", "a", ()),
        ("a ) 1.50 , b ) 1.5 , c ) 15 , d ) none of these , e ) None of these", "e", ("d",)),
        ("a )  , b )  , c ) 3", "a", ()),
    ],
)
def test_equal_options_are_both_right(tmp_path, options, right, also):
    made = row(0, answer_value=right, question=f"How many ?\n{options}")
    own = {"Problem": "How many ?", "options": options, "Rationale": "So.", "correct": right}
    for raw in (made, own):
        (record,) = read("mathqa", write(tmp_path / "a.json", [raw]), cot="nl")
        assert (record.answer, record.also, record.gold) == (right, also, " or ".join((right, *also)))


# GSM8K's original form

ORIGINAL = {
    "question": "Q?",
    "answer": "Half: 48/2 = <<48/2=24>>24.\nAll: $<<1000+125=1125>>1,125 #### so.\n#### 1,125",
}


def test_gsm8k_original_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (ORIGINAL, ORIGINAL)))
    stripped = "Half: 48/2 = 24.\nAll: $1,125 #### so."
    assert read("gsm8k", path, cot="nl") == tuple(Record(f"gsm8k_{i}", "Q?", stripped, "1125", "nl") for i in (0, 1))
    assert "<<48/2=24>>24" in read("gsm8k", path, cot="nl", calculator_marks="keep")[0].cot
    assert [(r.cot, r.answer) for r in read("gsm8k", path, cot="program", split="test")] == [("", "1125")] * 2
    assert "holds no programs" in message(read, "gsm8k", path, cot="program")


@pytest.mark.parametrize(
    "answer,problem",
    [
        ("It is 72.", "'#### 72' is expected"),
        ("x\n#### many", "the number after '####' is text"),
        ("#### 72", "no reasoning"),
        (7, "answer is number 7"),
    ],
)
def test_gsm8k_original_mistakes(tmp_path, answer, problem):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ORIGINAL) + "\n" + json.dumps({"question": "Q?", "answer": answer}))
    said = message(read, "gsm8k", path, cot="nl")
    assert said.startswith(f"{path}:2: ") and problem in said


def test_gsm8k_reads_the_authors_form_too(tmp_path):
    path = write(tmp_path / "a.json", [row(0, answer_cot=PROGRAM)])
    assert read("gsm8k", path, cot="program") == read("svamp", path, cot="program")


# load


def test_dev_cut_is_stable_and_keeps_equal_questions_together():
    records = [Record(f"r_{i}", f"How  many {i // 2 if i < 40 else i}?", "c", "1", "nl") for i in range(200)]
    records[1] = dataclasses.replace(records[1], question="how many 0?")  # equal but for case and spacing
    train, dev = cut_dev(records, 50, seed=1)
    assert len(dev) == 50 and sorted(train + dev, key=records.index) == records
    assert not {" ".join(r.question.lower().split()) for r in train} & {
        " ".join(r.question.lower().split()) for r in dev
    }
    shuffled = random.Random(0).sample(records, len(records))
    again_train, again_dev = cut_dev(shuffled, 50, seed=1)
    assert set(again_dev) == set(dev) and list(again_dev) == [r for r in shuffled if r in set(dev)]
    assert set(again_train) == set(train)
    assert set(cut_dev(records, 50, seed=2)[1]) != set(dev)
    grown = [*records, Record("r_new", "Something else?", "c", "1", "nl")]
    assert len(set(cut_dev(grown, 50, seed=1)[1]) & set(dev)) >= 48
    assert cut_dev(records, 0, seed=1) == (tuple(records), ())
    for size in (200, 201, -1):
        assert "legal are 0 to 199" in message(cut_dev, records, size, seed=1)


def test_load_cuts_caps_and_says_so(tmp_path):
    train = write(tmp_path / "train.json", [row(i) for i in range(50)])
    test = write(tmp_path / "test.json", [row(100 + i) for i in range(10)] + [row(200, question="how MANY  3?")])
    data = Data(train_file=str(train), test_file=str(test), dev_size=8, max_overlap=0.1)
    full = tasks.load(data)
    assert (len(full.train), len(full.dev), len(full.test)) == (42, 8, 11)
    (note,) = full.notes
    assert note.startswith("1 of 11 test questions stand in the training data too") and note.endswith("max_overlap=0.1")
    assert tasks.load(data) == full
    capped = tasks.load(dataclasses.replace(data, num_train=5, num_test=4))
    assert capped.dev == full.dev and len(capped.train) == 5 and len(capped.test) == 4
    assert set(capped.train) < set(full.train) and set(capped.test) < set(full.test)
    assert "config.data.num_train=5: 5 of 42 records are used" in capped.notes
    assert "config.data.num_test=4: 4 of 11 records are used" in capped.notes
    larger = tasks.load(dataclasses.replace(data, num_train=20))
    assert set(capped.train) < set(larger.train)
    assert tasks.load(dataclasses.replace(data, test_file="")).test == ()


def test_what_is_cut_and_capped_depends_on_neither_order_nor_process(tmp_path):
    rows = [row(i) for i in range(12)]
    data = Data(train_file=str(write(tmp_path / "a.json", rows)), dev_size=3, num_train=4)
    splits = tasks.load(data)
    # Fixed values: a run that resumes, or a result to compare with, needs the same dev split for ever.
    assert [r.item_id for r in splits.dev] == ["svamp_0", "svamp_1", "svamp_2"] and [
        r.item_id for r in splits.train
    ] == ["svamp_5", "svamp_7", "svamp_8", "svamp_9"]
    write(tmp_path / "a.json", rows[::-1])
    again = tasks.load(data)
    assert again.dev == splits.dev[::-1] and again.train == splits.train[::-1]


def test_load_says_which_programs_get_another_docstring(tmp_path):
    rows = [
        row(0, question="How many?", answer_cot=PROGRAM),
        row(1, answer_cot=PROGRAM),
        row(2, answer_cot="def solution():\n    return 2"),
    ]
    data = Data(cot="program", train_file=str(write(tmp_path / "a.json", rows)))
    assert tasks.load(data).notes == ("1 of 3 gold programs have their docstring replaced by the question: svamp_1",)
    without = tasks.load(dataclasses.replace(data, docstring=False)).notes
    assert without == (
        "2 of 3 gold programs have their docstring left out (config.data.docstring=False): svamp_0, svamp_1",
    )


def test_load_refuses_what_does_not_go_together(tmp_path):
    assert "config.data.train_file: got ''; svamp is read from files" in message(tasks.load, Data())
    for task, source, legal in (
        ("svamp", "generated", "files, tfds"),
        ("math", "tfds", "files"),
        ("arithmetic", "files", "generated"),
    ):
        matcher = "math" if task == "math" else "reft"
        found = dict(settings.Data(task=task, cot="nl", source=source, num_train=1, matcher=matcher).check())
        assert found == {"source": f"legal for {task} are {legal}"}
    assert "'gsm' is no file of tasks; did you mean 'gsm8k'?" in message(tasks.load, Data(task="gsm"))
    for key, value in (("cot", "python"), ("calculator_marks", "drop"), ("source", "web")):
        said = message(records.build, settings.Data, dict(task="svamp", cot="nl") | {key: value}, "config.data")
        assert said.startswith(f"config.data.{key}: got {value!r}; ")
    assert "no such file" in message(tasks.load, Data(train_file=str(tmp_path / "no.json"))).lower()


@pytest.mark.parametrize("cot", ["program", "nl"])
def test_generated_splits_do_not_meet(cot):
    data = Data(task="arithmetic", source="generated", cot=cot, num_train=60, num_test=40, dev_size=20, docstring=False)
    splits = tasks.load(data)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (60, 20, 40)
    assert len({r.question for r in splits.train + splits.dev + splits.test}) == 120
    assert {r.kind for r in splits.train} == {cot} and splits.notes == ()
    assert splits.train == arithmetic.generate("train", 60, seed=42, cot=cot, annotations="diverse")
    corpus = tasks.load(dataclasses.replace(data, annotations="corpus"))
    assert {r.kind for r in corpus.train} == {"text"} and corpus.test == splits.test
    assert tasks.load(dataclasses.replace(data, num_test=0)).test == ()


# The real files


def test_real_files_are_read_whole():
    root = shared_data()
    nl, programs = (
        read("svamp", root / "svamp_nl.json", cot="nl"),
        read("svamp", root / "svamp_python_sdp.json", cot="program"),
    )
    assert (len(nl), len(programs)) == (3076, 3043)
    sizes = {"svamp": 1000, "gsm8k": 1319, "mathqa": 1605, "mathqa-numeric": 1605}
    for name, size in sizes.items():
        assert len(read(name, root / f"{name}_test_set.json", cot="program", split="test")) == size
    train = read("gsm8k", root / "gsm8k" / "train.jsonl", cot="nl")
    assert len(train) == 7473 and not [r for r in train if "<<" in r.cot or ">>" in r.cot or "####" in r.cot]
    original = read("gsm8k", root / "gsm8k" / "test.jsonl", cot="nl", split="test")
    authors = read("gsm8k", root / "gsm8k_test_set.json", cot="nl", split="test")
    assert [(r.item_id, r.answer) for r in original] == [(r.item_id, r.answer) for r in authors]


def test_real_file_as_it_comes_through_load():
    root = shared_data()
    data = Data(
        cot="program",
        train_file=str(root / "svamp_python_sdp.json"),
        test_file=str(root / "svamp_test_set.json"),
        dev_size=200,
    )
    splits = tasks.load(data)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (2843, 200, 1000)
    replaced = prompts.replaced_docstrings(splits.train + splits.dev, docstring=True)
    assert len(replaced) == 37 and "docstring replaced by the question" in splits.notes[1]


def test_a_broken_real_file_is_named_by_line(tmp_path):
    lines = (shared_data() / "svamp_nl.json").read_text(encoding="utf-8").split("\n")
    path = tmp_path / "broken.json"
    path.write_text("\n".join(lines[:9000]), encoding="utf-8")
    assert message(read, "svamp", path, cot="nl").startswith(f"{path}:9000: malformed JSON")
    begin = next(i for i, line in enumerate(lines) if i > 9000 and line.strip() == "{")
    lines[begin + 2] = lines[begin + 2].replace('"question"', '"questoin"')
    path.write_text("\n".join(lines), encoding="utf-8")
    assert message(read, "svamp", path, cot="nl").startswith(f"{path}:{begin + 1}: the record has no field 'question'")


# Tasks as files


def test_math_is_read_from_the_authors_form_and_its_answers_are_expressions(tmp_path):
    answers = ["\\frac{1}{2}", " 2x + 1 ", "(1, 2]", 72, -0.5]
    rows = [row(i, item_id=f"math_{i}", answer_value=value) for i, value in enumerate(answers)]
    splits = tasks.load(Data(task="math", train_file=str(write(tmp_path / "a.json", rows)), dev_size=1))
    found = {r.item_id: r.answer for r in splits.train + splits.dev}
    assert [found[f"math_{i}"] for i in range(5)] == ["\\frac{1}{2}", "2x + 1", "(1, 2]", "72", "-0.5"]
    for bad, shown in (
        ("", 'text ""'),
        ("$", 'text "$"'),
        (None, "null null"),
        (True, "true/false true"),
        ([1], "list [1]"),
    ):
        path = tmp_path / "b.json"
        path.write_text(f"{json.dumps(rows[0])}\n{json.dumps(rows[1] | {'answer_value': bad})}")
        said = message(tasks.load, Data(task="math", train_file=str(path)))
        assert said.startswith(
            f"{path}:2: answer_value is {shown}; an expression is expected, in LaTeX or plain, such as \\frac"
        )


def test_tasks_say_what_goes_with_them():
    def said(task, **changes):
        data = dataclasses.replace(Data(task=task, num_train=5), **changes)
        return list(choices.load("tasks", task)().check(data))

    kinds = {name: choices.load("tasks", name)().kind for name in choices.names("tasks")}
    numbers = dict.fromkeys(("arithmetic", "gsm8k", "mathqa-numeric", "stories", "svamp"), "number")
    assert kinds == numbers | {"mathqa": "choice", "math": "expression"}
    for name in kinds:
        assert said(name) == []
        generated = choices.load("tasks", name)().sources == ("generated",)
        assert [key for key, _ in said(name, num_train=0)] == ["num_train"] * generated
        assert [key for key, _ in said(name, questions_file="a.json")] == ["questions_file"] * (name != "stories")
    assert said("gsm8k", questions_file="a.json") == [("questions_file", "it is for stories, and the task is 'gsm8k'")]
    for annotations, keys in dict(diverse=[], corpus=[], canonical=["annotations"], worked=["annotations"]).items():
        assert [key for key, _ in said("stories", annotations=annotations)] == keys
        assert said("arithmetic", annotations=annotations) == []


def test_a_task_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        "from reft_jax.data import reader\nfrom reft_jax.tasks import base\n\n\n"
        "def letter(row, data):\n    return row['label'] if row.index else reader.LEFT_OUT\n\n\n"
        "class Task(base.FromFiles):\n    kind = 'choice'\n"
        "    own = reader.Form('label', 'id', 'ask', ('label', letter), cot='why')\n"
    )
    rows = [{"id": i, "ask": f"How many {i}?", "why": "So.", "label": "C"} for i in range(4)]
    data = Data(task=str(path), train_file=str(write(tmp_path / "a.json", rows)), dev_size=1)
    splits = tasks.load(data)
    assert {r.answer for r in splits.train + splits.dev} == {"c"} and len(splits.train) == 2
    assert splits.notes == ("1 of 4 train questions left out: they are no questions of this task",)
    path_of_bad = write(tmp_path / "b.json", [*rows, rows[1] | {"id": 4, "why": None}], indent=2)
    said = message(tasks.load, dataclasses.replace(data, train_file=str(path_of_bad)))
    assert said == f"{path_of_bad}:26: why is null null; a text is expected"
    none = message(tasks.load, dataclasses.replace(data, train_file=str(write(tmp_path / "c.json", rows[:1]))))
    assert "c.json:1: all 1 train questions are left out: they are no questions of this task" in none
    assert score.answer_kind(str(path)) == "choice"
    assert [g.status for g in score.grade(str(path), "nl", ["Therefore, the answer is: c"], ["c"])] == ["correct"]
    assert f"config.data.train_file: got ''; {path} is read from files" in message(
        tasks.load, dataclasses.replace(data, train_file="")
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(question=None), "question is null null; a text is expected"),
        (dict(question=""), "question is empty; give it a text or remove the record"),
        (dict(answer=None), "answer is null null; a number is expected, such as 72, -3.5 or 1/2"),
        (dict(answer="many"), 'answer is text "many"; a number is expected, such as 72, -3.5 or 1/2'),
        (dict(item_id="q_0"), "item_id 'q_0' stands at {where}[0] already; every id must be unique"),
        (dict(cot="def solution():\n    return 1"), "cot is a program, but config.data.cot='nl'"),
        (dict(cot=7), "cot is number 7; a text is expected"),
        (dict(kind="text", cot="", question=""), "cot is empty; give it a text or remove the record"),
    ],
)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_records_that_a_task_makes_itself_are_checked_like_those_of_files(tmp_path, changes, said, split):
    path = tmp_path / "my.py"
    path.write_text(
        "from reft_jax.data.records import Record, Splits\n\n\nclass Task:\n    kind = 'number'\n    sources = ('generated',)\n\n"
        "    def splits(self, data):\n        good = [Record(f'q_{i}', f'{i}?', '', i, 'nl', tags=dict(i=i)) for i in range(2)]\n"
        f"        bad = Record(**dict(item_id='b', question='Q?', cot='', answer='1', kind='nl') | {changes!r})\n"
        f"        return Splits(*(good + [bad] * (name == data.manual_dir) for name in ('train', 'dev', 'test')), ('a note',))\n"
    )
    data = Data(task=str(path), source="generated")
    splits = tasks.load(data)
    assert splits.dev == splits.train == tuple(Record(f"q_{i}", f"{i}?", "", str(i), "nl", {"i": i}) for i in range(2))
    assert splits.notes == ("a note",)
    where = f"{path}/{split}"
    told = message(tasks.load, dataclasses.replace(data, manual_dir=split))
    assert told.startswith(f"{where}[2]: {said.format(where=where)}")


def test_complete_targets_need_neither_question_nor_answer(tmp_path):
    questions = write(tmp_path / "q.json", [row(i) for i in range(9)])
    data = Data(task="stories", source="generated", num_train=4, dev_size=1, questions_file=str(questions))
    assert [(r.question, r.answer, r.kind) for r in tasks.load(data).train[4:]] == [("", "", "text")] * 4
    write(questions, [row(0), row(1, question=None), row(2)])
    assert message(tasks.load, data).startswith(f"{questions}:1: the record has no field 'question'")


def test_dev_smaller_than_asked_is_said(tmp_path):
    rows = [row(i, question=f"How many {i % 2}?") for i in range(6)]
    splits = tasks.load(Data(train_file=str(write(tmp_path / "a.json", rows)), dev_size=4))
    assert (len(splits.train), len(splits.dev)) == (3, 3)
    assert splits.notes == ("config.data.dev_size=4: only 3 cut, since equal questions stay together",)


def test_data_modules_do_not_import_jax():
    code = (
        "import sys; from reft_jax import doctor, tasks; from reft_jax.config import choices\n"
        "from reft_jax.data import batching, files, packing, prompts, reader, splits, tokenizer\n"
        "for name in choices.names('tasks'): choices.load('tasks', name)\n"
        "sys.exit(', '.join(m for m in ('jax', 'flax', 'optax', 'transformers', 'torch') if m in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
