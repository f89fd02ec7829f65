"""What checksums cost a checkpoint: python benchmarks/checkpoint.py [MB=500] [REPEATS=5] [FOLDER=a temporary one]

Saves and restores a state of random float32 (parameters and two moments of AdamW) with checksums and without, in turn. Prints one JSON
line a way, in seconds, the least of all repeats: `blocked` is how long a step of training waits for the save to begin, `save` until the
checkpoint is whole, `save_cpu` the processor time of that, `restore` with its check (the files lie in the page cache).
"""

import contextlib
import json
import pathlib
import sys
import tempfile
import time
from unittest import mock

import jax
import numpy as np

from reft_jax.run import checkpoint, checksums
from reft_jax.types import TrainState


def made(megabytes: float) -> TrainState:
    """A state of that size."""
    rng, layers = np.random.default_rng(0), 8
    shape = (layers, int(megabytes * 1e6 / 4 / 3 / layers / 1024), 1024)
    params, mu, nu = (jax.device_put(rng.standard_normal(shape, np.float32)) for _ in range(3))
    return TrainState(jax.numpy.int32(1), {"blocks": {"kernel": params}}, {"mu": mu, "nu": nu})


def timed(folder: pathlib.Path, state: TrainState) -> dict[str, float]:
    checkpoints, out = checkpoint.Checkpoints(folder), {}
    began, cpu = time.perf_counter(), time.process_time()
    checkpoints.save(1, state, {"best_step": None}, wait=False)
    out["blocked"] = time.perf_counter() - began
    checkpoints.wait()
    out |= dict(save=time.perf_counter() - began, save_cpu=time.process_time() - cpu)
    began = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(1, state)[0])
    out["restore"] = time.perf_counter() - began
    checkpoints.close()
    return out


def main(megabytes: float, repeats: int, place: str | None):
    none = dict.fromkeys(("write_part", "write", "check"), lambda *_: None)
    ways = dict(with_checksums=contextlib.nullcontext, without=lambda: mock.patch.multiple(checksums, **none))
    state, seen = made(megabytes), {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, switched in sorted(ways.items(), reverse=repeat % 2):  # in turn, each first as often
            with switched(), tempfile.TemporaryDirectory(dir=place) as folder:
                measured = timed(pathlib.Path(folder), state)
            if repeat:  # the first opens files and starts threads
                seen[way].append(measured)
    for way, rows in seen.items():
        least = {key: round(min(row[key] for row in rows), 3) for key in rows[0]}
        print(json.dumps(dict(checksums=way, mb=megabytes, repeats=repeats) | least))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 500, int(given[1]) if given[1:] else 5, given[2] if given[2:] else None)
