"""Checksums of a checkpoint's files: `<step>/checksums.json`, written before the step has its name and compared before it is read.

Orbax's arrays have none of their own (OCDBT protects its index; the Zarr codecs that Orbax writes protect no data): without these a
flipped bit is restored as another weight. Each process sums up what it has written itself, in the thread that writes; process 0 sums up
the rest and gathers all in one file.

A chunk's checksum is the BLAKE2b (8 bytes) of 64-bit sums: each MiB (zeros behind its end) is a matrix of 256 x 512 little-endian integers,
of which the sums of rows and of columns, modulo 2^64, are hashed. Whatever happens to up to three of a MiB's integers changes one of the
sums; of other damage one case in 2^64 passes. zlib's CRC-32 takes about twice the time.

{"files": {"params/_METADATA": {"bytes": 3559, "sums": ["0123456789abcdef"]}, ...}, "chunk_bytes": 67108864, "sum": of all that, as JSON with
sorted keys}
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib

import numpy as np

from reft_jax.errors import InputError
from reft_jax.mesh import distributed

NAME = "checksums.json"
PROMISE = {"checksums": NAME}  # in Orbax's metadata: a step that says so is damaged where the file is gone
CHUNK = 2**26  # bytes under one checksum
ROW = 2**12  # bytes of a row of a MiB's matrix
METADATA = (
    "_CHECKPOINT_METADATA"  # the step's own has no checksum: Orbax changes it once more, and restoring does not need it
)
THREADS = min(4, os.cpu_count() or 1)


class Damaged(InputError):
    """A checkpoint whose files are not those that were saved: `what` is wrong."""

    def __init__(self, step: pathlib.Path, what: str):
        self.what = what
        super().__init__(
            f"{what}. Restore {step} from a copy, or name another checkpoint; a stage of a run is trained again when its folder is removed"
        )


def _sum(path: pathlib.Path, start: int, size: int) -> str:
    """The checksum of a part of a file, as 16 hexadecimal digits."""
    digest, buffer = hashlib.blake2b(digest_size=8), np.zeros(min(2**20, -(-size // ROW) * ROW), np.uint8)
    with open(path, "rb") as file:
        file.seek(start)
        for left in range(size, 0, -(2**20)):
            count = file.readinto(memoryview(buffer)[: min(left, len(buffer))])
            buffer[count:] = 0
            words = buffer.view("<u8").reshape(-1, ROW // 8)
            digest.update(words.sum(axis=1, dtype="<u8"))
            digest.update(words.sum(axis=0, dtype="<u8"))
    return digest.hexdigest()


def _summed(files, root: pathlib.Path) -> dict:
    """{path under root: its size and checksums} of files."""
    sizes = {path: path.stat().st_size for path in sorted(files)}
    chunks = [(path, start) for path, size in sizes.items() for start in range(0, size, CHUNK)]
    out = {path: {"bytes": size, "sums": []} for path, size in sizes.items()}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        sums = threads.map(lambda chunk: _sum(*chunk, min(CHUNK, sizes[chunk[0]] - chunk[1])), chunks)
        for (path, _), one in zip(chunks, sums, strict=True):
            out[path]["sums"].append(one)
    return {path.relative_to(root).as_posix(): about for path, about in out.items()}


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [pathlib.Path(at, name) for at, _, names in os.walk(folder) for name in names]


def write_part(item: pathlib.Path, process: int):
    """Sums up what one process has written of an item (Orbax gives each a folder), for `write` to gather."""
    sums = _summed(_files(item / f"ocdbt.process_{process}"), item)
    (item / f"{NAME}.{process}").write_text(json.dumps(sums))


def write(step: pathlib.Path):
    """Gathers the processes' parts, sums up every other file of a step's items, and writes the step's checksums."""
    known = {}
    for item in (path for path in step.iterdir() if path.is_dir()):
        for part in [path for path in item.iterdir() if path.name.startswith(f"{NAME}.")]:
            known |= {f"{item.name}/{name}": sums for name, sums in json.loads(part.read_text()).items()}
            part.unlink()
    rest = [path for path in _files(step) if path.parent != step and path.relative_to(step).as_posix() not in known]
    about = {"files": known | _summed(rest, step), "chunk_bytes": CHUNK}
    (step / NAME).write_text(json.dumps(about | {"sum": _of(about)}, indent=1) + "\n")


def _of(about: dict) -> str:
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def _promised(step: pathlib.Path) -> bool:
    """Whether a step without checksums had some; those of earlier versions had none."""
    for path in (step / METADATA, step / "params" / METADATA):
        try:
            if json.loads(path.read_text()).get("custom_metadata", {}).items() >= PROMISE.items():
                return True
        except (OSError, ValueError, AttributeError):
            pass
    return False


def _read(step: pathlib.Path) -> dict | None:
    """{path: size and checksums} of a step; None if it was written before there were any. Raises Damaged."""
    path = step / NAME
    try:
        about = json.loads(path.read_text())
        if about.pop("sum") != _of(about) or about["chunk_bytes"] != CHUNK:
            raise ValueError
        return about["files"]
    except FileNotFoundError:
        if _promised(step):
            raise Damaged(step, f"{path} is gone") from None
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(step, f"{path} is damaged") from error


def check(step: pathlib.Path, *names: str):
    """Compares the files of a step (of the items or files `names` alone, if given) with what was saved; of several processes each reads its
    share of the chunks, and all get the same answer. Raises Damaged; a step without checksums passes, if it never had any."""
    files = _read(step)
    if files is None:
        return
    todo = []
    for name, about in files.items():
        if names and not any(name == one or name.startswith(f"{one}/") for one in names):
            continue
        size = about["bytes"]
        starts = range(0, max(size, 1), CHUNK)
        todo += [(step / name, size, start, one) for start, one in zip(starts, about["sums"] or [None], strict=True)]
    mine = [chunk for row, chunk in enumerate(todo) if distributed.mine(row)]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        wrong = [why for why in distributed.share(list(threads.map(_wrong, mine)), len(todo)) if why]
    if wrong:
        more = f" (and {len(wrong) - 1} more such faults)" if len(wrong) > 1 else ""
        raise Damaged(step, f"{wrong[0]}{more}")


def _wrong(chunk: tuple[pathlib.Path, int, int, str | None]) -> str | None:
    """What is wrong with one chunk of a file: (path, bytes of the whole file, where the chunk begins, its checksum)."""
    path, size, start, known = chunk
    try:
        if (there := path.stat().st_size) != size:
            return f"{path} has {there:,} bytes, {size:,} were saved"
        if known is not None and _sum(path, start, min(CHUNK, size - start)) != known:
            return (
                f"{path} is damaged: its bytes {start:,} to {min(start + CHUNK, size):,} are not those that were saved"
            )
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None
