"""A config file and flags -> one checked, frozen Recipe, before any device is touched.

A config file (`configs/*.py`) is a program whose `get_config(arg)` returns an ml_collections ConfigDict of what it changes; the records in
`config/settings.py`, `stages/` and the other rooms have the legal keys, their types, ranges and defaults. `load` runs the file, fills every default
in, applies `--config.a.b=value` overrides and builds the records. Everything wrong raises `InputError` with the key, the value, what is legal
and the nearest known name.
"""

import importlib.util
import pathlib
import sys

import ml_collections

from reft_jax.config import choices, records, renamed
from reft_jax.config.paths import expanded
from reft_jax.config.settings import OWN_FOLDERS, Data, Logging, Mesh, Model, Recipe, Verifier, rounded
from reft_jax.config.words import listed, nearest
from reft_jax.errors import InputError

GROUPS = dict(model=Model, data=Data, mesh=Mesh, verifier=Verifier, logging=Logging)
OPTIONAL = ("mesh", "verifier", "logging")
SHIPPED = pathlib.Path(__file__).resolve().parent / "configs"
SEED = dict(low=0, high=2**31 - 1)


# ------------------------------------------------------------------ trees


def fill(tree: dict) -> dict:
    """The nested dict with every default written out; InputError for unknown and missing keys."""
    known = ("seed", *GROUPS, "stages")
    for key in tree:
        if key not in known:
            raise InputError(
                f"config.{key}: {renamed.told(f'config.{key}') or f'unknown key; {nearest(key, known)}known are {listed(known)}'}"
            )
    if missing := [key for key in known if key not in tree and key not in OPTIONAL]:
        raise InputError(f"config: missing {listed(missing)}")
    if not isinstance(tree["stages"], dict) or not tree["stages"]:
        raise InputError("config.stages: got none; it must be an ordered dict name -> stage")
    groups = {key: records.fill(cls, tree.get(key, {}), f"config.{key}") for key, cls in GROUPS.items()}
    stages = {name: _fill_stage(stage, f"config.stages.{name}") for name, stage in tree["stages"].items()}
    return {"seed": tree["seed"], **groups, "stages": stages}


def _fill_stage(stage, path: str) -> dict:
    kind = stage.get("kind") if isinstance(stage, dict) else stage
    if not isinstance(kind, str):
        raise InputError(f"{path}.kind: got {kind!r}; {choices.legal('stages')}")
    cls = records.chosen("stages", kind, f"{path}.kind")
    lacking = [
        word for word, there in (("run", choices.module("stages", kind)), ("sources", cls)) if not hasattr(there, word)
    ]
    if lacking:
        raise InputError(
            f"{path}.kind: got {kind!r}; its file has no {listed(lacking)}: a stage is run(name, stage, run) and a Stage with sources()"
        )
    return {"kind": kind} | records.fill(cls, _without_kind(stage), path)


def _without_kind(stage: dict) -> dict:
    return {key: value for key, value in stage.items() if key != "kind"}


def build(tree: dict, *, finished: bool = False) -> Recipe:
    """The checked record of a nested dict; InputError for the first thing wrong. finished: of a run that has been, whose bfloat16 parameters
    may have been rounded to the nearest."""
    tree = fill(tree)
    seed = records.leaf(tree["seed"], int, "config.seed", SEED)
    groups = {key: records.made(cls, tree[key], f"config.{key}") for key, cls in GROUPS.items()}
    kinds = tuple((name, stage["kind"]) for name, stage in tree["stages"].items())
    stages = tuple(
        (
            name,
            records.made(choices.load("stages", kind), _without_kind(tree["stages"][name]), f"config.stages.{name}"),
        )
        for name, kind in kinds
    )
    recipe = Recipe(seed, stages=stages, kinds=kinds, **groups)
    earlier = {}
    for name, stage in stages:
        path = f"config.stages.{name}"
        _check_place(name, stage, recipe, earlier, path)
        if hasattr(stage, "sampling"):
            records.refuse(stage.sampling.check_in(recipe.data), tree["stages"][name]["sampling"], f"{path}.sampling")
        if hasattr(stage, "optim") and not finished:
            records.refuse(rounded(stage.optim, recipe.model), tree["stages"][name]["optim"], f"{path}.optim")
        if hasattr(stage, "check_in"):
            records.refuse(stage.check_in(recipe, earlier), tree["stages"][name], path)
        earlier[name] = stage
    return recipe


def _check_place(name: str, stage, recipe: Recipe, earlier: dict, path: str):
    """The stage's name, and that what it begins with or evaluates comes before it."""
    if not name.isidentifier():
        raise InputError(f"{path}: a stage's name is also a folder's: letters, digits and underscores only")
    if name in OWN_FOLDERS:
        raise InputError(f"{path}: {name!r} is a folder of the workdir; give the stage another name")
    later = {n for n, _ in recipe.stages} - set(earlier)
    for key, source in stage.sources():
        if source in later:
            raise InputError(
                f"{path}.{key}: {source!r} comes no earlier than {name!r}; stages run in order (a ConfigDict keeps it with sort_keys=False)"
            )
        if source in earlier and not getattr(earlier[source], "is_policy", False):
            raise InputError(
                f"{path}.{key}: {source!r} is a stage of kind {recipe.kind(source)}, which answers no questions"
                + ("; an evaluate stage names it in its rerankers" if recipe.kind(source) == "reranker" else "")
            )


def binding(tree: dict) -> dict:
    """{dotted path: value} of all that a started run may not change."""
    out = {"config.seed": tree["seed"]}
    for key, cls in GROUPS.items():
        out |= records.binding(cls, tree[key], f"config.{key}")
    for name, stage in tree["stages"].items():
        out[f"config.stages.{name}.kind"] = stage["kind"]
        out |= records.binding(choices.load("stages", stage["kind"]), _without_kind(stage), f"config.stages.{name}")
    return out


def used(tree: dict) -> dict[str, list[tuple[str, str]]]:
    """{"run" or a stage: [(room, name)]} of every choice of a filled tree."""
    out = {"run": [one for key, cls in GROUPS.items() for one in records.used(cls, tree[key])]}
    for name, stage in tree["stages"].items():
        found = records.used(choices.load("stages", stage["kind"]), _without_kind(stage))
        out[name] = list(dict.fromkeys([("stages", stage["kind"]), *found]))
    return out


def own_files(tree: dict) -> dict:
    """{name: SHA-256} of every file of the user's own that a filled tree chooses."""
    names = [name for part in used(tree).values() for _, name in part if choices.is_path(name)]
    return {name: choices.sha256(name) for name in dict.fromkeys(names)}


# ------------------------------------------------------------------ files and flags


def override(tree: dict, path: str, text: str):
    """Sets config.<path> of a filled tree from a flag's text."""
    head, _, rest = path.partition(".")
    if head == "seed" and not rest:
        tree["seed"] = records.parse_value(text, tree["seed"], "config.seed")
    elif head in GROUPS and rest:
        records.override(GROUPS[head], tree[head], rest, text, f"config.{head}")
    elif head == "stages" and rest:
        _override_stage(tree["stages"], *rest.partition(".")[::2], text)
    elif head in tree:
        raise InputError(f"config.{path}: it is a group; set one of {listed(tree[head])}")
    else:
        known = list(tree)
        told = renamed.told(f"config.{path}") or f"unknown key; {nearest(head, known)}known are {listed(known)}"
        raise InputError(f"config.{path if renamed.told(f'config.{path}') else head}: {told}")


def _override_stage(stages: dict, name: str, rest: str, text: str):
    path = f"config.stages.{name}"
    if name not in stages:
        raise InputError(f"{path}: unknown key; {nearest(name, stages)}known are {listed(stages)}")
    if not rest:
        raise InputError(f"{path}: it is a group; set one of {listed(stages[name])}")
    if rest == "kind":
        raise InputError(f"{path}.kind: a stage's kind stands in the config file (now {stages[name]['kind']!r})")
    records.override(choices.load("stages", stages[name]["kind"]), stages[name], rest, text, path)


def find(file: str) -> pathlib.Path:
    """The config file that --config names: a path, or of those shipped with the package `demo`, `demo.py` or `configs/demo.py`."""
    path = expanded(file)
    if path.is_file():
        return path.resolve()
    shipped = SHIPPED / (path.name if path.suffix == ".py" else f"{path.name}.py")
    if path.parent in (pathlib.Path("."), pathlib.Path("configs")) and shipped.is_file():
        return shipped.resolve()
    names = sorted(one.stem for one in SHIPPED.glob("*.py") if one.stem not in ("common", "models"))
    raise InputError(
        f"--config: no file {file!r} (from {pathlib.Path.cwd()}); {nearest(path.stem, names)}it is FILE.py[:key=value,...], or one of those "
        f"that the package has: {listed(names)}"
    )


def load(spec: str, overrides: list[tuple[str, str]] = ()) -> tuple[Recipe, dict]:
    """(record, filled tree) of "FILE.py[:argument]" with [(path, text)] overrides. Raises InputError."""
    file, _, arg = spec.partition(":")
    path = find(file)
    own = path.parent != SHIPPED.resolve()
    # so that a config of a project of its own finds its neighbours: `from configs import own`
    path_before, sys.path[:0] = list(sys.path), [str(path.parent.parent)] * own
    try:
        module_spec = importlib.util.spec_from_file_location(f"reft_config_{path.stem}", path)
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"--config: {file} has no get_config(arg)")
        config = module.get_config(arg)
    except InputError:
        raise
    except Exception as error:  # the file is the user's program: whatever it raises is about the file
        raise InputError(f"--config={spec}: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = path_before
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"--config={spec}: get_config gave {config!r}; it must give a ConfigDict")
    tree = fill(config.to_dict())
    for key, text in overrides:
        override(tree, key, text)
    return build(tree), tree
