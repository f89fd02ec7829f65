"""The notebooks in colabs/: what is stored in git, the cell that installs, and that each of them runs from its first cell to its last."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from reft_jax.config import choices
from tests import runs

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e '.[test]'")

FOLDER = pathlib.Path(runs.ROOT) / "colabs"
NAMES = ("reft_quickstart", "reft_walkthrough", "your_own_data_and_reward", "evaluate_and_export")
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/reft-jax/reft_jax/blob/main/colabs/{}.ipynb)"
)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


# ------------------------------------------------------------------ what is stored


def test_these_are_all_and_the_texts_name_no_other():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)
    for name in NAMES:
        text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
        assert set(re.findall(r"(\w+)\.ipynb", text)) <= set(NAMES), name


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_holds_no_outputs(name):
    book, text = read(name), (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    nbformat.validate(book)
    assert text == nbformat.writes(book) + "\n"  # so that a change of a line is a change of a line in git
    assert book.cells[0].cell_type == "markdown" and BADGE.format(name) in book.cells[0].source
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids)
    for cell in book.cells:
        assert re.fullmatch(name.replace("_", "-") + r"-\d\d", cell.id) and cell.metadata == {}, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
            assert 0 < len(cell.source.splitlines()) <= 26, cell.id


def test_all_begin_with_the_same_installation_and_a_size():
    [install] = {code(name)[0] for name in NAMES}
    assert "git" in install and "pip" in install
    for name in NAMES:
        assert code(name)[1].startswith('SIZE = os.environ.get("REFT_COLAB_SIZE", "full")')


# ------------------------------------------------------------------ the first cell, with make-believe git and pip


@pytest.fixture
def install(tmp_path):
    """install(cwd, before="", gpu=False) runs the first cell in an interpreter that knows no packages; gives (process, calls of tools)."""
    tools, log = tmp_path / "tools", tmp_path / "log"
    tools.mkdir()
    log.touch()

    def tool(name, does=""):
        path = tools / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{does}\n')
        path.chmod(0o755)
        return path

    tool(
        "git",
        'for last; do :; done; mkdir -p "$last/reft_jax"; touch "$last/reft_jax/__init__.py" "$last/reft_jax/main.py"',
    )
    python = tool("python")

    def run(cwd, before="", gpu=False):
        cwd.mkdir(parents=True, exist_ok=True)
        if gpu:
            tool("nvidia-smi")
        # "": a kernel finds what lies in its folder
        source = f"import sys; sys.executable = {str(python)!r}; sys.path.insert(0, '')\n{before}\n{code(NAMES[0])[0]}\nprint(ROOT, os.getcwd())"
        process = subprocess.run(
            [sys.executable, "-I", "-S", "-c", source],
            cwd=cwd,
            env={"PATH": f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin"},
            capture_output=True,
            text=True,
        )
        calls = log.read_text().splitlines()
        log.write_text("")
        return process, calls

    return run


def test_where_nothing_is_there_it_clones_and_installs_the_pinned_project(install, tmp_path):
    content = tmp_path / "content"
    process, [clone, pip] = install(content, gpu=True)
    root = content / "reft-jax"  # by a name that cannot be imported: the clone's folder is no package
    assert process.stdout.split() == [str(root), str(root)], process.stderr
    assert clone == f"git clone --depth=1 https://github.com/reft-jax/reft_jax {root}"
    assert pip == f"python -m pip install -q -c {root}/launch/constraints.txt -e {root}[gpu]"
    again, [pip_again] = install(
        content, gpu=True
    )  # an installation that failed is tried again, in the clone that is there
    assert pip_again == pip and again.returncode == 0


def test_in_a_checkout_it_installs_that_and_where_it_is_importable_nothing(install, tmp_path):
    root = tmp_path / "mine"
    (root / "reft_jax").mkdir(parents=True)
    for name in ("__init__.py", "main.py"):
        (root / "reft_jax" / name).touch()
    process, [pip] = install(root / "colabs")
    assert process.stdout.split() == [str(root), str(root)], process.stderr
    assert re.fullmatch(rf"python -m pip install -q -c {root}/launch/constraints.txt -e {root}(\[tpu\])?", pip)
    process, calls = install(tmp_path / "elsewhere", before=f"sys.path.insert(0, {str(root)!r})")
    assert process.stdout.split() == [str(root), str(root)] and calls == []


def test_it_asks_for_a_restart_where_older_packages_are_loaded(install, tmp_path):
    process, calls = install(tmp_path / "content", before="sys.modules['numpy'] = sys")
    assert process.returncode == 1 and "Restart session" in process.stderr and len(calls) == 2


# ------------------------------------------------------------------ all of it


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """One folder for all: what goes on from the quickstart's run finds it there."""
    return tmp_path_factory.mktemp("colabs")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the tools that run notebooks
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, work):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e '.[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install -e '.[test]'")
    book = read(name)
    environment = runs.environment() | dict(
        REFT_COLAB_SIZE="smoke", REFT_COLAB_DIR=str(work), PYTHONPATH=str(runs.ROOT)
    )
    environment.pop("MPLBACKEND", None)
    place = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(book, timeout=runs.TIMEOUT, kernel_name="python3", resources=place).execute(env=environment)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    pictures = [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= {"reft_walkthrough": 10}.get(name, 1)
    assert all(cell.execution_count for cell in cells)
    check = dict(zip(NAMES, (check_quickstart, lambda work: None, check_own_rules, check_export), strict=True))
    check[name](work)


def check_quickstart(work):
    """Its numbers are the script's, digit for digit."""
    runs.assert_same_run(work / "quickstart_smoke", runs.unbroken())


def check_own_rules(work):
    """The matcher graded and the reward paid: not the package's 0.1 for a wrong number and 0 for a program that fails."""
    results = json.loads((work / "clock_smoke" / "results.json").read_text())["stages"]
    rules = str(work / "clock_rules.py")
    assert {row["matcher"] for row in results.values()} == {rules}
    about = json.loads((work / "clock_smoke" / "config.json").read_text())
    assert about["own_files"] == {rules: choices.sha256(rules)}
    assert list(about["config"]["stages"]["reft"]["rewards"]) == ["clock"]
    samples = runs.lines(work / "clock_smoke" / "reft" / "samples.jsonl")
    worth = {"correct": 1.0, "wrong": 0.0, "no_answer": 0.0}
    assert all(line["score"] == pytest.approx(worth.get(line["status"], -0.2)) for line in samples)
    assert {line["status"] for line in samples} - {"correct", "no_answer"}


def check_export(work):
    results = json.loads((work / "evaluate_smoke" / "results.json").read_text())["stages"]
    assert all("rerank@4" in results[label] for label in ("warmup_reranked", "reft_reranked"))
    assert (work / "evaluate_smoke" / "export" / "hf" / "model.safetensors").is_file()
