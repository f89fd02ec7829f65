"""GGUF files (version 3, little-endian): what stands before the tensors' bytes, and what it says of the tokens that begin, end and pad.

The form is llama.cpp's (ggml's docs/gguf.md). It is read here and not by the package `gguf`, whose reader makes several arrays of every
token (15 s and 700 MB for Gemma 3's 262,144, version 0.19.0; here 0.2 s and 16 MB) and believes the lengths that it finds. Here no length is
believed: nothing is read or made that is larger than what is left of the file.
"""

import dataclasses
import math
import pathlib
import struct
import typing

import numpy as np

from reft_jax.errors import InputError

MAGIC, VERSION = b"GGUF", 3
REMEDY = "it is damaged or cut short: fetch it again"
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
MAX_DIMS = 4
# What Hugging Face calls the ids, and the keys that name them here. A response ends with each of the second's.
TOKENS = {
    "bos_token_id": ("bos",),
    "eos_token_id": ("eos", "eot", "eom"),
    "pad_token_id": ("padding",),
    "unk_token_id": ("unknown",),
}
SENTENCEPIECE = {"bos": 1, "eos": 2, "unknown": 0}  # where a file with such a vocabulary names none


class Tensor(typing.NamedTuple):
    """Where a tensor stands: sizes with the slowest first, ggml's number of the type, the first byte in the file."""

    shape: tuple[int, ...]
    kind: int
    first: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says before its tensors. Arrays are of numbers (NumPy's) or lists of bytes."""

    path: pathlib.Path
    metadata: dict[str, typing.Any]
    tensors: dict[str, Tensor]

    def get(self, key: str, kind: type, default: typing.Any = ...):
        """The value of a key, an int (>= 0), float (finite), bool, str, list (of strings) or np.ndarray; without it the default.
        InputError where it is absent and needed, or something else."""
        value = self.metadata.get(key)
        if value is None and default is not ...:
            return default
        if value is None:
            raise InputError(f"{self.path}: it has no {key}; {REMEDY}")
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is int and value < 0) or (kind is float and not math.isfinite(value)):
            raise InputError(f"{self.path}: {key} is {str(value)[:80]!r}; it must be a {kind.__name__}; {REMEDY}")
        return [_text(self.path, each, key) for each in value] if kind is list else value

    def token_id(self, name: str) -> int | None:
        """The id of a token by its name in a key (`eos`, `eot`, ...). InputError for one that is none."""
        key = f"tokenizer.ggml.{name}_token_id"
        usual = SENTENCEPIECE.get(name) if self.metadata.get("tokenizer.ggml.model") == "llama" else None
        found, size = self.get(key, int, usual), len(self.metadata.get("tokenizer.ggml.tokens", ()))
        if found is not None and found >= size:
            raise InputError(f"{self.path}: {key} is {found}; the vocabulary has {size} tokens; {REMEDY}")
        return found

    def token_ids(self, key: str) -> list[int]:
        """The ids that the file gives for one of Hugging Face's keys, each once."""
        found = [self.token_id(name) for name in TOKENS.get(key, ())]
        return list(dict.fromkeys(i for i in found if i is not None))


def is_file(path) -> bool:
    """Whether it is a GGUF file, by its name or its first bytes."""
    path = pathlib.Path(path)
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return path.suffix.lower() == ".gguf" or file.read(4) == MAGIC


def read(path) -> Header:
    """The header of a file. InputError where it is no whole GGUF file of version 3."""
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        return _Reader(path, file, path.stat().st_size).header()


def _text(path, value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {what} has {value[:40]!r}, which is no UTF-8; {REMEDY}") from error


class _Reader:
    def __init__(self, path: pathlib.Path, file: typing.BinaryIO, size: int):
        self.path, self.file, self.size, self.left = path, file, size, size

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.path}: {what}; {REMEDY}")

    def take(self, num: int) -> bytes:
        """The next bytes; never more than the file has."""
        if num > self.left:
            raise self.wrong(f"{num} bytes should follow byte {self.size - self.left}, and {self.left} do")
        self.left -= num
        return self.file.read(num)

    def number(self, form: str = "<Q"):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, what: str) -> str:
        return _text(self.path, self.take(self.number()), what)

    def name(self, what: str) -> str:
        """Of a key or a tensor."""
        if not (name := self.text(what)).isprintable():
            raise self.wrong(f"{what} is {name[:40]!r}")
        return name

    def header(self) -> Header:
        if (magic := self.take(min(4, self.left))) != MAGIC:
            raise self.wrong(f"it begins with {magic!r}, not {MAGIC!r}: no GGUF file, or a damaged one")
        if (version := self.number("<I")) != VERSION:
            what = "big-endian" if version % 2**16 == 0 else f"of version {version}"
            raise InputError(
                f"{self.path}: the file is {what}; little-endian files of version {VERSION} are read: convert the model anew"
            )
        num_tensors, num_keys = self.number(), self.number()
        metadata: dict[str, typing.Any] = {}
        for _ in range(num_keys):
            key = self.name("a key")
            if key in metadata:
                raise self.wrong(f"{key} stands there twice")
            metadata[key] = self.value(self.number("<I"), key)
        tensors = {}
        for _ in range(num_tensors):
            name = self.name("a tensor's name")
            if name in tensors:
                raise self.wrong(f"the tensor {name} stands there twice")
            if not 0 < (num := self.number("<I")) <= MAX_DIMS:
                raise self.wrong(f"{name} has {num} dimensions, not 1 to {MAX_DIMS}")
            shape = tuple(self.number() for _ in range(num))[::-1]
            if 0 in shape:
                raise self.wrong(f"{name} has the sizes {shape}")
            tensors[name] = Tensor(shape, self.number("<I"), self.number())
        header = Header(self.path, metadata, tensors)
        align = header.get("general.alignment", int, 32)
        if align == 0 or align & (align - 1):
            raise self.wrong(f"general.alignment is {align}, not a power of two")
        start = -(-(self.size - self.left) // align) * align
        for name, tensor in tensors.items():
            if tensor.first % align:
                raise self.wrong(f"{name} begins at {tensor.first}, not at a multiple of {align}")
            tensors[name] = tensor._replace(first=start + tensor.first)
        return header

    def value(self, kind: int, key: str):
        if kind in NUMBERS:
            number = np.frombuffer(self.take(np.dtype(NUMBERS[kind]).itemsize), NUMBERS[kind])[0]
            return (
                float(str(number)) if number.dtype == np.float32 else number.item()
            )  # 1e-5, and not 9.999999747378752e-06
        if kind == BOOL:
            return self.take(1) != b"\0"
        if kind == STRING:
            return self.text(key)
        if kind != ARRAY:
            raise self.wrong(f"{key} is of the unknown type {kind}")
        kind, num = self.number("<I"), self.number()
        if kind == STRING:
            return [self.take(self.number()) for _ in range(num)]
        if kind != BOOL and kind not in NUMBERS:
            raise self.wrong(f"{key} is an array of the unknown type {kind}")
        form = np.dtype(NUMBERS.get(kind, "?"))
        return np.frombuffer(self.take(num * form.itemsize), form)
