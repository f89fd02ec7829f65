"""Choices by name: a name in the config is a file of a room, and `load` imports that one file.

A room is a folder of the package. A file in it is a choice if it defines the room's word (ROOMS) at its top level; files without it
are what choices share. Nothing is registered, and nothing runs when a file is imported but definitions. A name that ends in ".py" is a file of
the user's own with the same word in it; of a file that holds several things, "my.py:thing" names one (for reward terms it may be a function).
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import os
import pathlib
import sys
import sysconfig

from reft_jax.config.paths import expanded
from reft_jax.config.words import listed, nearest
from reft_jax.errors import InputError

PACKAGE = pathlib.Path(__file__).parents[1]  # with the links in its path, as the modules' own files have them
# room -> what a file of it defines: a record's class, or for matchers and families what they are
ROOMS = {
    "stages": "Stage",
    "losses": "Loss",
    "advantages": "Advantage",
    "optim": "Optimizer",
    "optim/schedules": "Schedule",
    "rewards/terms": "Term",
    "rewards/matchers": "MATCHER",
    "tasks": "Task",
    "models/families": "read",
}

# rooms whose word is a record's class
RECORDS = ("stages", "losses", "advantages", "optim", "optim/schedules", "rewards/terms")


def is_path(name: str) -> bool:
    """Whether a name is that of a file of the user's own, or of something in it."""
    return name.endswith(".py") or ".py:" in name


def names(room: str) -> tuple[str, ...]:
    """The choices of a room, in alphabetical order: its files that define its word."""
    files = (PACKAGE / room).glob("*.py")
    return tuple(sorted(path.stem for path in files if ROOMS[room] in _defined(path, path.stat().st_mtime_ns)))


def load(room: str, name: str):
    """What the file `name` of a room, or the user's own file of that path, defines for it. InputError for an unknown name, and for a file
    that cannot be imported or lacks the room's word."""
    if not is_path(name) and name not in names(room):
        raise InputError(f"{name!r} is no file of {room}; {nearest(name, names(room))}{legal(room)}")
    found = getattr(module(room, name), name.partition(".py:")[2] or ROOMS[room])
    return _as_term(found) if room == "rewards/terms" and not isinstance(found, type) else found


@functools.cache
def _as_term(function):
    """A reward term of a user's function (responses, scored) -> values."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Term:
        weight: float = 1.0

        def __call__(self, responses, scored):
            return function(responses, scored)

    return Term


def module(room: str, name: str):
    """The module that `load` reads."""
    if not is_path(name):
        return importlib.import_module(f"reft_jax.{room.replace('/', '.')}.{name}")
    path, thing = _file(name), name.partition(".py:")[2] or ROOMS[room]
    found = _imported(str(path.resolve()), sha256(name))
    if not hasattr(found, thing):
        raise InputError(f"{path}: defines no {thing}, which a file of {room} does (reft_jax/{room}/ has examples)")
    return found


def _file(name: str) -> pathlib.Path:
    """The user's own file that `name` names, or something in it."""
    return expanded(name.partition(".py:")[0].removesuffix(".py") + ".py")


def sha256(name: str) -> str:
    """Of the user's own file that `name` names. InputError where it cannot be read."""
    try:
        return hashlib.sha256(_file(name).read_bytes()).hexdigest()
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise InputError(f"{_file(name)}: {why}; a name that ends in .py is a file of your own") from error


def files(room: str, name: str) -> dict[str, pathlib.Path]:
    """{name: path} of the code of a choice: its file, and what that imports of its own room; of a user's own file, what it imports of
    the user's."""
    first = pathlib.Path(module(room, name).__file__)
    if is_path(name):
        own = name.partition(".py:")[0].removesuffix(".py") + ".py"
        return {
            own if path == first else os.path.relpath(path, first.parent): path for path in _closure(first, _of_users)
        }
    inside = functools.partial(_of_folder, first.parent)
    return {f"reft_jax/{path.relative_to(PACKAGE)}": path for path in _closure(first, inside)}


def _closure(first: pathlib.Path, belongs) -> list[pathlib.Path]:
    """A file of Python, and the files that it imports, at its top or later, and they, of those that belong."""
    found = [first]
    for path in found:
        for node in _imports(path, path.stat().st_mtime_ns):
            if isinstance(node, ast.Import):
                modules = [_below(_top(alias.name.split(".")[0]), alias.name.split(".")[1:]) for alias in node.names]
            else:
                parts = (node.module or "").split(".") if node.module else []
                place = path.parents[node.level - 1] if node.level else _top(parts[0])
                from_ = parts if node.level else parts[1:]
                modules = [_below(place, [*from_, *more]) for more in ([], *([alias.name] for alias in node.names))]
            found += [one for files in modules for one in files if one not in found and belongs(one)]
    return list(dict.fromkeys(found))


@functools.cache
def _imports(path: pathlib.Path, changed: int) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a file, wherever they stand; changed: when it was."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _top(name: str) -> pathlib.Path | None:
    """The folder of a package, or the file of a module, of that name without a dot; None of what has neither."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None
    return pathlib.Path([*spec.submodule_search_locations][0] if spec.submodule_search_locations else spec.origin)


def _below(place: pathlib.Path | None, parts: list[str]) -> list[pathlib.Path]:
    """The files of Python that importing parts[0].parts[1]... from a package's folder runs."""
    out = []
    for part in (None, *parts):
        place = place if part is None or place is None else place / part
        if place is not None:
            files = (place, place.with_name(place.name + ".py"), place / "__init__.py")
            out += [path for path in files if path.suffix == ".py" and path.is_file()]
    return out


def _of_folder(folder: pathlib.Path, path: pathlib.Path) -> bool:
    return path.parent == folder


def _of_users(path: pathlib.Path) -> bool:
    """Whether a module's file is neither of Python, nor of an installed package, nor of this one."""
    others = (PACKAGE, *(sysconfig.get_path(one) for one in ("stdlib", "platstdlib", "purelib", "platlib")))
    return path.suffix == ".py" and not any(path.resolve().is_relative_to(os.path.realpath(one)) for one in others)


def legal(room: str) -> str:
    """What may be chosen, for messages."""
    return f"legal are {listed(names(room))}, or the path of a file of your own (my.py)"


@functools.cache
def _imported(path: str, digest: str):
    """A user's file as a module: once for each content."""
    own = f"reft_jax_own_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(own, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[own] = found  # dataclasses look their module up
    try:
        spec.loader.exec_module(found)
    except Exception as error:  # it is the user's program: whatever it raises is about the file
        del sys.modules[own]
        raise InputError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    return found


@functools.cache
def _defined(path: pathlib.Path, changed: int) -> set[str]:
    """The names that a file's top level defines (imported ones are another file's); changed: when it was."""
    out = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            out.add(node.name)
        elif isinstance(node, ast.Assign):
            out |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            out.add(node.target.id)
    return out
