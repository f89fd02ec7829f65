"""What the documents promise: their Python runs, their commands are read, their links lead somewhere, and what they name is there.

A Python block that begins with `# NAME.py` is a file of the reader's own: it lies where the blocks after it and the commands look for it.
"""

import copy
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from reft_jax import __main__ as reft
from reft_jax import commands as commands_lib
from reft_jax import convert, doctor, fetch, main, recipe, rescore
from reft_jax.compile import __main__ as compiling
from reft_jax.data import fetch as data_fetch
from reft_jax.errors import InputError
from reft_jax.models import fetch as model_fetch
from reft_jax.report import __main__ as report
from reft_jax.report import terminal
from reft_jax.tables import __main__ as tables
from tests import runs, test_rooms

ROOT = pathlib.Path(runs.ROOT)
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "launch/README.md", *PAGES]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"# (\w+\.py)\n")  # the first line of a block that is a file
# Words of commands that stand for something, and files of a reader's own that no block has.
PLACEHOLDER = re.compile(r"\.\.\.|\b(NAME|DIR|ARGS)\b|\bmy\.py\b")
OTHERS = ("cp", "mkdir", "ln", "source", "pip", "tensorboard", ".ci/run")  # programs that are not looked into
UNSEEN = (
    "my.py",
    "reft_jax/losses/gce.py",
    "benchmarks/xla_flags_library.py",
)  # of a reader's own; the last is MaxText's
SPECS = (
    "configs/demo.py",
    "configs/reft.py:data=gsm8k,cot=nl,train_file=t.json",
    "my_config.py:data=arithmetic,model=arithmetic_base",
)


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return [found[3] for found in FENCED.finditer(text(document)) if found[2] == language]


def spans(document: str) -> list[str]:
    """Code within lines."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text(document)))


def own_files(document: str) -> dict[str, str]:
    found = [block for block in blocks(document, "python") if NAMED.match(block)]
    return {NAMED.match(block)[1]: block for block in found}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """write(document): a folder like a checkout, with the document's own files; the tests are then in it."""

    def write(document):
        for name in ("reft_jax", "configs", "benchmarks", "launch", "tests"):
            os.symlink(ROOT / name, tmp_path / name)
        for name, block in own_files(document).items():
            (tmp_path / name).write_text(block)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return write


# ------------------------------------------------------------------ Python


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if blocks(document, "python")])
def test_the_python_in_it_runs(checkout, document):
    checkout(document)
    names = {"__name__": "readme"}
    for block in blocks(document, "python"):
        line = text(document)[: text(document).index(block)].count("\n")
        exec(compile("\n" * line + block, document, "exec"), names)
    if document == "docs/adding-a-method.md":
        assert names["metrics"]["ppo/ratio_error"] == 0 and names["logits"].shape[:2] == (1, 3)


def test_the_pages_have_python_to_run():
    assert len(blocks("docs/adding-a-method.md", "python")) >= 9


# ------------------------------------------------------------------ commands


def read_main(argv):
    spec, _, overrides, _ = main.parse(argv)
    recipe.load(spec, overrides)


def read_compile(argv):
    spec, _, _, overrides = compiling.parse(argv)
    recipe.load(spec, overrides)


def read_program(argv):
    assert argv == ["--check"]


def read_fetch(argv):
    given = commands_lib.parse(argv, fetch.__doc__, fetch.FLAGS)
    what, name = given["WHAT"]
    {"model": model_fetch, "data": data_fetch}[what].FLAGS["NAME"].read(name)


READERS = {
    "fetch": read_fetch,
    "models.fetch": lambda argv: commands_lib.parse(argv, model_fetch.__doc__, model_fetch.FLAGS),
    "data.fetch": lambda argv: commands_lib.parse(argv, data_fetch.__doc__, data_fetch.FLAGS),
    "main": read_main,
    "compile": read_compile,
    "convert": convert.parse,
    "doctor": doctor.parse,
    "rescore": rescore.parse,
    "report": lambda argv: terminal.parse(argv[1:]) if argv[:1] == ["samples"] else report.parse(argv),
    "tables": tables.parse,
    "rewards.program": read_program,
}


def commands(shell: str) -> list[list[str]]:
    """The commands of some lines of shell, without comments and variables."""
    out = []
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        words.whitespace_split = True
        command = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|"):
                out, command = out + [command] * bool(command), []
            elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
                command.append(word)
    return out


def read(command: list[str]):
    """Raises where a command names what is not there, or has arguments that it does not take."""
    program, *argv = command
    if program == "reft" and argv:
        assert argv[0] in reft.commands(), command
        program, argv = "python", ["-m", f"reft_jax.{'main' if argv[0] == 'run' else argv[0]}", *argv[1:]]
    if program in ("python", ".venv/bin/python") and argv[0] == "-m":
        assert importlib.util.find_spec(argv[1]) is not None, command
        if (
            argv[1].startswith("reft_jax")
            and argv[2:] not in ([], ["--help"])
            and not any(map(PLACEHOLDER.search, argv))
        ):
            READERS[argv[1].removeprefix("reft_jax.")](argv[2:])
    elif program in ("python", "bash", ".venv/bin/python"):
        assert (ROOT / argv[0]).is_file(), command
        rest = argv[argv.index("--") + 1 :] if "--" in argv else []
        if argv[0] == "launch/demo.sh":
            rest = ["--config=configs/demo.py", "--workdir=runs/demo", *(word for word in argv if word[0] == "-")]
        if argv[0] == "launch/test.sh":
            assert all((ROOT / word).exists() for word in argv if word.startswith("tests/")), command
        if rest and not any(map(PLACEHOLDER.search, rest)):
            read_main(rest)
    else:
        assert program in OTHERS or program == "reft", command


@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_commands_are_read(checkout, document):
    checkout(document)
    for block in blocks(document, "bash"):
        for command in commands(block):
            read(command)
    for span in spans(document):
        if span.startswith(("python ", "bash ", "reft ")) and "NAME" not in span:
            for command in commands(re.sub(r"(seed)=N\b", r"\1=1", span)):
                read(command)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_flags_name_keys(checkout, document):
    checkout("docs/adding-a-method.md")
    trees = [recipe.load(spec)[1] for spec in SPECS]
    for span in spans(document):
        if "--config." not in span or PLACEHOLDER.search(span):
            continue
        for key, value in re.findall(r"^--config\.(.+?)=(.+)$", "\n".join(shlex.split(span)), re.MULTILINE):
            told = []
            for tree in trees:
                try:
                    recipe.override(copy.deepcopy(tree), key, value)
                except InputError as error:
                    told.append(str(error))
            assert len(told) < len(trees), told


def test_a_command_that_is_wrong_is_found(checkout):
    checkout("README.md")
    for shell in (
        "python -m reft_jax.nothing runs",
        "reft reprot runs/demo",
        "bash launch/nothing.sh",
        "python benchmarks/nothing.py",
        "python -m reft_jax.main --config=nothing --workdir=runs/x",
        "python -m reft_jax.main --config=demo:sede=1 --workdir=runs/x",
        "A=1 python -m reft_jax.main --config=demo --workdir=runs/x --config.sede=1",
        "bash launch/demo.sh runs/x --config=configs/demo.py:sede=1",
        "python -m reft_jax.tables runs --tabel=main",
        "cp a b; wrong c",
    ):
        with pytest.raises((AssertionError, ImportError, InputError, SystemExit)):
            for command in commands(shell):
                read(command)


# ------------------------------------------------------------------ links, files


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text(document))):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_it_names_are_there(document):
    known = {
        path.name
        for name in ("reft_jax", "benchmarks", "launch", "tests", "configs")
        for path in (ROOT / name).rglob("*.*")
    }
    prose = text(document)
    own = {*own_files(document), *UNSEEN}
    if document != "docs/adding-a-method.md":
        own |= set(own_files("docs/adding-a-method.md"))
    extensions = "py|sh|md|csv|svg|yaml|sbatch|ipynb"
    for name in re.findall(rf"(?<![\w/.*>-])((?:\.?[\w-]+/)*[\w-]+\.(?:{extensions}))\b(?![\w/])", prose):
        places = (ROOT / name, ROOT / "reft_jax" / name, (ROOT / document).parent / name)
        assert name in own or any(place.exists() for place in places) or "/" not in name and name in known, name
    for name in re.findall(r"`((?:[\w.-]+/)+)`", prose):
        assert (ROOT / name).is_dir() or (ROOT / "reft_jax" / name).is_dir() or (ROOT / "launch" / name).is_dir(), name


def test_every_page_is_linked_from_the_readme_which_is_short():
    linked = set(re.findall(r"\]\(([^)\s#]+)", text("README.md")))
    assert set(PAGES) <= linked
    assert len(text("README.md").encode()) <= 14_000


def test_the_readme_names_folders_that_are_there():
    [tree] = re.findall(r"## Where everything is\n\n```\n(.*?)```", text("README.md"), re.DOTALL)
    assert len(tree.splitlines()) <= 14
    for name in re.findall(r"(?<![\w/])((?:\w+/)+)", tree):
        assert (ROOT / name).is_dir() or (ROOT / "reft_jax" / name).is_dir(), name


def test_the_tree_names_every_module_and_nothing_else():
    [tree] = re.findall(r"## Where everything is\n\n```\n(.*?)```", text("docs/architecture.md"), re.DOTALL)
    package = tree[tree.index("reft_jax/\n") : tree.index("benchmarks/")]
    for path in (ROOT / "reft_jax").glob("*.py"):
        assert path.name in package or path.name == "__init__.py", path.name
    for path in (ROOT / "reft_jax").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in package, path.name
    for name in re.findall(r"\b\w+\.py\b", package):
        assert list((ROOT / "reft_jax").rglob(name)), name


# ------------------------------------------------------------------ docs/adding-a-method.md

ADDING = "docs/adding-a-method.md"
SPEC = "my_config.py:data=arithmetic,model=arithmetic_base,smoke"


def test_the_added_loss_is_what_the_config_says(checkout):
    checkout(ADDING)
    _, tree = recipe.load(SPEC)
    assert tree["stages"]["sft"]["losses"] == {"gce": {"use": "my_loss.py", "coef": 1.0, "q": 0.5}}
    assert set(recipe.own_files(tree)) == {"my_loss.py"}
    with pytest.raises(InputError) as caught:
        recipe.load(SPEC, [("stages.sft.losses.gce.q", "2")])
    assert f"error: {caught.value}" in text(ADDING)
    with pytest.raises(InputError, match="unknown key; did you mean 'coef'"):
        recipe.load(SPEC, [("stages.sft.losses.gce.coeff", "2")])


def test_the_added_loss_is_refused_where_a_stage_does_not_give_what_it_reads(checkout):
    path = checkout(ADDING) / "my_loss.py"
    path.write_text(path.read_text().replace("reads = ()", 'reads = ("adv",)'))
    with pytest.raises(InputError, match="it reads adv, which a batch of texts does not give"):
        recipe.load(SPEC)


@pytest.mark.slow
def test_the_suite_passes_the_added_loss(checkout):
    path = str(checkout(ADDING) / "my_loss.py")
    test_rooms.test_a_record_builds_from_its_defaults_says_its_ranges_and_is_a_key("losses", path)
    test_rooms.test_a_loss_does_not_see_what_the_mask_excludes_and_has_finite_gradients(path)
    test_rooms.test_a_loss_reads_the_columns_that_it_names_and_is_traced_once(path)
    test_rooms.test_a_loss_is_the_same_for_every_split_of_the_batch(path)


@pytest.mark.slow
def test_the_worked_example_runs_as_it_is_written(checkout):
    """The page's commands but for the suite's: a run from the config, its compilation, the same run from flags; then a changed file."""
    folder = checkout(ADDING)
    ours = [command for block in blocks(ADDING, "bash") for command in commands(block) if command[0] == "python"]
    assert [command[2] for command in ours] == ["reft_jax.main", "reft_jax.compile", "reft_jax.main"]

    def start(command):
        argv = [sys.executable, *command[1:]]
        return subprocess.run(
            argv, cwd=folder, env=runs.environment(), capture_output=True, text=True, timeout=runs.TIMEOUT
        )

    for command in ours:
        done = start(command)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        if command[2] == "reft_jax.compile":
            assert '"function": "sft/sft_step"' in done.stdout
    first, second = (runs.lines(folder / "runs" / name / "sft" / "metrics.jsonl") for name in ("gce", "gce_flags"))
    assert runs.timeless(first) == runs.timeless(second)
    assert first and all(0 < line["gce/loss"] == pytest.approx(line["sft/loss"]) for line in first)
    about = json.loads((folder / "runs/gce/config.json").read_text())
    assert list(about["own_files"]) == ["my_loss.py"] and len(about["own_files"]["my_loss.py"]) == 64
    assert "gce/loss" in (folder / "runs/gce/report.html").read_text()

    (folder / "my_loss.py").write_text((folder / "my_loss.py").read_text() + "# changed\n")
    (folder / "runs/gce/sft/DONE").unlink()  # the code of what is done may change
    done = start(ours[0])
    assert done.returncode == 2 and "its run was begun with another my_loss.py" in done.stderr
