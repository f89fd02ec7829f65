"""Hugging Face directories in and out: config.json and safetensors. A family is one file in `families/` that translates both.

Every weight of the file must have one place here and every place one weight: what is unmapped, missing or mis-shaped is
listed together and refused.
"""

import json
import math
import pathlib

import jax
import numpy as np

from reft_jax.errors import InputError
from reft_jax.models import decoder
from reft_jax.models.families import llama

FAMILIES = {"llama": llama}
SHIPPED = pathlib.Path(__file__).resolve().parents[1] / "assets"


def resolve(name: str) -> pathlib.Path | None:
    """The folder of a Hugging Face directory or of a shipped model's name; None if there is none."""
    for folder in (pathlib.Path(name), SHIPPED / name):
        if name and (folder / "config.json").is_file() and not (folder / "results.json").exists():
            return folder
    return None


def read_config(directory):
    """The Arch that a directory's config.json describes. InputError for families and options that are not supported."""
    import transformers

    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{directory}: no config.json there; a Hugging Face directory has config.json, *.safetensors and the tokenizer's files"
        )
    try:
        model_type = json.loads(path.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a JSON object ({error})") from error
    if model_type not in FAMILIES:
        raise InputError(f"{path}: model_type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    return FAMILIES[model_type].read(
        transformers.AutoConfig.from_pretrained(path.parent, local_files_only=True), str(path)
    )


def _shape_there(shape, num_in):
    """The shape in the file of a kernel that is `shape` here (`families.*.weights` explains num_in)."""
    return (math.prod(shape[num_in:]), math.prod(shape[:num_in])) if num_in else shape


def load_hf(directory, *, param_dtype="float32", compute_dtype="float32", shardings=None):
    """(model, params) of a Hugging Face directory. `shardings`: a tree like params, or None (the default device).

    Raises InputError with every weight that is unmapped, missing or mis-shaped.
    """
    from safetensors import SafetensorError, safe_open

    directory = pathlib.Path(directory)
    model = decoder.Model(read_config(directory), param_dtype, compute_dtype)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{directory}: no *.safetensors there; convert pickled weights with transformers' save_pretrained first"
        )
    try:
        handles = [safe_open(file, framework="numpy") for file in files]
    except SafetensorError as error:
        raise InputError(
            f"{directory}: unreadable safetensors ({error}); the file is damaged or cut short: fetch it again"
        ) from error
    owner, wrong, used = {}, [], set()
    for file, handle in zip(files, handles, strict=True):
        wrong += [f"{name} is in {file.name} and in another file" for name in handle.keys() if name in owner]
        owner |= {name: handle for name in handle.keys()}

    def read(name, shape, num_in):
        used.add(name)
        there = _shape_there(shape, num_in)
        if name not in owner:
            wrong.append(f"missing {name}")
        elif (array := owner[name].get_tensor(name)).shape != there:
            wrong.append(f"{name} has shape {array.shape}, not {there}")
        else:
            return (array.T if num_in else array).reshape(shape).astype(param_dtype)
        return np.zeros(shape, param_dtype)

    params: dict = {}
    for path, (name, shape, num_in) in llama.weights(model.arch).items():
        if "{}" in name:
            array = np.stack([read(name.format(i), shape, num_in) for i in range(model.arch.num_layers)])
        else:
            array = read(name, shape, num_in)
        node, sharding = params, shardings
        for key in path:
            sharding = sharding and sharding[key]
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jax.device_put(array, sharding)
    wrong += [f"unmapped {name}" for name in owner if name not in used and not name.endswith("rotary_emb.inv_freq")]
    if wrong:
        raise InputError(
            f"{directory}: weights do not fit config.json: "
            + "; ".join(wrong[:20])
            + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        )
    return model, params


def save_hf(directory, model, params):
    """Writes config.json and model.safetensors (the decoder; heads are not part of the format)."""
    from safetensors.numpy import save_file

    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, (name, shape, num_in) in llama.weights(model.arch).items():
        array = params
        for key in path:
            array = array[key]
        array = np.asarray(array)
        for layer_name, layer in (
            [(name.format(i), layer) for i, layer in enumerate(array)] if "{}" in name else [(name, array)]
        ):
            matrix = layer.reshape(_shape_there(shape, num_in)[::-1]).T if num_in else layer
            tensors[layer_name] = np.ascontiguousarray(matrix)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # the library writes it for its owner alone
    (directory / "config.json").write_text(json.dumps(llama.write(model.arch, model.param_dtype), indent=1) + "\n")
