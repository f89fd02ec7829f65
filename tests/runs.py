"""The real command in a process of its own, and the comparison of what two runs wrote.

All runs share a compilation cache (REFT_TESTS_COMPILED, or one of this session), so that a second process of the same config starts in seconds.
"""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMOKE = "configs/demo.py:smoke"
STAGES = ("warmup", "sft", "reft", "evaluate")
LABELS = ("base", "warmup", "sft", "reft")
TIMEOUT = 900  # seconds; a hang should fail, a slow machine should not


@functools.cache
def scratch() -> pathlib.Path:
    """A folder of this test session, of all its processes (tests/conftest.py); one of this process's own where no session has made any."""
    if "REFT_TESTS_SCRATCH" in os.environ:
        return pathlib.Path(os.environ["REFT_TESTS_SCRATCH"])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="reft_jax_tests_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def once(name: str, make) -> pathlib.Path:
    """The folder of that name which make(folder) has filled, once a session; its other processes wait for it. Only to be read."""
    folder = scratch() / f"{name}-{zlib.crc32(str(ROOT).encode())}"
    done = folder.with_suffix(".done")
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


def environment(devices: int = 1) -> dict:
    """This process's environment with so many CPU devices."""
    cache = dict(
        JAX_COMPILATION_CACHE_DIR=os.environ.get("REFT_TESTS_COMPILED", str(scratch() / "compiled")),
        JAX_COMPILATION_CACHE_MAX_SIZE=str(200 * 2**20),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | cache | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, TF_CPP_MIN_LOG_LEVEL="3")


def start(workdir, *overrides: str, spec: str = SMOKE, devices: int = 1) -> subprocess.Popen:
    """Starts the command; `log(workdir)` is what it prints."""
    command = [sys.executable, "-m", "reft_jax.main", f"--config={spec}", f"--workdir={workdir}", *overrides]
    with open(_log_path(workdir), "a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment(devices), stdout=file, stderr=file)


def _log_path(workdir) -> pathlib.Path:
    folder = scratch() / "logs"  # not beside the workdir, whose disk may be full
    folder.mkdir(exist_ok=True)  # other processes may make it too
    return folder / str(workdir).replace("/", "_")


def log(workdir) -> str:
    """What all the commands on that workdir printed."""
    return _log_path(workdir).read_text()


def run(workdir, *overrides: str, spec: str = SMOKE, devices: int = 1, code: int = 0) -> pathlib.Path:
    """Runs the command to its end and expects that exit code; gives the workdir."""
    process = start(workdir, *overrides, spec=spec, devices=devices)
    try:
        assert process.wait(TIMEOUT) == code, log(workdir)[-4000:]
    finally:
        end(process)
    return pathlib.Path(workdir)


def end(process: subprocess.Popen):
    """Kills the process if it still runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()


def wait_until(process: subprocess.Popen, condition, workdir):
    """Polls until condition() holds; fails if the process ends before, or after TIMEOUT."""
    limit = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before it came to that\n{log(workdir)[-4000:]}"
        assert time.monotonic() < limit, f"never came to that\n{log(workdir)[-4000:]}"
        time.sleep(0.001)


def unbroken() -> pathlib.Path:
    """The workdir of the smoke run on one device, made once a session; only to be read."""
    return once("unbroken", run)


# ------------------------------------------------------------------ what a run wrote


def lines(path) -> list[dict]:
    with open(
        path, encoding="utf-8"
    ) as file:  # splitlines would also end one at \x85 or \u2028, of which samples may be made
        return [json.loads(line) for line in file]


def timeless(records: list[dict]) -> list[dict]:
    """Metric lines without what depends on the clock."""
    return [{k: v for k, v in r.items() if k != "time" and not k.startswith(("time/", "rate/"))} for r in records]


def event_file(folder) -> list[dict]:
    """What the one event file of a stage shows in TensorBoard, as metrics.jsonl would hold it; its first two events are checked. The
    file's records: length u64, crc u32, bytes, crc u32."""
    from tensorboardX.proto import event_pb2

    [path] = pathlib.Path(folder).glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    version, start, *rest = events
    assert version.file_version == "brain.Event:2"
    assert (
        start.session_log.status == event_pb2.SessionLog.START and start.step == 0
    )  # what was read before is forgotten
    return [{"step": e.step, "time": e.wall_time} | {v.tag: v.simple_value for v in e.summary.value} for e in rest]


def params(folder) -> dict:
    """{path: array} of the parameters that `load_params` reads."""
    import jax

    from reft_jax.run import checkpoint

    tree = jax.tree_util.tree_leaves_with_path(checkpoint.load_params(folder))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in tree}


def assert_same_params(a, b):
    """The last checkpoints of two stage folders hold the same bits."""
    a, b = params(a), params(b)
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        assert leaf.dtype == b[path].dtype and leaf.tobytes() == b[path].tobytes(), path


def assert_same_run(a: pathlib.Path, b: pathlib.Path):
    """Two finished smoke runs are equal, bit for bit, in all but their clocks."""
    for stage in STAGES[:3]:
        assert_same_params(a / stage, b / stage)
        assert timeless(lines(a / stage / "metrics.jsonl")) == timeless(lines(b / stage / "metrics.jsonl")), stage
        assert (a / stage / "DONE").read_text() == (b / stage / "DONE").read_text(), stage
    for name in ("reft/samples.jsonl", "results.json", *(f"{label}/predictions.jsonl" for label in LABELS)):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def children(pid: int) -> list[int]:
    """The children of a process, by their parent's number: the system's own list may leave some out."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return sorted(child for child, parent in parents.items() if parent == pid)


def contents(folder) -> dict:
    """{path: (size, time of last change)} of everything below a folder, to see whether anything was written."""
    return {
        path: (path.lstat().st_size if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in sorted(pathlib.Path(folder).rglob("*"))
    }
