"""The forms that a model's weights are stored in: a file each. Every form gives its tensors by Hugging Face's names."""

import abc
import pathlib

import numpy as np

from reft_jax.config.words import nearest
from reft_jax.errors import InputError


class Tensors(abc.ABC):
    """The tensors of a model's files under their full names: `file_of` and `name_of` (the name in the file) have each; `wrong` what was
    found to be wrong with them."""

    described_by = "config.json"

    def __init__(self):
        self.file_of: dict[str, pathlib.Path] = {}
        self.name_of: dict[str, str] = {}
        self.wrong: list[str] = []

    @abc.abstractmethod
    def about(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type, shape) of a tensor."""

    @abc.abstractmethod
    def types(self):
        """The names of the types that `read` makes numbers of."""

    @abc.abstractmethod
    def read(self, name: str, dtype=None) -> np.ndarray:
        """A tensor as it is stored, in whatever order of its axes; where it is stored as no array, in `dtype` (None: float32)."""

    def check(self, where: pathlib.Path, expected: dict[str, tuple[int, ...]], tied: tuple[str, str] | None):
        """InputError with everything that does not fit; expected: name -> shape. tied: a name that may repeat another."""
        there = set(self.file_of)
        missing = [name for name in expected if name not in there]
        unmapped = [name for name in sorted(there) if name not in expected and (tied is None or name != tied[0])]
        shapes, stored, wrong = [], [], []
        for name in sorted(there):
            if name in expected:
                dtype, shape = self.about(name)
                if shape != expected[name]:
                    shapes.append(f"{name} has shape {shape}, not {expected[name]}")
                elif dtype not in (types := self.types()):
                    stored.append(f"{name} is stored as {dtype}; supported are {', '.join(types)}")
            elif tied is not None and name == tied[0]:
                types = self.types()
                known = self.about(name)[0] in types and tied[1] in there and self.about(tied[1])[0] in types
                if not known or not np.array_equal(self.read(name), self.read(tied[1]), equal_nan=True):
                    wrong.append(
                        f"{name} differs from {tied[1]}, but {self.described_by} ties them (tie_word_embeddings)"
                    )
        wrong += _few(self.wrong, "; ") + _few(shapes, "; ") + _few(stored, "; ")
        wrong += [f"missing {text}" for text in _few(missing, ", ")]
        for text in _few([self.name_of[name] for name in unmapped], ", "):
            first = self.name_of[unmapped[0]]
            near = nearest(first, missing)
            there = f"{first} of {self.file_of[unmapped[0]].name}"
            wrong.append(f"unmapped {text} ({there}{near and f': {near.strip()}'})")
        if wrong:
            raise InputError(f"{where}: weights do not fit {self.described_by}: {'; '.join(wrong)}")


def _few(texts: list[str], separator: str) -> list[str]:
    """The first three and how many more, in one text; [] of none."""
    more = f"{separator}and {len(texts) - 3} more" if len(texts) > 3 else ""
    return [separator.join(texts[:3]) + more] if texts else []
