"""Records of settings that check themselves, and how a nested dict becomes one.

A record is a frozen dataclass whose fields are made with `setting` (a value with a legal range), `choice` and `choices_of` (what a file
of a room defines, `choices.py`) or `labelled` (label -> a stage or a path), or are records themselves. `fill` writes every default into a
nested dict, `override` sets one value from a flag's text, `build` makes the record and checks it. A record may have `check(self)`, a generator
of (key, what is legal) for settings that do not go together; path and value are added here, so that no record spells them. Everything wrong raises
InputError with the key, the value, what is legal and the nearest known name.
"""

import ast
import dataclasses
import functools
import inspect
import math
import typing

from reft_jax.config import choices, renamed
from reft_jax.config.paths import expanded
from reft_jax.config.setting import MISSING
from reft_jax.config.setting import setting as setting  # for whoever makes records
from reft_jax.config.words import listed, nearest
from reft_jax.errors import InputError

# What a bare number means where a choice of the room is expected: `rewards.partial=0.5`.
NUMBER = {"losses": "coef", "rewards/terms": "weight"}


# ------------------------------------------------------------------ fields


def choice(room: str, *, default=MISSING, use: str = ""):
    """The record of one file of a room: in configs a name or {use: name, ...settings}, `use` being the default unless it is given. Where
    the file's settings have not all defaults, so that the choice has none, `use` alone says it."""
    field = _chosen("choice", room, default)
    return dataclasses.field(metadata=field.metadata | {"use": use}) if use else field


def choices_of(room: str, *, default=MISSING):
    """Records of files of a room, ((label, record), ...): in configs label -> {use: name, ...settings}, where `use` defaults to the label and
    a bare number is the weight or coef. A default may be a function of the settings beside it."""
    return _chosen("choices", room, default)


def _chosen(kind, room, default):
    metadata = dict(kind=kind, room=room, default=default)
    if default is MISSING or callable(default):
        return dataclasses.field(metadata=metadata)

    def make():
        """What the default means, for records that are made in Python."""
        if kind == "choice":
            return _build_choice(room, _fill_choice(room, default, room), room)
        filled = _fill_choices(room, default, room)
        return tuple((label, _build_choice(room, node, room)) for label, node in filled.items())

    return dataclasses.field(default_factory=make, metadata=metadata)


def labelled(what: str, *, default=MISSING):
    """((label, text), ...): in configs a group label -> `what`."""
    return dataclasses.field(default=default, metadata=dict(kind="labelled", what=what))


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a record: its name in configs, its annotation and what `setting` and its like said of it."""

    name: str
    key: str
    hint: object
    default: object
    kind: str  # value, record, optional (a record or None), choice, choices, labelled
    about: dict = dataclasses.field(hash=False)

    @property
    def record(self):
        """The class of a field that is a record."""
        return typing.get_args(self.hint)[0] if self.kind == "optional" else self.hint

    @property
    def optional(self) -> bool:
        """Whether it may be left out."""
        return self.default is not MISSING


@functools.cache
def fields(cls) -> tuple[Field, ...]:
    """The fields of a record's class. InputError for a class that is no record."""
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:
        raise InputError(
            f"{inspect.getfile(cls)}: {cls.__qualname__} must be a frozen dataclass, whose fields are its settings"
        )
    hints, out = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        about, hint = dict(field.metadata), hints[field.name]
        kind = about.get("kind") or (
            "optional" if _is_optional(hint) else "record" if dataclasses.is_dataclass(hint) else "value"
        )
        default = about.get("default", field.default) if kind in ("choice", "choices") else field.default
        if field.default_factory is not MISSING and kind not in ("choice", "choices"):
            default = field.default_factory()
        out.append(Field(field.name, about.get("key") or field.name, hint, default, kind, about))
    return tuple(out)


def _is_optional(hint) -> bool:
    return type(None) in typing.get_args(hint) and dataclasses.is_dataclass(typing.get_args(hint)[0])


def keys(cls) -> list[str]:
    return [field.key for field in fields(cls)]


# ------------------------------------------------------------------ every default, written out


def fill(cls, value, path: str) -> dict:
    """The nested dict with every key of the record, defaults included. InputError for unknown and missing keys."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: got {value!r}; it must be a group of settings: {listed(keys(cls))}")
    for key in value:
        if key not in keys(cls):
            _unknown(f"{path}.{key}", key, keys(cls))
    if missing := [field.key for field in fields(cls) if field.key not in value and not field.optional]:
        raise InputError(
            f"{path}: missing {listed(missing)}, which {'has' if len(missing) == 1 else 'have'} no default"
        )
    return {field.key: _filled(field, value, f"{path}.{field.key}") for field in fields(cls)}


def _filled(field: Field, beside: dict, path: str):
    given = field.key in beside
    value = beside[field.key] if given else field.default
    if field.kind == "record":
        return fill(field.record, _over(field.default, value) if given else _tree(value), path)
    if field.kind == "optional":
        return None if value is None else fill(field.record, value if given else _tree(value), path)
    if field.kind == "choice":
        use = field.default if isinstance(field.default, str) else field.about.get("use", "")
        return _fill_choice(field.about["room"], value, path, use)
    if field.kind == "choices":
        return _fill_choices(field.about["room"], value(beside) if not given and callable(value) else value, path)
    if field.kind == "labelled":
        return dict(value) if isinstance(value, (dict, tuple)) else value
    return dict(value) if not given and field.about.get("parse") else value


def _tree(record) -> dict:
    """A default that is a record, as a nested dict."""
    return {
        field.key: _tree(getattr(record, field.name)) if field.kind == "record" else getattr(record, field.name)
        for field in fields(type(record))
    }


def _over(default, value):
    """A group's values over those of the field's own default, which may be others than its record's."""
    return value if default is MISSING or not isinstance(value, dict) else _tree(default) | value


def _fill_choice(room: str, value, path: str, label: str = "") -> dict:
    if isinstance(value, str):
        value = dict(use=value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and room in NUMBER:
        value = {"use": label, NUMBER[room]: value}
    if not isinstance(value, dict) or not isinstance(value.get("use", label), str):
        raise InputError(
            f"{path}: got {value!r}; it must be a name or a group {{use: name, ...}}; {choices.legal(room)}"
        )
    use = value.get("use", label)
    settings = {key: node for key, node in value.items() if key != "use"}
    return {"use": use} | fill(chosen(room, use, path), settings, path)


def _fill_choices(room: str, value, path: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: got {value!r}; it must be a group label -> {{use: name, ...}}; {choices.legal(room)}"
        )
    for label in value:
        if not label or not label.replace("_", "a").replace("-", "a").isalnum():
            raise InputError(
                f"{path}: label {label!r} cannot be used: letters, digits, - and _ only, so that metrics and flags can name it"
            )
    return {label: _fill_choice(room, node, f"{path}.{label}", label) for label, node in value.items()}


def chosen(room: str, use: str, path: str):
    """The class that a name chooses; what is wrong with it is said of `path`."""
    try:
        found = choices.load(room, use)
        if room in choices.RECORDS:
            fields(found)
        return found
    except InputError as error:
        raise InputError(
            f"{path}: got {use!r}; {str(error).removeprefix(f'{use!r} is no file of {room}; ')}"
        ) from error


def _unknown(path: str, key: str, known):
    raise InputError(f"{path}: {renamed.told(path) or f'unknown key; {nearest(key, known)}known are {listed(known)}'}")


# ------------------------------------------------------------------ one value from a flag


def override(cls, tree: dict, path: str, text: str, prefix: str = "config"):
    """Sets one value of a filled tree, `path` dotted, from a flag's text. A choice that is set begins with its file's defaults, but for settings
    that it has from the same record as the one before; a label that is not there and names a file of its room, or is given a `use`, is
    added; None takes a label away."""
    head, _, rest = path.partition(".")
    here = f"{prefix}.{head}"
    field = next((field for field in fields(cls) if field.key == head), None)
    if field is None:
        _unknown(f"{here}.{rest}" if rest and renamed.told(f"{here}.{rest}") else here, head, keys(cls))
    node = tree[head]
    if field.kind == "choices":
        return _override_label(field.about["room"], node, rest, text, here)
    if field.kind == "choice" and rest in ("", "use"):
        kept = _shared(field.about["room"], node, text, here)
        tree[head] = _fill_choice(field.about["room"], {"use": text} | kept, here)
    elif field.kind == "choice":
        override(chosen(field.about["room"], node["use"], here), node, rest, text, here)
    elif field.kind in ("record", "optional") and isinstance(node, dict) and rest:
        override(field.record, node, rest, text, here)
    elif field.kind == "labelled" or field.about.get("parse"):
        if not rest:
            raise InputError(f"{here}: it is a group; set one of {listed(node)}")
        if rest not in node:
            raise InputError(f"{here}.{rest}: unknown key; {nearest(rest, node)}known are {listed(node)}")
        node[rest] = parse_value(text, node[rest], f"{here}.{rest}")
    elif rest:
        raise InputError(f"{here}.{rest.partition('.')[0]}: unknown key; known are none (it is a value)")
    elif isinstance(node, dict):
        raise InputError(f"{here}: it is a group; set one of {listed(node)}")
    else:
        tree[head] = parse_value(text, node, here, field.hint)


def _shared(room: str, node: dict, use: str, path: str) -> dict:
    """Of a choice's settings those that both its record and that of `use` inherit from the same record."""
    before, now = chosen(room, node["use"], path).__mro__[1:], chosen(room, use, path).__mro__[1:]
    common = [base for base in before if base in now and dataclasses.is_dataclass(base)]
    return {key: node[key] for base in common for key in keys(base)}


def _override_label(room: str, node: dict, rest: str, text: str, path: str):
    """The part of `override` below a group of choices."""
    label, _, below = rest.partition(".")
    here = f"{path}.{label}"
    if not label:
        raise InputError(f"{path}: it is a group; set one of {listed(dict.fromkeys([*node, *choices.names(room)]))}")
    if text == "None" and not below:
        if label not in node:
            raise InputError(f"{here}: there is none to take away; there are {listed(node)}")
        del node[label]
    elif not below or below == "use":
        number = None if below else _number(text)
        node[label] = _fill_choice(
            room, text if number is None else node.get(label, {}) | {NUMBER[room]: number}, here, label
        )
    else:
        if label not in node and label not in choices.names(room):
            known = [*node, *choices.names(room)]
            raise InputError(
                f"{here}: unknown label; {nearest(label, known)}there are {listed(node)}; {choices.legal(room)}, which {here}.use names"
            )
        node.setdefault(label, {})
        node[label] = node[label] or _fill_choice(room, dict(use=label), here)
        override(chosen(room, node[label]["use"], here), node[label], below, text, here)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parse_value(text: str, current, path: str, hint=None):
    """A flag's text as a value of the type that the key has now, or where that is None of its annotation."""
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
    legal_types = (
        (int, float)
        if isinstance(current, float)
        else (tuple, list)
        if isinstance(current, (tuple, list))
        else (type(current),)
    )
    if current is not None and (not isinstance(value, legal_types) or isinstance(value, bool)):
        raise InputError(f"{path}: got {text!r}; it must be of type {type(current).__name__} (now {current!r})")
    return float(value) if isinstance(current, float) else value


# ------------------------------------------------------------------ the record


def build(cls, tree: dict, path: str):
    """The record of a nested dict (`fill` is called on it), checked: types, ranges, and what the record says of itself."""
    return made(cls, fill(cls, tree, path), path)


def made(cls, tree: dict, path: str):
    """The same of a tree that is filled."""
    record = cls(**{field.name: _value(field, tree[field.key], f"{path}.{field.key}") for field in fields(cls)})
    if hasattr(record, "check"):
        refuse(record.check(), tree, path)
    return record


def refuse(complaints, tree: dict, path: str):
    """Raises the first of (key, what is legal), with the path and the value of the dotted key."""
    for key, legal in complaints:
        value = tree
        for part in filter(None, key.split(".")):
            value = value.get(part) if isinstance(value, dict) else None
        got = "" if isinstance(value, dict) else f"got {value!r}; "
        raise InputError(f"{path}{'.' * bool(key)}{key}: {got}{legal}")


def _value(field: Field, value, path: str):
    about = field.about
    if field.kind == "record":
        return made(field.record, value, path)
    if field.kind == "optional":
        return None if value is None else made(field.record, value, path)
    if field.kind == "choice":
        return _build_choice(about["room"], value, path)
    if field.kind == "choices":
        return tuple((label, _build_choice(about["room"], node, f"{path}.{label}")) for label, node in value.items())
    if field.kind == "labelled":
        if not isinstance(value, dict) or not (value or field.default == ()):
            raise InputError(f"{path}: got {value!r}; it must be a group label -> {about['what']}")
        return tuple((label, leaf(text, str, f"{path}.{label}", dict(path=True))) for label, text in value.items())
    if about.get("parse"):
        return about["parse"](value, path)
    if field.hint in (tuple[int, ...], tuple[str, ...]):
        item, none_is_legal = typing.get_args(field.hint)[0], field.default == ()
        if not isinstance(value, (tuple, list)) or not (value or none_is_legal):
            what = "a tuple" if none_is_legal else "a non-empty tuple"
            raise InputError(f"{path}: got {value!r}; it must be {what} of {item.__name__} values")
        return tuple(leaf(v, item, path, about) for v in value)
    return leaf(value, field.hint, path, about)


def _build_choice(room: str, tree: dict, path: str):
    return made(chosen(room, tree["use"], path), {key: node for key, node in tree.items() if key != "use"}, path)


def leaf(value, kind, path: str, about: dict):
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        name = str(kind) if typing.get_origin(kind) else kind.__name__
        raise InputError(f"{path}: got {value!r} ({type(value).__name__}); it must be of type {name}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{path}: got {value!r}; it must be a finite number")
    if about.get("room"):
        chosen(about["room"], value, path)
    if about.get("path") and value.startswith("~"):
        try:
            return str(expanded(value))
        except InputError as error:
            raise InputError(f"{path}: got {error}") from error
    one_of, low, high, above = (about.get(name) for name in ("one_of", "low", "high", "above"))
    if one_of is not None and value not in one_of:
        hint = renamed.value_told(path, value) or nearest(str(value), one_of)
        raise InputError(f"{path}: got {value!r}; {hint}legal are {listed(one_of)}")
    if low is not None and value < low:
        raise InputError(f"{path}: got {value!r}; it must be >= {low}")
    if high is not None and value > high:
        raise InputError(f"{path}: got {value!r}; it must be <= {high}")
    if above is not None and value <= above:
        raise InputError(f"{path}: got {value!r}; it must be > {above}")
    return value


# ------------------------------------------------------------------ what binds a run


def flatten(tree, prefix: str = "config") -> dict:
    """{dotted path: value} of a nested dict."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {path: value for key, child in tree.items() for path, value in flatten(child, f"{prefix}.{key}").items()}


def binding(cls, tree: dict, prefix: str = "config") -> dict:
    """`flatten` of a record's filled tree without what is free."""
    out = {}
    for field in fields(cls):
        node, here = tree[field.key], f"{prefix}.{field.key}"
        if field.about.get("free"):
            continue
        if field.kind in ("record", "optional") and isinstance(node, dict):
            out |= binding(field.record, node, here)
        elif field.kind == "choice":
            out |= _binding_choice(field.about["room"], node, here)
        elif field.kind == "choices":
            for label, one in node.items():
                out |= _binding_choice(field.about["room"], one, f"{here}.{label}")
        else:
            out |= flatten(node, here)
    return out


def _binding_choice(room: str, tree: dict, prefix: str) -> dict:
    settings = {key: node for key, node in tree.items() if key != "use"}
    return {f"{prefix}.use": tree["use"]} | binding(chosen(room, tree["use"], prefix), settings, prefix)


def used(cls, tree: dict) -> list[tuple[str, str]]:
    """(room, name) of every choice in a record's filled tree."""
    out = []
    for field in fields(cls):
        node, room = tree[field.key], field.about.get("room")
        if field.kind in ("record", "optional") and isinstance(node, dict):
            out += used(field.record, node)
        elif field.kind in ("choice", "choices"):
            for one in [node] if field.kind == "choice" else node.values():
                out.append((room, one["use"]))
                out += used(choices.load(room, one["use"]), {key: v for key, v in one.items() if key != "use"})
        elif room and node:
            out.append((room, node))
    return out
