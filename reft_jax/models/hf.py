"""Hugging Face directories in and out: config.json and safetensors. A family is one file in `families/` that translates both. GGUF files
come in the same way (`formats/gguf.py`): what is said of a directory holds for them.

Every weight of the files must have one place here and every place one weight: what is unmapped, missing, doubly stored or
mis-shaped is found from the files' headers, before anything is read, and refused in one message. Weights that are no numbers are refused
as they are read.

Tensors are read one at a time and go straight to where `shardings` puts them, so the host holds one tensor and its own
devices' share of the model. `heads.safetensors`, beside the decoder's files, holds what no Hugging Face class has: the
value head, as `value_head.kernel` f32[D] and `value_head.bias` f32[]. Other programs do not read that file.
"""

import contextlib
import functools
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.config import choices, records
from reft_jax.data import gguf, json_text
from reft_jax.errors import InputError
from reft_jax.mesh import distributed
from reft_jax.mesh.sharding import drop_leading
from reft_jax.models import decoder, hub, numbers, weight_files
from reft_jax.models.formats import gguf as gguf_format
from reft_jax.models.formats import safetensors
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


def resolve(name: str) -> pathlib.Path | None:
    """The folder of a Hugging Face directory, of a shipped model's name or of a name on the hub (`hub.snapshot`), or a GGUF file; None if there
    is none. InputError for PEFT's adapters, and for what the hub does not give."""
    if name and gguf.is_file(name):
        return pathlib.Path(name)
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
    """The Arch that a directory's config.json or a GGUF file describes. InputError for families and options that are not supported."""
    path, said = _described(pathlib.Path(directory))
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


def _described(directory: pathlib.Path) -> tuple[pathlib.Path, dict]:
    """(the file that describes the model, what it says in config.json's words)."""
    if gguf.is_file(directory):
        return directory, gguf_format.config(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(
            f"{directory}: no config.json there; a Hugging Face directory has config.json, *.safetensors and the tokenizer's files"
        )
    return path, json_text.read_object(path, "mend it, or fetch it again")


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


def _names(weight, num_layers: int) -> list[str]:
    return [weight.name.format(i) for i in range(num_layers)] if "{}" in weight.name else [weight.name]


def check_hf(directory):
    """InputError where `load_hf` would raise one, but for numbers that are none; reads headers alone, and heads and a tied embedding stored
    twice."""
    _checked(pathlib.Path(directory))


def _checked(directory: pathlib.Path):
    arch = read_config(directory)
    family = choices.module(FAMILIES, arch.family)
    table = family.table(arch)
    files = gguf_format.Tensors(directory) if directory.is_file() else safetensors.Tensors(directory, family)
    expected = {name: weight.shape for weight in table.values() for name in _names(weight, arch.num_layers)}
    tied = ("lm_head.weight", table["embed", "kernel"].name) if arch.tie_embeddings else None
    files.check(directory, expected, tied)
    if (directory / HEADS).is_file():
        _read_heads(directory / HEADS, arch.dim, None)
    return arch, table, files


def load_hf(
    directory, *, param_dtype="float32", compute_dtype="float32", shardings=None, layout=None, vocab_multiple=1
):
    """(model, params) of a Hugging Face directory or a GGUF file, with the value head if `heads.safetensors` has one.

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
            view = weight.take(files.read(name, param_dtype))
            array = view
            if view.dtype != param_dtype or not view.flags.c_contiguous:
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
        return jax.device_put(array)
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
