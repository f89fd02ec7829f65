"""Runs generated programs in separate, killable processes: `run_programs`.

The caller holds a pool of small server processes (`program_server.py`, one per worker) for the life of its own process.
A server makes one child per program; the caller, which has JAX's threads, is never forked and runs no generated code.
Servers end when their socket does, so also when the caller is killed. A server that dies or hangs is replaced; the
programs that it had are run again, each alone, and one that is lost twice so is a failure of the verifier. Programs are
the P-CoT of ReFT (arXiv 2401.08967, section 3); as there, `math` and `sympy` are in scope and `sys.exit` is harmless.
Equal programs have equal results in every run (`repeat` in `program_server.py`).

What the sandbox does and does not promise is written in `program_server.py`.
"""

import atexit
import collections
import dataclasses
import functools
import importlib.util
import inspect
import marshal
import math
import os
import pathlib
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence

from reft_jax import commands
from reft_jax.errors import InputError, RunError
from reft_jax.rewards.markdown import program_in
from reft_jax.rewards.sandbox import LAYERS

SERVER = pathlib.Path(__file__).with_name("program_server.py")
START_S = 120.0  # to import sympy on a machine that is busy compiling
GRACE_S = 10.0  # beyond a program's own deadline, which its server enforces
MAX_POLL_S = 1e5  # poll() counts milliseconds in a C int
MAX_DEATHS = 8  # servers lost in a row, per worker, before the cause is taken to be this machine and not a program
MAX_SOURCE = 1_000_000  # characters
USES = {  # kind of server: the words of a program that ask for it; the first that is found counts
    "all": ("lambdify",),
    "scipy": ("scipy", "networkx", "pandas"),
    "numpy": ("numpy",),
    "sympy": ("sympy", "mpmath", "random"),
}
WINDOW = 12  # programs that a server has at a time; it can run as many at once


class VerifierError(RunError):
    """Programs cannot be run here for a reason that is not theirs; grading them would score right answers as wrong.

    `programs`: (source, what happened) of those that could not be judged, where it is known which.
    """

    def __init__(self, message: str, programs: Sequence[tuple[str, str]] = ()):
        super().__init__(message)
        self.programs = list(programs)


@dataclasses.dataclass(frozen=True)
class ProgramResult:
    """What became of one program.

    `status`: "ok" (`value` is the answer as text), "no_answer" (solution() returned something that is none), "error",
    "timeout", "memory", or "blocked" (it tried to reach files, network or processes, whatever it did afterwards).
    `detail` is for people: error type and line. It begins with "verifier:" exactly if the fault was not the program's.
    """

    status: str
    value: str | None = None
    detail: str = ""


def run_programs(
    programs: Sequence[str], *, timeout_s: float = 2.0, memory_mb: int = 512, workers: int = 0
) -> list[ProgramResult]:
    """Runs each program's `solution()` in a process of its own; results in the order of `programs`.

    A program may stand in Markdown (`program_in`). `timeout_s`: wall-clock seconds per program; `memory_mb`: MiB of
    address space beyond the interpreter's and the libraries' that are held ready; `workers`: programs at a time (0 = one
    per processor). `math` and `sympy` are in scope. Clocks, chance and the number of processors are the same in every
    run. Calls from several threads take turns. Bad settings raise InputError; VerifierError if no server can be kept alive.
    """
    sources = [program if len(program) > MAX_SOURCE else program_in(program) for program in programs]
    return run_as_written(sources, timeout_s=timeout_s, memory_mb=memory_mb, workers=workers)


def run_as_written(
    programs: Sequence[str], *, timeout_s: float = 2.0, memory_mb: int = 512, workers: int = 0
) -> list[ProgramResult]:
    """`run_programs` of programs that are nothing else."""
    if not (isinstance(timeout_s, int | float) and math.isfinite(timeout_s) and timeout_s > 0):
        raise InputError(f"timeout_s={timeout_s!r}: seconds per program must be a positive number, for instance 2.0")
    if not (isinstance(memory_mb, int) and memory_mb >= 16):
        raise InputError(f"memory_mb={memory_mb!r}: MiB per program must be a whole number from 16, for instance 512")
    if not (isinstance(workers, int) and workers >= 0):
        raise InputError(f"workers={workers!r}: must be a whole number, 0 (one per processor) or more")
    results: dict[int, ProgramResult] = {}
    jobs: dict[str, dict[int, tuple]] = collections.defaultdict(dict)
    for i, program in enumerate(programs):
        if len(program) > MAX_SOURCE:
            results[i] = ProgramResult("error", detail=f"longer than {MAX_SOURCE} characters")
        else:
            jobs[server_kind(program)][i] = (i, program, float(timeout_s), memory_mb)
    with _LOCK:
        for kind, requests in jobs.items():
            results |= _run(kind, requests, workers or num_processors())
    return [results[i] for i in range(len(programs))]


def server_kind(program: str) -> str:
    """The smallest server (`PRELOADED` in program_server.py) that holds what the program names: its size is what a fork costs."""
    kind = next((kind for kind, words in USES.items() if any(word in program for word in words)), "plain")
    return "all" if kind in ("numpy", "scipy") and "sympy" in program else kind


def num_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def close(wait_s: float = -1) -> None:
    """Ends the servers (done at exit too); the next `run_programs` starts new ones. wait_s: for calls under way; -1 = until they end."""
    if _LOCK.acquire(timeout=wait_s):
        try:
            for server in _own_servers():
                server.stop()
            _SERVERS.clear()
        finally:
            _LOCK.release()


# One pool per process. The lock keeps a server's request and reply together when several threads grade.
_LOCK = threading.Lock()
_SERVERS: list["_Server"] = []
_REQUIRED = False  # whether a server that lacks a layer may serve
_OFF: set[str] = set()  # layers that the tests leave off


class _Server:
    """One server process (with its launcher) and the socket to it. `jobs`: what it works on, with the time to give up."""

    def __init__(self, kind: str):
        self.kind = kind
        self.owner = os.getpid()
        self.missing: dict[str, str] = {}
        self.socket, theirs = socket.socketpair()
        with theirs:
            # Not `-I`: it would ignore the hash seed, and a program that iterates over a set must give the same value
            # in a resumed run. `-s -S -P` and an environment made here isolate as well.
            environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
            # LD_BIND_NOW: what the server does not call itself, every child would look up anew.
            environment |= {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LD_BIND_NOW": "1", "TZ": "UTC"}
            command = [sys.executable, "-s", "-S", "-P", str(SERVER), kind, ",".join(sorted(_OFF))]
            try:
                self.process = subprocess.Popen(
                    command + _import_folders(),
                    stdin=theirs,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the trainer, which saves first
                )
            except OSError as error:
                self.socket.close()
                raise VerifierError(f"a program server could not be started with {sys.executable}: {error}") from error
        self.socket.settimeout(GRACE_S)
        self.received = b""
        self.starting = True
        self.jobs: dict[int, float] = {}
        self.give_up = time.monotonic() + START_S

    @property
    def deadline(self) -> float:
        return self.give_up if self.starting else min(self.jobs.values(), default=math.inf)

    def send(self, requests: Sequence[tuple[int, str, float, int]]) -> None:
        """Hands over programs. OSError if the server has died or does not read."""
        now, data = time.monotonic(), []
        for request in requests:
            self.jobs[request[0]] = now + request[2] + GRACE_S
            data.append(marshal.dumps(request))
        self.socket.sendall(b"".join(struct.pack(">I", len(one)) + one for one in data))

    def receive(self) -> list[tuple[int, str, str | None, str]]:
        """The replies that are complete by now. Call when readable; EOFError or OSError if the server has died."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise EOFError("the server has ended")
        self.received += chunk
        replies, start = [], 0
        while len(self.received) >= start + 4:
            end = start + 4 + int.from_bytes(self.received[start : start + 4], "big")
            if len(self.received) < end:
                break
            number, status, value, detail = self.received[start + 4 : end].decode().split("\0")
            replies.append((int(number), status, value or None, detail))
            start = end
        self.received = self.received[start:]
        return replies

    def stop(self) -> None:
        """Ends the process at once and reaps it; its children die with it."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def _own_servers() -> list[_Server]:
    """The living pool. In a forked copy of the caller it is empty: the servers it remembers are its parent's."""
    if any(server.owner != os.getpid() for server in _SERVERS):
        _SERVERS.clear()
    return list(_SERVERS)


def _run(kind: str, requests: dict[int, tuple], workers: int) -> dict[int, ProgramResult]:
    """Runs all requests on up to `workers` servers of one kind. Holds the lock."""
    pool = [server for server in _own_servers() if server.kind == kind][:workers]
    results: dict[int, ProgramResult] = {}
    waiting = collections.deque(requests)
    # Lost with a server: from now on each of them runs alone, so that the second time it is known which one it was.
    suspects: collections.deque[int] = collections.deque()
    suspected: collections.Counter[int] = collections.Counter()  # how often each was lost alone
    deaths = 0

    def lost(server: _Server, reason: str) -> None:
        nonlocal deaths
        _discard(server)
        pool.remove(server)
        deaths += 1
        if deaths >= MAX_DEATHS * workers:
            raise VerifierError(
                f"{deaths} program servers in a row were lost, the last because {reason}; what they had to say is on "
                f"stderr. Look for a lack of memory or processes, or a Python ({sys.executable}) that does not start"
            )
        for job in server.jobs:
            suspected[job] += len(server.jobs) == 1
            if suspected[job] < 2:
                suspects.append(job)
            else:
                detail = f"verifier: lost two servers, the last because {reason}"
                results[job] = ProgramResult("error", detail=detail)

    def take(server: _Server) -> list[int]:
        """What this server is to do next: one suspect by itself, or as many others as it has room for."""
        if suspects and not server.jobs:
            return [suspects.popleft()]
        if any(job in suspected for job in server.jobs):
            return []
        # In small shares as long as there is less to do than all servers could take at once.
        share = min(WINDOW - len(server.jobs), max(1, len(waiting) // workers))
        return [waiting.popleft() for _ in range(min(share, len(waiting)))]

    try:
        while len(results) < len(requests):
            while len(pool) < min(workers, len(requests) - len(results)):
                if not _SERVERS:
                    # A thread may still be grading. Waiting for it could take minutes, and the servers end with their sockets anyway.
                    atexit.register(close, 1.0)
                pool.append(_Server(kind))
                _SERVERS.append(pool[-1])
            for server in [s for s in pool if not s.starting and len(s.jobs) <= WINDOW // 2]:
                idle, jobs = not server.jobs, take(server)
                try:
                    if jobs:
                        server.send([requests[job] for job in jobs])
                except OSError as error:
                    if idle:  # it died while idle: no fault of these programs, which keep both their tries
                        server.jobs = {}
                        waiting.extendleft(reversed(jobs))
                    lost(server, f"it could not be reached ({error})")
            for server in _ready([s for s in pool if s.jobs or s.starting]):
                try:
                    replies = server.receive()
                except (OSError, EOFError) as error:
                    lost(server, f"its connection broke ({error})")
                    continue
                for number, status, value, detail in replies:
                    if server.starting:
                        _admit(server, status, detail)
                        continue
                    results[number] = ProgramResult(status, value, detail)
                    del server.jobs[number]
                    deaths = 0
            now = time.monotonic()
            for server in [s for s in pool if now > s.deadline]:
                lost(server, "it did not answer in time")
    finally:
        # Only an exception (VerifierError, Ctrl-C) leaves busy ones: no late reply may meet the next call's program.
        for server in [s for s in pool if s.jobs]:
            _discard(server)
    return results


def _admit(server: _Server, status: str, detail: str) -> None:
    """The server's first message: it is ready, under the layers that it could get. VerifierError if it cannot serve."""
    server.missing = dict(line.split("=", 1) for line in detail.split("\n") if line)
    if status == "ready" and not (_REQUIRED and server.missing):
        server.starting = False
        return
    _discard(server)
    if status == "ready":
        raise VerifierError(_missing_text(server.missing))
    raise VerifierError(f"a program server could not start: {detail}")


def layers() -> dict[str, str]:
    """What holds generated programs here: for each layer of `sandbox.LAYERS` "", or why it is missing. Starts a server."""
    with _LOCK:
        _run("plain", {0: (0, "", 10.0, 64)}, 1)
        missing = next(server.missing for server in _own_servers() if server.kind == "plain")
    return {name: missing.get(name, "") for name in LAYERS}


def use_sandbox(how: str) -> None:
    """Config `verifier.sandbox`. "auto": what the system offers, with a warning where that is little; "require": all
    layers, else InputError, which names those that are missing; servers that start later are held to it too.
    """
    global _REQUIRED
    missing = {name: reason for name, reason in layers().items() if reason}
    if how == "require" and missing:
        raise InputError(f'config.verifier.sandbox="require": {_missing_text(missing)}; "auto" runs with what there is')
    if how == "auto" and sys.platform != "linux":
        warnings.warn("generated programs run under resource limits only: this system has no sandbox", stacklevel=2)
    _REQUIRED = how == "require"


def _missing_text(missing: dict[str, str]) -> str:
    return "missing layers: " + ", ".join(f"{name} ({reason})" for name, reason in missing.items())


def _discard(server: _Server) -> None:
    server.stop()
    _SERVERS.remove(server)


def _ready(busy: list[_Server]) -> list[_Server]:
    """The servers with something to read, waiting for one at most until the nearest deadline."""
    if not busy:
        return []
    by_fd = {server.socket.fileno(): server for server in busy}
    poller = select.poll()
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    left = min(server.deadline for server in busy) - time.monotonic()
    return [by_fd[fd] for fd, _ in poller.poll(1000 * min(max(left, 0.001), MAX_POLL_S))]


@functools.cache
def _import_folders() -> list[str]:
    """What programs may import from: the interpreter's own folders, and those of sympy; not the caller's working tree."""
    prefixes = tuple(os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix, sys.exec_prefix))
    folders = [p for p in sys.path if p and (os.path.realpath(p) + os.sep).startswith(prefixes)]
    specs = [importlib.util.find_spec(name) for name in ("sympy", "mpmath", "numpy", "scipy", "pyseccomp")]
    folders += [
        str(pathlib.Path(spec.origin).parents[1 if spec.submodule_search_locations else 0])
        for spec in specs
        if spec and spec.origin
    ]
    return list(dict.fromkeys(folders))


@commands.command(unread=1)
def main(argv: list[str]) -> int:
    """The layers that stand between model-written programs and this machine.

        python -m reft_jax.rewards.program --check

    --check: a line for each. Exit codes: 0 all are in force, 1 one is missing, 2 bad arguments.
    """
    commands.parse(argv, inspect.cleandoc(main.__doc__), {"--check": commands.Flag(None, needed=True, bare=True)})
    found = layers()
    for name, reason in found.items():
        print(f"{'no ' if reason else 'yes'}  {name:<13} {LAYERS[name]}" + (f": {reason}" if reason else ""))
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
