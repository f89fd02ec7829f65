"""The direction of imports, and the names that users import."""

import ast
import importlib
import pathlib
import re

from tests import runs

PACKAGE = runs.ROOT / "reft_jax"
# A room may import those that stand after it. Commands come first.
ORDER = (
    *("__main__", "main", "compile", "convert", "doctor", "fetch", "rescore", "tables", "report"),
    *("prepare", "recipe", "stages", "training", "rollouts", "run", "sampling", "models", "mesh", "tasks", "rewards"),
    *("data", "advantages", "losses", "optim", "commands", "config", "types", "masked", "errors", "configs"),
)
COMMANDS = ORDER[:9]
# Where users of the first versions import from: they only re-export.
THIN = {"reft_jax.checkpoint", "reft_jax.losses.ppo", "reft_jax.losses.advantages"}
NO_JAX = ("rewards", "data", "tasks", "configs", "config", "recipe")
USED = {
    "reft_jax.losses.advantages": ["gae"],
    "reft_jax.losses.ppo": ["token_rewards", "ppo_loss"],
    "reft_jax.masked": ["whiten"],
    "reft_jax.rewards.program": ["run_programs"],
    "reft_jax.rewards.score": ["grade"],
    "reft_jax.models": ["load_hf", "save_hf", "logits"],
    "reft_jax.sampling": ["generate"],
    "reft_jax.checkpoint": ["load_params"],
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "configs").glob("*.py")]):
        name = ".".join(path.relative_to(runs.ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


TREES = modules()


def imported(tree, *, top: bool) -> set[str]:
    """Modules that a file imports at its top, or anywhere."""
    nodes = tree.body if top else ast.walk(tree)
    out = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                out.add(full if full in TREES else node.module)
        elif isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
    return out


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_imports_run_one_way():
    assert {room(name) for name in TREES} - {"", "checkpoint"} == set(ORDER), "say where a new room stands"
    place = {name: i for i, name in enumerate(ORDER)}
    wrong = [
        f"{name} imports {other}"
        for name, tree in TREES.items()
        if name not in THIN and room(name)
        for other in imported(tree, top=False)
        if other.startswith("reft_jax.") and other not in THIN and place[room(other)] < place[room(name)]
    ]
    assert wrong == []


def test_no_circle_within_a_room():
    graph = {name: imported(tree, top=True) & set(TREES) - {name} for name, tree in TREES.items()}
    done, walked = set(), []

    def walk(name):
        assert name not in walked, " -> ".join([*walked[walked.index(name) :], name])
        if name not in done:
            walked.append(name)
            for other in graph[name]:
                walk(other)
            done.add(walked.pop())

    for name in graph:
        walk(name)


def test_imports_inside_functions_are_those_of_commands_and_of_optional_packages():
    for name, tree in TREES.items():
        inside = imported(tree, top=False) - imported(tree, top=True)
        ours = {other for other in inside if other.startswith("reft_jax")}
        if room(name) not in COMMANDS:
            assert ours <= {"reft_jax.tasks.tfds.builders", "reft_jax.models.decoder"}, (name, ours)


def test_what_runs_on_the_host_does_not_import_jax():
    for name, tree in TREES.items():
        if room(name) in NO_JAX:
            assert not {other for other in imported(tree, top=False) if other.split(".")[0] in ("jax", "flax")}, name


def test_the_root_holds_commands_and_words_only():
    assert len(list(PACKAGE.glob("*.py"))) <= 14


def test_names_that_users_import_stay_where_they_are():
    for module, names in USED.items():
        found = importlib.import_module(module)
        assert all(callable(getattr(found, name)) for name in names)
    assert pathlib.Path(importlib.import_module("reft_jax.configs.demo").__file__).name == "demo.py"


def test_one_update_is_the_files_that_the_docs_list_and_short():
    text = (runs.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## The files of one update")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\S+\.py)` \|", section, re.MULTILINE)
    todo, files = ["reft_jax.training.reinforce", "reft_jax.advantages", "reft_jax.advantages.gae"], {}
    while todo:
        name = todo.pop()
        path = runs.ROOT / (
            name.replace(".", "/") + ("/__init__.py" if (PACKAGE.parent / name.replace(".", "/")).is_dir() else ".py")
        )
        if room(name) == "models" or path in files:
            continue
        files[path] = path.read_text(encoding="utf-8").count("\n")
        todo += imported(TREES[name], top=True) & set(TREES)
    assert {str(path.relative_to(runs.ROOT)) for path in files} == set(listed)
    assert len(listed) == len(set(listed)) <= 14 and sum(files.values()) <= 1000


def test_no_function_is_long():
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert max(functions)[0] < 100, max(functions)
