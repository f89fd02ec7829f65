"""Runs generated programs in separate, killable processes: `run_programs`.

The caller holds a pool of small server processes (`program_server.py`, one per worker) for the life of its own process.
A server forks one child per program; the caller, which has JAX's threads, is never forked and runs no generated code.
Servers end when their socket does, so also when the caller is killed. A server that dies or hangs is replaced and its
one program is run again, once. Programs are the P-CoT of ReFT (arXiv 2401.08967, section 3); as there, `math` and
`sympy` are in scope and `sys.exit` is harmless.

What the sandbox does and does not promise is written in `program_server.py`.
"""

import atexit
import collections
import dataclasses
import importlib.util
import json
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
from collections.abc import Sequence

from reft_jax.errors import InputError, RunError

SERVER = pathlib.Path(__file__).with_name("program_server.py")
START_S = 120.0  # to import sympy on a machine that is busy compiling
GRACE_S = 10.0  # beyond a program's own deadline, which its server enforces
MAX_POLL_S = 1e5  # poll() counts milliseconds in a C int
MAX_DEATHS = 8  # servers lost in a row, per worker, before the cause is taken to be this machine and not a program
MAX_SOURCE = 1_000_000  # characters


class VerifierError(RunError):
    """Programs cannot be run here for a reason that is not theirs; grading them would score right answers as wrong."""


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

    `timeout_s`: wall-clock seconds per program; `memory_mb`: MiB of address space beyond the interpreter's; `workers`:
    programs at a time (0 = one per processor). `math` and `sympy` are in scope. Calls from several threads take turns.
    Bad settings raise InputError; VerifierError if no server can be kept alive.
    """
    if not (isinstance(timeout_s, int | float) and math.isfinite(timeout_s) and timeout_s > 0):
        raise InputError(f"timeout_s={timeout_s!r}: seconds per program must be a positive number, for instance 2.0")
    if not (isinstance(memory_mb, int) and memory_mb >= 16):
        raise InputError(f"memory_mb={memory_mb!r}: MiB per program must be a whole number from 16, for instance 512")
    if not (isinstance(workers, int) and workers >= 0):
        raise InputError(f"workers={workers!r}: must be a whole number, 0 (one per processor) or more")
    results: dict[int, ProgramResult] = {}
    jobs: dict[str, list[tuple[int, dict]]] = {"plain": [], "sympy": []}
    for i, program in enumerate(programs):
        if len(program) > MAX_SOURCE:
            results[i] = ProgramResult("error", detail=f"longer than {MAX_SOURCE} characters")
        else:
            # A program that does not hold the word has no use for the larger, slower server.
            request = {"source": program, "timeout_s": float(timeout_s), "memory_mb": memory_mb}
            jobs["sympy" if "sympy" in program else "plain"].append((i, request))
    with _LOCK:
        for kind, requests in jobs.items():
            results |= _run(kind, dict(requests), workers or num_processors())
    return [results[i] for i in range(len(programs))]


def num_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def close() -> None:
    """Ends the servers (done at exit too); the next `run_programs` starts new ones."""
    with _LOCK:
        for server in _own_servers():
            server.stop()
        _SERVERS.clear()


def _close_at_exit() -> None:
    # A thread may still be grading. Waiting for it could take minutes, and the servers end with their sockets anyway.
    if _LOCK.acquire(timeout=1.0):
        for server in _own_servers():
            server.stop()
        _SERVERS.clear()
        _LOCK.release()


# One pool per process. The lock keeps a server's request and reply together when several threads grade.
_LOCK = threading.Lock()
_SERVERS: list["_Server"] = []


class _Server:
    """One server process and the socket to it. `job` is the index of its program, STARTING, or None when idle."""

    STARTING = -1

    def __init__(self, kind: str):
        self.kind = kind
        self.owner = os.getpid()
        self.socket, theirs = socket.socketpair()
        with theirs:
            # Not `-I`: it would ignore the hash seed, and a program that iterates over a set must give the same value
            # in a resumed run. `-s -P` and an environment made here isolate as well.
            environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
            environment |= {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-s", "-P", str(SERVER), kind, *_package_folders("sympy", "mpmath")],
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
        self.job: int | None = self.STARTING
        self.deadline = time.monotonic() + START_S

    def send(self, job: int, request: dict) -> None:
        """Hands over one program. OSError if the server has died or does not read."""
        self.job, self.deadline = job, time.monotonic() + request["timeout_s"] + GRACE_S
        data = json.dumps(request).encode()
        self.socket.sendall(struct.pack(">I", len(data)) + data)

    def receive(self) -> dict | None:
        """The reply if it is complete by now. Call when readable; EOFError or OSError if the server has died."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise EOFError("the server has ended")
        self.received += chunk
        if len(self.received) < 4 or len(self.received) < 4 + (size := struct.unpack(">I", self.received[:4])[0]):
            return None
        reply, self.received = json.loads(self.received[4 : 4 + size]), self.received[4 + size :]
        return reply

    def stop(self) -> None:
        """Ends the process at once and reaps it; its child dies with it."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def _own_servers() -> list[_Server]:
    """The living pool. In a forked copy of the caller it is empty: the servers it remembers are its parent's."""
    if any(server.owner != os.getpid() for server in _SERVERS):
        _SERVERS.clear()
    return list(_SERVERS)


def _run(kind: str, requests: dict[int, dict], workers: int) -> dict[int, ProgramResult]:
    """Runs all requests on up to `workers` servers of one kind. Holds the lock."""
    pool = [server for server in _own_servers() if server.kind == kind][:workers]
    results: dict[int, ProgramResult] = {}
    waiting = collections.deque(requests)
    tries, deaths = collections.Counter(), 0

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
        if server.job in requests:
            tries[server.job] += 1
            if tries[server.job] < 2:
                waiting.appendleft(server.job)
            else:
                detail = f"verifier: lost two servers, the last because {reason}"
                results[server.job] = ProgramResult("error", detail=detail)

    try:
        while len(results) < len(requests):
            while len(pool) < min(workers, len(requests) - len(results)):
                if not _SERVERS:
                    atexit.register(_close_at_exit)
                pool.append(_Server(kind))
                _SERVERS.append(pool[-1])
            for server in [s for s in pool if s.job is None][: len(waiting)]:
                job = waiting.popleft()
                try:
                    server.send(job, requests[job])
                except OSError as error:
                    # It died while idle: no fault of this program, which keeps both its tries.
                    waiting.appendleft(job)
                    server.job = None
                    lost(server, f"it could not be reached ({error})")
            for server in _ready([s for s in pool if s.job is not None]):
                try:
                    reply = server.receive()
                except (OSError, EOFError) as error:
                    lost(server, f"its connection broke ({error})")
                    continue
                if reply is None:
                    continue
                if server.job == _Server.STARTING and reply["status"] != "ready":
                    _discard(server)
                    pool.remove(server)
                    raise VerifierError(f"a program server could not start: {reply['detail']}")
                if server.job != _Server.STARTING:
                    results[server.job] = ProgramResult(reply["status"], reply["value"], reply["detail"])
                    deaths = 0
                server.job = None
            now = time.monotonic()
            for server in [s for s in pool if s.job is not None and now > s.deadline]:
                lost(server, "it did not answer in time")
    finally:
        # Only an exception (VerifierError, Ctrl-C) leaves busy ones: no late reply may meet the next call's program.
        for server in [s for s in pool if s.job in requests]:
            _discard(server)
    return results


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


def _package_folders(*names: str) -> list[str]:
    """Where the caller finds these packages: a server ignores PYTHONPATH and the user's folders, yet needs the same."""
    specs = [importlib.util.find_spec(name) for name in names]
    return list(dict.fromkeys(str(pathlib.Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin))
