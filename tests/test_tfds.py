"""TensorFlow Datasets as a source: builders of our own, made-up originals through manual_dir, read without TensorFlow."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile

import pytest

from reft_jax import recipe, tasks
from reft_jax.errors import InputError
from reft_jax.tasks import mathqa, svamp, tfds
from tests import runs
from tests.test_data_files import Data
from tests.tiny import read, shared_data

GSM8K = [
    {"question": f"Half of {2 * i}?", "answer": f"It is {2 * i}/2 = <<{2 * i}/2={i}>>{i}.\n#### {i}"} for i in range(30)
]
SVAMP = [
    {
        "ID": f"chal-{i}",
        "Body": f"Tom has {i} pens ",
        "Question": "How many?",
        "Equation": f"( {i}.0 )",
        "Answer": float(i),
        "Type": "None",
    }
    for i in range(4)
]
MATHQA = [
    {
        "Problem": f"what is 2 * {i} ?",
        "Rationale": f'"it is {2 * i} . answer a"',
        "options": f"a ) {2 * i} cm , b ) 1 1 / 2 , c ) none",
        "correct": "b" if i == 3 else "a",
        "annotated_formula": "",
        "linear_formula": "",
        "category": "gain",
    }
    for i in range(12)
]


@pytest.fixture
def originals(tmp_path):
    """A folder with all original files, filled with the above."""
    folder = tmp_path / "originals"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, GSM8K[:20])))
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, GSM8K[20:])))
    (folder / "SVAMP.json").write_text(json.dumps(SVAMP))
    with zipfile.ZipFile(folder / "MathQA.zip", "w") as archive:
        for name, part in (("train", MATHQA[:8]), ("dev", MATHQA[8:9]), ("test", MATHQA[9:])):
            archive.writestr(f"{name}.json", json.dumps(part))
    return folder


@pytest.fixture
def data(tmp_path, originals):
    """config.data for it; skips where TFDS is not installed."""
    pytest.importorskip(
        "tensorflow_datasets", reason="tensorflow-datasets is not installed (pip install 'reft_jax[tfds]')"
    )
    return Data(source="tfds", tfds_dir=str(tmp_path / "tfds"), manual_dir=str(originals))


pytestmark = pytest.mark.filterwarnings("ignore")  # TFDS and what it is built on warn of themselves


def test_gsm8k_is_what_its_files_are(data, originals):
    found = tasks.load(dataclasses.replace(data, task="gsm8k", dev_size=4))
    from_files = tasks.load(
        Data(
            task="gsm8k", train_file=str(originals / "train.jsonl"), test_file=str(originals / "test.jsonl"), dev_size=4
        )
    )
    assert found == from_files and len(found.train) == 16 and len(found.test) == 10
    assert found.test[0].place == "reft_gsm8k/2.0.0/test[0]"


def test_svamp_gives_test_questions_and_files_the_training(data, tmp_path):
    with pytest.raises(InputError, match="config.data.train_file"):
        tasks.load(data)
    train = tmp_path / "train.json"
    train.write_text(
        json.dumps(
            [
                {
                    "item_id": "svamp_0",
                    "question": "Q?",
                    "answer_cot": "def solution():\n    return 1",
                    "answer_value": "1",
                }
            ]
        )
    )
    found = tasks.load(dataclasses.replace(data, cot="program", train_file=str(train)))
    assert [(r.item_id, r.question, r.answer, r.kind) for r in found.test[:2]] == [
        ("chal-0", "Tom has 0 pens How many?", "0.0", "program"),
        ("chal-1", "Tom has 1 pens How many?", "1.0", "program"),
    ]
    assert len(found.train) == 1


def test_mathqa_with_letters_and_with_numbers(data):
    letters = tasks.load(dataclasses.replace(data, task="mathqa"))
    assert len(letters.train) == 8 and letters.train[3].answer == "b" and letters.notes == ()
    first = letters.train[0]
    assert (first.question, first.cot) == ("what is 2 * 0 ?\na ) 0 cm , b ) 1 1 / 2 , c ) none", "it is 0 . answer a")
    numbers = tasks.load(dataclasses.replace(data, task="mathqa-numeric"))
    assert [r.answer for r in numbers.train] == ["0", "2", "4", "8", "10", "12", "14"]
    assert numbers.train[0].question == "what is 2 * 0 ?" and numbers.train[0].item_id == "mathqa-numeric_0"
    assert numbers.notes == ("1 of 8 train questions left out: their right option is not one number",)


@pytest.mark.parametrize("name", ["gsm8k", "mathqa"])
def test_programs_come_from_files_only(data, name):
    with pytest.raises(InputError, match="config.data.train_file: got ''.*holds no programs"):
        tasks.load(dataclasses.replace(data, task=name, cot="program"))


def test_other_originals_are_another_build(data, originals):
    name = dataclasses.replace(data, task="gsm8k")
    before = tasks.load(name)
    assert tasks.load(name) == before
    (originals / "train.jsonl").write_text(json.dumps(GSM8K[0]))
    assert len(tasks.load(name).train) == 1


def test_what_is_wrong_in_an_original_is_named_by_its_line(data, originals):
    (originals / "train.jsonl").write_text(json.dumps(GSM8K[0]) + "\n{")
    with pytest.raises(InputError, match=r"train.jsonl:2: malformed JSON"):
        tasks.load(dataclasses.replace(data, task="gsm8k"))
    (originals / "train.jsonl").write_text(json.dumps(GSM8K[0]) + "\n" + json.dumps({"question": "Q?"}))
    with pytest.raises(
        InputError, match=r"reft_gsm8k/2.0.0/train\[1\]: the record has no field 'answer', only 'question'; add it"
    ):
        tasks.load(dataclasses.replace(data, task="gsm8k"))


# ------------------------------------------------------------------ the checks are those of files

AUTHORS = {"item_id": "a", "question": "Q?", "answer_cot": "It is 3.", "answer_value": "3"}
BAD = [  # task, the original file, a good record, what is wrong in the second, what is said
    ("gsm8k", "train.jsonl", GSM8K[0], {"question": None}, "question is null null; a text is expected"),
    ("gsm8k", "train.jsonl", GSM8K[0], {"answer": None}, "answer is null null; a text is expected"),
    ("gsm8k", "train.jsonl", GSM8K[0], {"question": 5}, "question is number 5; a text is expected"),
    ("gsm8k", "train.jsonl", GSM8K[0], {"question": ["Q?"]}, 'question is list ["Q?"]; a text is expected'),
    ("gsm8k", "train.jsonl", GSM8K[0], {"question": " \n"}, "question is empty; give it a text or remove the record"),
    ("gsm8k", "train.jsonl", GSM8K[0], {"answer": "So.\n#### x"}, "the number after '####' is text \"x\"; a number is"),
    ("gsm8k", "train.jsonl", GSM8K[0], {"question": "a\ud800b"}, "question holds half of a surrogate pair"),
    ("gsm8k", "train.jsonl", GSM8K[0], {"answer": "def solution():\n    return 1\n#### 1"}, "answer is a program, but"),
    ("gsm8k", "train.jsonl", GSM8K[0], [1, 2], "a record is list [1, 2]; one JSON object per question is expected"),
    ("gsm8k", "train.jsonl", GSM8K[0], None, "a record is null null; one JSON object per question is expected"),
    ("gsm8k", "train.jsonl", AUTHORS, {}, "item_id 'a' stands at {first} already; every id must be unique"),
    ("svamp", "SVAMP.json", SVAMP[0], {}, "ID 'chal-0' stands at {first} already; every id must be unique"),
    ("svamp", "SVAMP.json", SVAMP[0], {"ID": "b", "Body": None}, "Body is null null; a text is expected"),
    ("svamp", "SVAMP.json", SVAMP[0], {"ID": "b", "Answer": None}, "Answer is null null; a number is expected"),
    ("svamp", "SVAMP.json", SVAMP[0], {"ID": "b", "Answer": True}, "Answer is true/false true; a number is expected"),
    ("mathqa", "MathQA.zip", MATHQA[0], {"correct": None}, "correct is null null; a letter from a to e is expected"),
    ("mathqa", "MathQA.zip", MATHQA[0], {"options": "none"}, "options has no 'a' ), which is the correct one; add it"),
    ("mathqa", "MathQA.zip", MATHQA[0], {"Rationale": '""'}, "Rationale is empty; give it a text or remove the record"),
    ("mathqa-numeric", "MathQA.zip", MATHQA[0], {"correct": "d"}, "options has no 'd' ), which is the correct one"),
]


@pytest.mark.parametrize(("task", "original", "good", "wrong", "said"), BAD, ids=[f"{b[0]}-{b[-1][:30]}" for b in BAD])
def test_a_bad_record_is_refused_with_the_same_words_as_in_a_file(
    data, originals, tmp_path, task, original, good, wrong, said
):
    rows = json.dumps([good, good | wrong if isinstance(wrong, dict) else wrong])
    path = tmp_path / "rows.json"
    path.write_text(rows)
    split = "test" if task == "svamp" else "train"
    with pytest.raises(InputError) as from_file:
        read(task, path, split=split)
    assert str(from_file.value).startswith(f"{path}:1: {said.format(first=f'{path}:1')}")

    if original == "MathQA.zip":
        with zipfile.ZipFile(originals / original, "w") as archive:
            for name in ("train", "dev", "test"):
                archive.writestr(f"{name}.json", rows)
    else:
        (originals / original).write_text(rows)
    changes = dict(task=task)
    if task == "svamp":
        (tmp_path / "train.json").write_text(json.dumps([AUTHORS]))
        changes["train_file"] = str(tmp_path / "train.json")
    with pytest.raises(InputError) as from_tfds:
        tasks.load(dataclasses.replace(data, **changes))
    name = f"reft_{task.partition('-')[0]}/2.0.0/{split}"
    told = str(from_file.value).replace(f"{path}:1: ", f"{name}[1]: ", 1).replace(f"{path}:1", f"{name}[0]")
    assert str(from_tfds.value) == told


def test_values_come_through_with_their_types(data, originals):
    rows = [SVAMP[0] | {"Answer": 10**30, "Type": None, "Equation": ["\u2028", 1e-7, {"x": True}]}, {}]
    (originals / "SVAMP.json").write_text(json.dumps(rows))
    raw = tfds.read_raw(svamp.Task.published, "test", tfds_dir=data.tfds_dir, manual_dir=data.manual_dir)
    assert [value for _, value in raw] == rows


def test_a_folder_without_the_originals_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no MathQA.zip"):
        tfds.read_raw(mathqa.Task.published, "train", tfds_dir=str(tmp_path), manual_dir=str(tmp_path))


def test_without_tfds_the_error_says_what_to_install(originals, tmp_path):
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = None\n"
        "from reft_jax.tasks import gsm8k, tfds\n"
        f"tfds.read_raw(gsm8k.Task.published, 'train', tfds_dir={str(tmp_path)!r}, manual_dir={str(originals)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=runs.ROOT)
    assert (
        done.returncode
        and "InputError: config.data.source='tfds' needs" in done.stderr
        and "reft_jax[tfds]" in done.stderr
    )


def test_neither_tensorflow_nor_jax_is_imported(data):
    code = (
        "import sys; from reft_jax.tasks import gsm8k, tfds\n"
        f"tfds.read_raw(gsm8k.Task.published, 'train', tfds_dir={data.tfds_dir!r}, manual_dir={data.manual_dir!r})\n"
        "sys.exit(', '.join(m for m in ('tensorflow', 'jax') if m in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=runs.ROOT)
    assert done.returncode == 0, done.stderr


def test_checksums_are_those_of_the_public_files():
    lines = [line.split("\t") for line in (runs.ROOT / "reft_jax/tasks/tfds/checksums.tsv").read_text().splitlines()]
    assert [len(line) for line in lines] == [4] * len(lines)
    known = {name: (int(size), sha256) for _, size, sha256, name in lines}
    assert known["MathQA.zip"][0] == 7302821
    folder = shared_data() / "gsm8k"
    for name in ("train.jsonl", "test.jsonl"):
        assert known[name][0] == (folder / name).stat().st_size
        assert known[name][1] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_what_tfds_needs_is_said_before_anything_is_built(data):
    spec = str(runs.ROOT / "configs" / "reft.py") + ":smoke,model=tiny,"
    flags = [("data.source", "tfds"), ("data.tfds_dir", data.tfds_dir), ("data.manual_dir", data.manual_dir)]
    for which in ("data=gsm8k,cot=program", "data=svamp,cot=nl", "data=mathqa,cot=program"):
        with pytest.raises(InputError, match="config.data.train_file.*form"):
            tasks.load(recipe.load(spec + which, flags)[0].data)
    with pytest.raises(InputError, match="config.data.manual_dir.*'tfds'"):
        recipe.load(spec + "data=gsm8k,cot=nl,train_file=a", flags[2:])
    config, _ = recipe.load(spec + "data=gsm8k,cot=nl", [*flags, ("data.dev_size", "4")])
    assert len(tasks.load(config.data).train) == 16


# ------------------------------------------------------------------ MathQA's options


@pytest.mark.parametrize("text, expected", [
    ("a ) 38 , b ) 27.675 , c ) none of these", {"a": "38", "b": "27.675", "c": "none of these"}),
    ("['a ) 1,560', 'b ) 15 / 8 ohms']", {"a": "1,560", "b": "15 / 8 ohms"}),
    ("a) 2, b)3", {"a": "2", "b": "3"}),
    ("none", {}),
])  # fmt: skip
def test_options(text, expected):
    assert mathqa.split_options(text) == expected


@pytest.mark.parametrize("option, number", [
    ("rs . 1,560", "1560"), ("15 / 8 ohms", "15/8"), ("- 6", "-6"), ("5 %", "5"), (".5", ".5"), ("$ 3.50", "3.50"),
    ("7 1 / 2", None), ("1 / 0", None), ("1 / 05", "1/05"), ("none of these", None), ("288 cm 2", None), ("10 : 3", None),
])  # fmt: skip
def test_the_only_number_of_an_option(option, number):
    assert mathqa.only_number(option) == number


def test_numeric_answers_are_the_authors_labels():
    """Their test files hold the same questions with options and with numbers; 5 of the labels lose a sign or thousands."""
    root = shared_data()
    letters, numbers = (
        {r.item_id.split("_")[1]: r for r in read(name, root / f"{name}_test_set.json", split="test")}
        for name in ("mathqa", "mathqa-numeric")
    )
    found = {}
    for key, record in letters.items():
        option = mathqa.split_options(record.question.rpartition("\n")[2])[record.answer]
        if (number := mathqa.only_number(option)) is not None:
            top, _, bottom = number.partition("/")
            found[key] = abs(float(top) / float(bottom or 1) - float(numbers[key].answer)) < 0.01
    assert len(letters) == 1605 and len(found) == 1579 and sum(found.values()) == 1574


def test_svamps_own_file_is_read_as_a_test_set(originals):
    found = read("svamp", originals / "SVAMP.json", split="test")
    assert [r.answer for r in found] == ["0.0", "1.0", "2.0", "3.0"]
    with pytest.raises(InputError, match="holds no reasoning"):
        read("svamp", originals / "SVAMP.json")
