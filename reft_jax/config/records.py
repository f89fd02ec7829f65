"""Records of settings: fields with legal ranges, and how a nested dict becomes one."""

import dataclasses
import difflib
import math
import typing

from reft_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")


LOGICAL_AXES = (
    "batch",
    "embed",
    "vocab",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "layers",
)  # names in models and batches
# What the labels of an evaluate stage's groups stand for.
LABELLED = {"checkpoints": "stage, directory or shipped model", "rerankers": "reranker stage"}


def setting(low=None, high=None, *, above=None, one_of=None, default=dataclasses.MISSING):
    """A field with a legal range: low <= value <= high, value > above, or value in one_of."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above, "one_of": one_of})


# ------------------------------------------------------------------ building the records


def nearest(name, known) -> str:
    """The question whether a near known name was meant, for messages; "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _type_name(kind) -> str:
    return str(kind) if typing.get_origin(kind) else kind.__name__


def _check_range(value, meta, path):
    if meta["one_of"] is not None and value not in meta["one_of"]:
        raise InputError(
            f"{path}: got {value!r}; {nearest(str(value), meta['one_of'])}legal are {', '.join(meta['one_of'])}"
        )
    low, high, above = meta["low"], meta["high"], meta["above"]
    if low is not None and value < low:
        raise InputError(f"{path}: got {value!r}; it must be >= {low}")
    if high is not None and value > high:
        raise InputError(f"{path}: got {value!r}; it must be <= {high}")
    if above is not None and value <= above:
        raise InputError(f"{path}: got {value!r}; it must be > {above}")


def _leaf(value, kind, path, meta):
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{path}: got {value!r} ({type(value).__name__}); it must be of type {_type_name(kind)}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{path}: got {value!r}; it must be a finite number")
    _check_range(value, meta, path)
    return value


def _build(cls, value, path):
    """A dataclass from a nested dict, every key present, known, of its type and in its range."""
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: got {value!r}; it must be a group of settings: {', '.join(f.name for f in dataclasses.fields(cls))}"
        )
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            raise InputError(f"{path}.{key}: unknown key; {nearest(key, fields)}known are {', '.join(fields)}")
    if missing := [n for n, f in fields.items() if n not in value and f.default is dataclasses.MISSING]:
        raise InputError(
            f"{path}: missing {', '.join(missing)}; a config spells out every key (configs/common.py has the usual values)"
        )
    hints = typing.get_type_hints(cls)
    out = {}
    for name, field in fields.items():
        if name not in value:
            continue
        kind, here, meta = hints[name], f"{path}.{name}", dict(field.metadata)
        if type(None) in typing.get_args(kind):
            record = typing.get_args(kind)[0]
            out[name] = None if value[name] is None else _build(record, value[name], here)
        elif dataclasses.is_dataclass(kind):
            out[name] = _build(kind, value[name], here)
        elif kind in (tuple[int, ...], tuple[str, ...]):
            item, none_is_legal = typing.get_args(kind)[0], field.default == ()
            if not isinstance(value[name], (tuple, list)) or not (value[name] or none_is_legal):
                what = "a tuple" if none_is_legal else "a non-empty tuple"
                raise InputError(f"{here}: got {value[name]!r}; it must be {what} of {_type_name(item)} values")
            out[name] = tuple(_leaf(v, item, here, meta) for v in value[name])
        elif name == "rules":
            out[name] = _rules(value[name], here)
        elif name in LABELLED:
            if not isinstance(value[name], dict) or not (value[name] or field.default == ()):
                raise InputError(f"{here}: got {value[name]!r}; it must be a group label -> {LABELLED[name]}")
            out[name] = tuple((key, _leaf(v, str, f"{here}.{key}", meta)) for key, v in value[name].items())
        else:
            out[name] = _leaf(value[name], kind, here, meta)
    return cls(**out)


def _rules(value, path):
    """mesh.rules: which mesh axes each logical axis is laid over."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: got {value!r}; it must be a group logical axis -> tuple of mesh axes")
    for key, axes in value.items():
        if key not in LOGICAL_AXES:
            raise InputError(
                f"{path}.{key}: unknown logical axis; {nearest(key, LOGICAL_AXES)}known are {', '.join(LOGICAL_AXES)}"
            )
        if not isinstance(axes, (tuple, list)) or any(axis not in MESH_AXES for axis in axes):
            raise InputError(f"{path}.{key}: got {axes!r}; it must be a tuple of mesh axes: {', '.join(MESH_AXES)}")
    return tuple((key, tuple(axes)) for key, axes in value.items())
