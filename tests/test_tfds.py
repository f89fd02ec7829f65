"""TensorFlow Datasets as a source: builders of our own, made-up originals through manual_dir, read without TensorFlow."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile

import pytest

from reft_jax import recipe, tasks
from reft_jax.data import files
from reft_jax.errors import InputError
from reft_jax.tasks import mathqa, svamp
from reft_jax.tasks import tfds as tfds_builders
from tests import runs
from tests.test_data_files import Data
from tests.tiny import shared_data

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
    assert found.test[0].place == "reft_gsm8k/1.0.0/test:1"


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
    with pytest.raises(InputError, match=r"reft_gsm8k/1.0.0/train:2: answer is empty"):
        tasks.load(dataclasses.replace(data, task="gsm8k"))


def test_a_folder_without_the_originals_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no MathQA.zip"):
        tfds_builders.read_objects("mathqa", "train", tfds_dir=str(tmp_path), manual_dir=str(tmp_path))
    with pytest.raises(
        InputError, match="config.data.source: got 'tfds'; my.py is not built there, only gsm8k, svamp, "
    ):
        tfds_builders.read_objects("my.py", "train")


def test_without_tfds_the_error_says_what_to_install(originals, tmp_path):
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = None\n"
        "from reft_jax.tasks import tfds as tfds_builders\n"
        f"tfds_builders.read_objects('gsm8k', 'train', tfds_dir={str(tmp_path)!r}, manual_dir={str(originals)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=runs.ROOT)
    assert (
        done.returncode
        and "InputError: config.data.source='tfds' needs" in done.stderr
        and "reft_jax[tfds]" in done.stderr
    )


def test_neither_tensorflow_nor_jax_is_imported(data):
    code = (
        "import sys; from reft_jax.tasks import tfds as tfds_builders\n"
        f"tfds_builders.read_objects('gsm8k', 'train', tfds_dir={data.tfds_dir!r}, manual_dir={data.manual_dir!r})\n"
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
    tfds = [("data.source", "tfds"), ("data.tfds_dir", data.tfds_dir), ("data.manual_dir", data.manual_dir)]
    for which in ("data=gsm8k,cot=program", "data=svamp,cot=nl", "data=mathqa,cot=program"):
        with pytest.raises(InputError, match="config.data.train_file.*form"):
            tasks.load(recipe.load(spec + which, tfds)[0].data)
    with pytest.raises(InputError, match="config.data.manual_dir.*'tfds'"):
        recipe.load(spec + "data=gsm8k,cot=nl,train_file=a", tfds[2:])
    config, _ = recipe.load(spec + "data=gsm8k,cot=nl", [*tfds, ("data.dev_size", "4")])
    assert len(tasks.load(config.data).train) == 16


# ------------------------------------------------------------------ MathQA's options


@pytest.mark.parametrize("text, expected", [
    ("a ) 38 , b ) 27.675 , c ) none of these", {"a": "38", "b": "27.675", "c": "none of these"}),
    ("['a ) 1,560', 'b ) 15 / 8 ohms']", {"a": "1,560", "b": "15 / 8 ohms"}),
    ("a) 2, b)3", {"a": "2", "b": "3"}),
])  # fmt: skip
def test_options(text, expected):
    assert mathqa.split_options(text) == expected


@pytest.mark.parametrize("option, number", [
    ("rs . 1,560", "1560"), ("15 / 8 ohms", "15/8"), ("- 6", "-6"), ("5 %", "5"), (".5", ".5"), ("$ 3.50", "3.50"),
    ("7 1 / 2", None), ("none of these", None), ("288 cm 2", None), ("10 : 3", None),
])  # fmt: skip
def test_the_only_number_of_an_option(option, number):
    assert mathqa.only_number(option) == number


def test_numeric_answers_are_the_authors_labels():
    """Their test files hold the same questions with options and with numbers; 5 of the labels lose a sign or thousands."""
    root = shared_data()
    letters, numbers = (
        {
            r.item_id.split("_")[1]: r
            for r in mathqa.read(root / f"{name}_test_set.json", cot="nl", split="test", numeric=numeric)
        }
        for name, numeric in (("mathqa", False), ("mathqa-numeric", True))
    )
    found = {}
    for key, record in letters.items():
        option = mathqa.split_options(record.question.rpartition("\n")[2])[record.answer]
        if (number := mathqa.only_number(option)) is not None:
            top, _, bottom = number.partition("/")
            found[key] = abs(float(top) / float(bottom or 1) - float(numbers[key].answer)) < 0.01
    assert len(letters) == 1605 and len(found) == 1579 and sum(found.values()) == 1574


def test_svamps_own_file_is_read_as_a_test_set(originals):
    found = svamp.Task().read(files.read_objects(originals / "SVAMP.json"), Data(), split="test")
    assert [r.answer for r in found] == ["0.0", "1.0", "2.0", "3.0"]
    with pytest.raises(InputError, match="holds no reasoning"):
        svamp.Task().read(files.read_objects(originals / "SVAMP.json"), Data(), split="train")
