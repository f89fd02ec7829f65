"""Checksums of a checkpoint's files: `<step>/checksums.json`, written before the step has its name and compared before it is read.

Orbax's arrays have none of their own (OCDBT protects its index; the Zarr codecs that Orbax writes protect no data): without these a
flipped bit is restored as another weight. CRC-32 finds every burst of up to 32 bits, and of other damage all but one case in 4 billion. Each
process sums up what it has written itself, in the thread that writes; process 0 sums up the rest and gathers all in one file.

{"files": {"params/_METADATA": {"bytes": 3559, "sums": ["01234567"]}, ...}, "chunk_bytes": 67108864, "sum": of all that, as JSON with sorted keys}
"""

import concurrent.futures
import json
import os
import pathlib
import zlib

from reft_jax.errors import InputError
from reft_jax.mesh import distributed

NAME = "checksums.json"
PROMISE = {"checksums": NAME}  # in Orbax's metadata: a step that says so is damaged where the file is gone
CHUNK = 2**26  # bytes under one checksum
MB = 2**20
# the step's own has no checksum: Orbax changes it once more, and restoring does not need it
METADATA = "_CHECKPOINT_METADATA"
THREADS = min(4, os.cpu_count() or 1)


class Damaged(InputError):
    """A checkpoint whose files are not those that were saved: `what` is wrong."""

    def __init__(self, step: pathlib.Path, what: str):
        self.what = what
        super().__init__(
            f"{what}. Restore {step} from a copy, or name another checkpoint; a stage of a run is trained again when its folder is removed"
        )


def _sum(path: pathlib.Path, start: int, size: int) -> str:
    """CRC-32 of a part of a file, as 8 hexadecimal digits."""
    value, buffer = 0, memoryview(bytearray(min(size, MB)))
    with open(path, "rb") as file:
        file.seek(start)
        for left in range(size, 0, -MB):
            value = zlib.crc32(buffer[: file.readinto(buffer[:left])], value)
    return f"{value:08x}"


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
    return f"{zlib.crc32(json.dumps(about, sort_keys=True).encode()):08x}"


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
