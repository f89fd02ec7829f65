"""What a run writes while it goes: append-only JSON lines that survive kills, and files replaced in one go.

A resumed stage first drops the lines after its checkpoint, so that the files of a killed run end equal to an unbroken one's.
"""

import errno
import json
import math
import os
import pathlib

import numpy as np

from reft_jax.mesh import distributed

WITHOUT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # how mounts say that they know no fsync


def write_text(path: pathlib.Path, text: str):
    """Replaces a file in one go: readers, and a kill, see the old text or the new. Of several processes one writes."""
    if not distributed.is_primary():
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        _sync(file.fileno())
    os.replace(temporary, path)


def _sync(handle: int):
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in WITHOUT_SYNC:
            raise


def write_json(path: pathlib.Path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def plain(value):
    """Values as JSON has them: 9 digits hold a float32 exactly, and what is not finite is null."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.float32):
        value = float(f"{value:.9g}")
    elif isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Lines:
    """An append-only JSONL file of records with a `step`; opening it at a step drops what was written after that step."""

    def __init__(self, path: pathlib.Path, after_step: int):
        self._file = None
        if not distributed.is_primary():
            return
        if path.exists():
            kept = []
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    if not line.endswith(b"\n") or json.loads(line)["step"] > after_step:
                        break  # half-written, or later than the checkpoint
                except (ValueError, KeyError, TypeError):  # damaged
                    break
                kept.append(line)
            write_text(path, b"".join(kept).decode())
        self._file = open(path, "a", encoding="utf-8")

    def write(self, record: dict):
        if self._file is None:
            return
        self._file.write(json.dumps(plain(record), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self):
        if self._file is not None:
            self._file.close()


def num_lines(path: pathlib.Path) -> int:
    """How many whole lines a file has; 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain-text table, first column left-aligned and the others right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
