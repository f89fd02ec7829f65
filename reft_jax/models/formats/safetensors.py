"""Safetensors files of a Hugging Face directory."""

import errno
import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np

from reft_jax.errors import InputError
from reft_jax.models import formats, weight_files
from reft_jax.models.families import weights

# What a weight may be stored as: safetensors' names
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


class Tensors(formats.Tensors):
    """The tensors of a directory's safetensors files; checks the index, opens every file once."""

    def __init__(self, directory: pathlib.Path, family):
        super().__init__()
        self.family = family
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
        return self._stored(name)[:2]

    def types(self):
        return FLOATS

    def read(self, name, dtype=None) -> np.ndarray:
        dtype, shape, first = self._stored(name)
        return np.fromfile(self.file_of[name], FLOATS[dtype], math.prod(shape), offset=first).reshape(shape)

    def _stored(self, name):
        """(type, shape, first byte) of a tensor."""
        return self.headers[self.file_of[name]][self.name_of[name]]
