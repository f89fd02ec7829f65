"""Hugging Face directories in and out: config.json and safetensors. A family is one file in `families/` that translates both.

Every weight of the files must have one place here and every place one weight: what is unmapped, missing, doubly stored or
mis-shaped is found from the files' headers, before anything is read, and refused in one message. Weights that are no numbers are refused
as they are read.

Tensors are read one at a time and go straight to where `shardings` puts them, so the host holds one tensor and its own
devices' share of the model. `heads.safetensors`, beside the decoder's files, holds what no Hugging Face class has: the
value head, as `value_head.kernel` f32[D] and `value_head.bias` f32[]. Other programs do not read that file.
"""

import contextlib
import errno
import functools
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.config import choices, records
from reft_jax.config.words import nearest
from reft_jax.data import json_text
from reft_jax.errors import InputError
from reft_jax.mesh import distributed
from reft_jax.mesh.sharding import drop_leading
from reft_jax.models import decoder, hub, numbers, weight_files
from reft_jax.models.families import weights
from reft_jax.models.weight_files import HEADS, INDEX, WHOLE

FAMILIES = "models/families"  # the room: a file is a family, by its `model_type`
SHIPPED = pathlib.Path(__file__).resolve().parents[1] / "assets"
MAX_SHARD_BYTES = 5 * 10**9
# Fields of config.json without which a model is not known; a null is refused where transformers does not say what it means.
NEEDED = """
vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim max_position_embeddings
rms_norm_eps hidden_act hidden_activation query_pre_attn_scalar ffn_dim activation_function n_embd n_layer n_head n_positions
layer_norm_epsilon rotary_dim
""".split()
# What a weight may be stored as: safetensors' names
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def resolve(name: str) -> pathlib.Path | None:
    """The folder of a Hugging Face directory, of a shipped model's name or of a name on the hub (`hub.snapshot`); None if there is none.
    InputError for PEFT's adapters, and for what the hub does not give."""
    if name and (pathlib.Path(name) / "adapter_config.json").is_file():
        weight_files.check_merged(pathlib.Path(name))
    for folder in (pathlib.Path(name), SHIPPED / name):
        if name and (folder / "config.json").is_file() and not _of_a_run(folder):
            return folder
    return hub.snapshot(name) if hub.is_name(name) else None


def _of_a_run(folder: pathlib.Path) -> bool:
    """Whether it is a run's folder, whose config.json describes no model."""
    try:
        return "config" in json.loads((folder / "config.json").read_text())
    except (ValueError, TypeError):
        return False


def read_config(directory):
    """The Arch that a directory's config.json describes. InputError for families and options that are not supported."""
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{directory}: no config.json there; a Hugging Face directory has config.json, *.safetensors and the tokenizer's files"
        )
    said = json_text.read_object(path, "mend it, or fetch it again")
    model_type = said.get("model_type")
    if model_type not in (known := choices.names(FAMILIES)):
        raise InputError(f"{path}: model_type {model_type!r} is not supported; supported are {', '.join(known)}")
    try:
        config = _without_nulls(said, model_type, str(path))
        arch = choices.module(FAMILIES, model_type).read(config, str(path))
    except InputError:
        raise
    except Exception as error:  # transformers' checks raise what they like, and so does null in place of a number
        said = " ".join(str(error).split())
        raise InputError(
            f"{path}: it does not describe a {model_type} model ({type(error).__name__}: {said})"
        ) from error
    records.refuse(arch.check(), vars(arch), str(path))
    return arch


def _without_nulls(said: dict, model_type: str, where: str):
    """transformers' config of a config.json. null of a field is what transformers makes of it, else as if the field were absent; InputError
    where the model cannot be without the field."""
    import transformers

    cls, given = transformers.CONFIG_MAPPING[model_type], {}
    for key, value in said.items():
        if value is None and not _may_be_null(cls, key):
            if key in NEEDED:
                raise InputError(f"{where}: {key} is null; give its value, as the model was trained with")
            continue
        given[key] = value
    for group in ("rope_scaling", "rope_parameters"):
        if isinstance(given.get(group), dict):
            given[group] = {key: value for key, value in given[group].items() if value is not None}
    return cls.from_dict(given)


def _may_be_null(cls, key: str) -> bool:
    if not hasattr(cls, key):
        return False
    try:
        cls(**{key: None})
    except Exception:  # of its checks, which raise what they like
        return False
    return True


# ------------------------------------------------------------------ in


class _Files:
    """The tensors of a directory's safetensors files under their full names; checks the index, opens every file once."""

    def __init__(self, directory: pathlib.Path, family):
        self.directory, self.family, self.wrong = directory, family, []
        self.file_of: dict[str, pathlib.Path] = {}
        self.name_of: dict[str, str] = {}  # full name -> name in the file
        self.headers = {path: self._header(path) for path in weight_files.find(directory)}
        names = [(path, name) for path, header in self.headers.items() for name in header]
        if adapted := sorted(name for _, name in names if weights.ADAPTERS.search(name)):
            raise InputError(weight_files.unmerged(directory, f"{len(adapted)} weights of adapters, as {adapted[0]}"))
        own = weights.unwrapped((name for _, name in names), family.PREFIX)
        for path, name in names:
            self._add(name, own[name], path)

    def _header(self, path):
        """{name: (type, shape, first byte)}. The library checks the file; the tensors are then read from their offsets, because
        a file that it keeps mapped counts as this process's memory, page by page."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"{path}: unreadable safetensors ({error}); the file is damaged or cut short: fetch it again"
            ) from error
        except OSError as error:
            if error.errno != errno.ENODEV:  # a mount that maps no files: the file's size is looked at below
                raise InputError(f"{path}: cannot be read ({error})") from error
        with open(path, "rb") as file:  # 8 bytes: the header's length; the header, JSON; the data
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((about["data_offsets"][1] for about in header.values()), default=0)
        if path.stat().st_size != end:
            raise InputError(
                f"{path}: has {path.stat().st_size} bytes, not {end}; it is damaged or cut short: fetch it again"
            )
        return {
            name: (about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
            for name, about in header.items()
        }

    def _add(self, name, own, path):
        prefix = self.family.PREFIX
        full = own if own.startswith((prefix, "lm_head.")) else prefix + own
        if weights.BUFFERS.fullmatch(full):
            return
        if full in self.file_of:
            self.wrong.append(f"{full} is in {self.file_of[full].name} and again in {path.name}")
        self.file_of[full], self.name_of[full] = path, name

    def about(self, name):
        """(type, shape, first byte) of a tensor."""
        return self.headers[self.file_of[name]][self.name_of[name]]

    def read(self, name) -> np.ndarray:
        dtype, shape, first = self.about(name)
        return np.fromfile(self.file_of[name], FLOATS[dtype], math.prod(shape), offset=first).reshape(shape)

    def check(self, expected: dict[str, tuple[int, ...]], tied: tuple[str, str] | None):
        """InputError with everything that does not fit; expected: name -> shape. tied: a name that may repeat another."""
        there = set(self.file_of)
        missing = [name for name in expected if name not in there]
        unmapped = [name for name in sorted(there) if name not in expected and (tied is None or name != tied[0])]
        shapes, stored, wrong = [], [], []
        for name in sorted(there):
            if name in expected:
                dtype, shape, _ = self.about(name)
                if shape != expected[name]:
                    shapes.append(f"{name} has shape {shape}, not {expected[name]}")
                elif dtype not in FLOATS:
                    stored.append(f"{name} is stored as {dtype}; supported are {', '.join(FLOATS)}")
            elif tied is not None and name == tied[0]:
                known = self.about(name)[0] in FLOATS and tied[1] in there and self.about(tied[1])[0] in FLOATS
                if not known or not np.array_equal(self.read(name), self.read(tied[1]), equal_nan=True):
                    wrong.append(f"{name} differs from {tied[1]}, but config.json ties them (tie_word_embeddings)")
        wrong += _few(self.wrong, "; ") + _few(shapes, "; ") + _few(stored, "; ")
        wrong += [f"missing {text}" for text in _few(missing, ", ")]
        for text in _few([self.name_of[name] for name in unmapped], ", "):
            first = self.name_of[unmapped[0]]
            near = nearest(first, missing)
            there = f"{first} of {self.file_of[unmapped[0]].name}"
            wrong.append(f"unmapped {text} ({there}{near and f': {near.strip()}'})")
        if wrong:
            raise InputError(f"{self.directory}: weights do not fit config.json: {'; '.join(wrong)}")


def _few(texts: list[str], separator: str) -> list[str]:
    """The first three and how many more, in one text; [] of none."""
    more = f"{separator}and {len(texts) - 3} more" if len(texts) > 3 else ""
    return [separator.join(texts[:3]) + more] if texts else []


def _names(weight, num_layers: int) -> list[str]:
    return [weight.name.format(i) for i in range(num_layers)] if "{}" in weight.name else [weight.name]


def check_hf(directory):
    """InputError where `load_hf` would raise one, but for numbers that are none; reads headers alone, and heads and a tied embedding stored
    twice."""
    _checked(pathlib.Path(directory))


def _checked(directory: pathlib.Path):
    arch = read_config(directory)
    family = choices.module(FAMILIES, arch.family)
    table, files = family.table(arch), _Files(directory, family)
    expected = {name: weight.shape for weight in table.values() for name in _names(weight, arch.num_layers)}
    tied = ("lm_head.weight", table["embed", "kernel"].name) if arch.tie_embeddings else None
    files.check(expected, tied)
    if (directory / HEADS).is_file():
        _read_heads(directory / HEADS, arch.dim, None)
    return arch, table, files


def load_hf(
    directory, *, param_dtype="float32", compute_dtype="float32", shardings=None, layout=None, vocab_multiple=1
):
    """(model, params) of a Hugging Face directory, with the value head if `heads.safetensors` has one.

    `shardings`: a tree like params (a value head's is not needed), or None for the default device. `layout` and
    `vocab_multiple` go into the model. Dtypes are names, scalar types or dtype objects. Raises InputError with every weight that is
    unmapped, missing, doubly stored or mis-shaped, for several sets of weights in the directory, and for the first weight that is no
    number, or none in param_dtype.
    """
    directory = pathlib.Path(directory)
    arch, table, files = _checked(directory)
    model = decoder.Model(arch, param_dtype, compute_dtype, layout=layout, vocab_multiple=vocab_multiple)
    shapes, params, param_dtype = decoder.shapes(model), {}, model.param_dtype
    for path, weight in table.items():
        shape, sharding = (_at(tree, path) for tree in (shapes, shardings))

        def read(name, shape, weight=weight):
            view = weight.take(files.read(name))
            array = np.empty(view.shape, param_dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                _fill(array, view)
            if fault := numbers.fault(array, view):
                raise InputError(f"{files.file_of[name]}: {files.name_of[name]} {fault}")
            return _padded(array, shape)

        if "{}" in weight.name:
            value = jnp.zeros(shape.shape, param_dtype, device=sharding)
            for i, name in enumerate(_names(weight, arch.num_layers)):
                layer = _placed(read(name, shape.shape[1:]), drop_leading(sharding))
                value = _with_layer(value, layer, i)
        else:
            value = _placed(read(weight.name, shape.shape), sharding)
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    if (directory / HEADS).is_file():
        params |= _read_heads(directory / HEADS, arch.dim, layout)
    return model, params


def _at(tree, path):
    for key in path:
        tree = tree and tree[key]
    return tree


def _fill(out, source, strip=16):
    """`out[...] = source`, where one of the two is transposed: strip by strip, so that both stay in the processor's cache.
    On a 4096 x 4096 matrix this takes a fifth of numpy's own order."""
    near = [
        int(np.argmin(array.strides)) if array.ndim else 0 for array in (out, source)
    ]  # the axes along their memory
    if near[0] == near[1]:
        out[...] = source
        return
    outer = [(slice(None),) if axis in near else range(size) for axis, size in enumerate(out.shape)]
    outer[near[0]] = [slice(first, first + strip) for first in range(0, out.shape[near[0]], strip)]
    for part in itertools.product(*outer):
        out[part] = source[part]


def _padded(array, shape):
    """`array` in our shape: axes regrouped, and rows past the vocabulary filled with zeros."""
    if array.size == math.prod(shape):
        return array.reshape(shape)
    return np.pad(array, [(0, ours - there) for ours, there in zip(shape, array.shape, strict=True)])


def _placed(array, sharding):
    """The array on its devices; each process gives only what its own devices hold."""
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stacked, layer, i):
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, i, axis=0)


def _read_heads(path, dim: int, layout):
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        heads = load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: unreadable safetensors ({error}); the file is damaged or cut short") from error
    if unknown := sorted(set(heads) - {"value_head.kernel", "value_head.bias"}):
        raise InputError(f"{path}: holds {', '.join(unknown)}; known are value_head.kernel and value_head.bias")
    shapes = {"value_head.kernel": (dim,), "value_head.bias": ()}
    if "value_head.kernel" not in heads or any(x.shape != shapes[name] for name, x in heads.items()):
        found = {name: x.shape for name, x in heads.items()}
        raise InputError(f"{path}: has {found}; a value head of this model is {shapes}, the bias may be left out")
    for name, x in heads.items():
        if fault := numbers.fault(x):
            raise InputError(f"{path}: {name} {fault}")
    place = layout and layout.replicated
    return {"value_head": {name.removeprefix("value_head."): jax.device_put(x, place) for name, x in heads.items()}}


# ------------------------------------------------------------------ out


def save_hf(directory, model, params, *, max_shard_bytes: int = MAX_SHARD_BYTES):
    """Writes config.json, the decoder as safetensors (several files and an index over max_shard_bytes), and a value head as
    `heads.safetensors`. Adapters must be merged before. One file's tensors are in memory at a time. Weights that the directory held
    before are gone when the new ones are whole. InputError for a directory with an adapter or other files of weights."""
    arch = model.arch
    family = choices.module(FAMILIES, arch.family)
    parts: dict[str, list] = {}  # name in the file -> what of ours goes into it
    shape_of = {}
    for path, weight in family.table(arch).items():
        for i, name in enumerate(_names(weight, arch.num_layers)):
            parts.setdefault(name, []).append((path, weight, i if "{}" in weight.name else None))
            shape_of[name] = weight.shape
    size = np.dtype(params["embed"]["kernel"].dtype).itemsize
    shards, used = [[]], 0
    for name in parts:
        num = math.prod(shape_of[name]) * size
        if used and used + num > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += num
    total, weight_map = sum(math.prod(shape) * size for shape in shape_of.values()), {}
    with weight_files.replacing(pathlib.Path(directory)) as folder:
        for index, names in enumerate(shards):
            file = WHOLE if len(shards) == 1 else f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
            _write(folder / file, {name: _gathered(params, parts[name], shape_of[name]) for name in names})
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        if "value_head" in params:
            heads = {f"value_head.{name}": distributed.fetch(x) for name, x in params["value_head"].items()}
            _write(folder / HEADS, heads)
        save_config(folder, model)


def save_config(directory, model, tokenizer=None):
    """Writes the model's config.json alone, with the tokenizer's special ids (a family's usual ones would be wrong)."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = choices.module(FAMILIES, model.arch.family).write(model.arch, model.param_dtype)
    config |= {name: tokenizer and getattr(tokenizer, name) for name in ids}
    _write_json(pathlib.Path(directory) / "config.json", config)


def _write_json(path, value):
    if distributed.is_primary():
        path.write_text(json.dumps(value, indent=1) + "\n")


def _gathered(params, parts, shape):
    """One tensor of the file, of the parts of ours that it holds."""
    tensor = None
    for path, weight, layer in parts:
        ours = _at(params, path)
        ours = distributed.fetch(ours if layer is None else ours[layer])
        tensor = np.empty(shape, ours.dtype) if tensor is None else tensor
        view = weight.take(tensor)
        if ours.size > view.size:  # without the rows that pad the vocabulary
            ours = ours[tuple(slice(num) for num in view.shape)]
        _fill(view, ours.reshape(view.shape))
    return tensor


def _write(path, tensors):
    from safetensors.numpy import save_file

    if not distributed.is_primary():
        return
    save_file(tensors, path, metadata={"format": "pt"})
    with contextlib.suppress(OSError):  # mounts without permissions
        path.chmod(0o644)  # the library writes it for its owner alone
