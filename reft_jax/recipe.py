"""What a config may hold, and how a config file and flags become one checked, frozen record.

A config file (`configs/*.py`) is a program whose `get_config(arg)` returns an ml_collections ConfigDict that spells out
every key; the dataclasses below are the other half: the legal keys, their types and their ranges. `load` runs the file,
applies `--config.a.b=value` overrides and returns a `Config` of frozen (hence hashable) records, before any device is
touched. Everything wrong raises `InputError` with the key, the value, what is legal and the nearest known name.
"""

import ast
import importlib.util
import pathlib
import sys

import ml_collections

from reft_jax.config import checks, records, settings
from reft_jax.errors import InputError


def build(tree: dict, *, reads_data: bool = True) -> settings.Config:
    """The checked record of a nested dict; InputError for the first thing wrong. reads_data False: files need not be named."""
    if missing := [key for key in ("seed", "model", "data", "mesh", "rewards", "stages") if key not in tree]:
        raise InputError(f"config: missing {', '.join(missing)}")
    known = settings.Config.__dataclass_fields__
    for key in tree:
        if key not in known:
            raise InputError(f"config.{key}: unknown key; {records.nearest(key, known)}known are {', '.join(known)}")
    if not isinstance(tree["stages"], dict) or not tree["stages"]:
        raise InputError("config.stages: got none; it must be an ordered dict name -> stage")
    stages = []
    for name, stage in tree["stages"].items():
        path = f"config.stages.{name}"
        if not isinstance(stage, dict) or stage.get("kind") not in settings.KINDS:
            got = stage.get("kind") if isinstance(stage, dict) else stage
            raise InputError(
                f"{path}.kind: got {got!r}; {records.nearest(str(got), settings.KINDS)}legal are {', '.join(settings.KINDS)}"
            )
        stages.append((name, records._build(settings.KINDS[stage["kind"]], stage, path)))
    seed = records._leaf(tree["seed"], int, "config.seed", dict(low=0, high=2**31 - 1, above=None, one_of=None))
    config = settings.Config(
        seed,
        *(
            records._build(cls, tree[key], f"config.{key}")
            for key, cls in (
                ("model", settings.Model),
                ("data", settings.Data),
                ("mesh", settings.Mesh),
                ("rewards", settings.Rewards),
            )
        ),
        tuple(stages),
        records._build(settings.Logging, tree.get("logging", {}), "config.logging"),
    )
    checks.check(config, reads_data=reads_data)
    return config


# ------------------------------------------------------------------ files and flags


def _parse_value(text, current, path):
    """A flag's text as a value of the type that the key has now."""
    if isinstance(current, bool):
        if text.lower() in ("true", "1", "false", "0"):
            return text.lower() in ("true", "1")
        raise InputError(f"{path}: got {text!r}; it must be True or False")
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    legal = (
        (int, float)
        if isinstance(current, float)
        else (tuple, list)
        if isinstance(current, (tuple, list))
        else (type(current),)
    )
    if current is not None and (not isinstance(value, legal) or isinstance(value, bool)):
        raise InputError(f"{path}: got {text!r}; it must be of type {type(current).__name__} (now {current!r})")
    return float(value) if isinstance(current, float) else value


def override(config: ml_collections.ConfigDict, path: str, text: str):
    """Sets config.<path> from a flag's text; the key must exist."""
    *groups, last = path.split(".")
    node = config
    for i, key in enumerate([*groups, last]):
        here = ".".join(["config", *path.split(".")[: i + 1]])
        if not isinstance(node, ml_collections.ConfigDict) or key not in node:
            known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            raise InputError(
                f"{here}: unknown key; {records.nearest(key, known)}known are {', '.join(known) or 'none (it is a value)'}"
            )
        if i < len(groups):
            node = node[key]
    if isinstance(node[last], ml_collections.ConfigDict):
        raise InputError(f"config.{path}: it is a group; set one of {', '.join(node[last])}")
    with node.ignore_type(), node.unlocked():
        node[last] = _parse_value(text, node[last], f"config.{path}")


def load(spec: str, overrides: list[tuple[str, str]] = (), *, reads_data: bool = True) -> tuple[settings.Config, dict]:
    """(record, plain dict) of "FILE.py[:argument]" with [(path, text)] overrides. Raises InputError."""
    file, _, arg = spec.partition(":")
    path = pathlib.Path(file).resolve()
    if not path.is_file():
        raise InputError(
            f"--config: no file {file!r} (from {pathlib.Path.cwd()}); it is FILE.py[:key=value,...], for instance configs/demo.py"
        )
    root = str(path.parent.parent)  # so that a config finds its neighbours: `from configs import common`
    sys.path.insert(0, root)
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
        sys.path.remove(root)
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"--config={spec}: get_config gave {config!r}; it must give a ConfigDict")
    for key, text in overrides:
        override(config, key, text)
    tree = config.to_dict()
    return build(tree, reads_data=reads_data), tree
