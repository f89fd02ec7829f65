"""The process that runs generated programs: started by `program.py`, forks one child per program, kills it in time.

Run as a script only (`python -s -P program_server.py plain|sympy [DIR ...]`), with the caller's socket as standard
input; it is never imported. It has warmed up what programs use, so that a fork is all that one costs. There are two
kinds, because a fork costs more the more the process holds: about 1 ms without sympy, 3 ms with it. A child runs in
its own session under resource limits, with standard streams on /dev/null and an audit hook that refuses files, network
and processes. Its result comes over a pipe behind a random token; whatever else it writes there, prints or exits with
is not a result. At the deadline its process group gets SIGKILL, which no program can catch.

What this is: protection of training from what a language model writes (endless loops, memory, `os._exit`, stray
files). What it is not: a security boundary against someone who studies it. An audit hook lives in the process it
watches, and code with that aim can get around it; run models that you do not trust inside a container. Needs a POSIX
system. Elsewhere than on Linux there is no memory limit, and a killed server may leave a sleeping child behind.

Messages both ways are a 4-byte big-endian length and JSON. Request: source, timeout_s, memory_mb. Reply: status,
value, detail.
"""

import builtins
import ctypes
import functools
import gc
import importlib
import json
import math
import os
import pathlib
import random
import resource
import select
import signal
import struct
import sys
import time
import types
from typing import NamedTuple, NoReturn

RESULT_FD = 3
MAX_RESULT = 4000  # bytes; below PIPE_BUF, so that a result is written whole or not at all
MAX_STRING = 256  # characters of an answer that is a string
FILENAME = "<program>"  # in tracebacks
STATUSES = ("ok", "error", "memory", "blocked", "no_answer", "verifier")
ORPHAN_CHECK_S = 5.0
MAX_POLL_S = 1e5  # poll() counts milliseconds in a C int
# Audit events by the part before the first dot (docs.python.org/3/library/audit_events.html): all of these are refused.
REFUSED_EVENTS = frozenset(
    "os subprocess pty socket shutil tempfile glob ctypes fcntl resource signal syslog webbrowser urllib http ftplib "
    "smtplib poplib imaplib nntplib telnetlib sqlite3 dbm cpython gc".split()
)
ALLOWED_EVENTS = frozenset({"os.putenv", "os.unsetenv"})
# A new interpreter would start without the hook; the others fork, write or test without an event.
REFUSED_MODULES = frozenset(
    "_xxsubinterpreters _interpreters _posixsubprocess readline _testcapi _testinternalcapi".split()
)
# Calls that raise no event and reach beyond the child (or, as setuid, undo the order to die with the server).
REFUSED_CALLS = {
    "os": "mkfifo mknod chroot sync memfd_create openpty pidfd_open nice setpriority sched_setaffinity "
    "sched_setscheduler setuid setgid seteuid setegid setreuid setregid setresuid setresgid setgroups initgroups "
    "copy_file_range sendfile".split(),
    "signal": ["pidfd_send_signal"],
    "subprocess": ["_fork_exec"],
    "_posixsubprocess": ["fork_exec"],
}


def import_roots(extra: list[str]) -> list[str]:
    """The folders that programs may import from: the interpreter's own, and `extra`; not the caller's working tree."""
    prefixes = tuple(os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix, sys.exec_prefix))
    roots = [p for p in sys.path if (os.path.realpath(p) + os.sep).startswith(prefixes)]
    return roots + [p for p in extra if p not in roots]


def disarm(refused: list[str]) -> None:
    """Replaces what the audit hook would not see, and makes `sys.exit` harmless, as in the authors' runs."""
    for name, calls in REFUSED_CALLS.items():
        for module in map(importlib.import_module, ("os", "posix") if name == "os" else (name,)):
            for call in calls:
                if hasattr(module, call):  # they differ between systems and Python versions
                    setattr(module, call, functools.partial(refuse, refused, call))
    sys.exit = builtins.exit = builtins.quit = lambda *args: None


def refuse(refused: list[str], event: str, *args: object, **kwargs: object) -> NoReturn:
    """Raises PermissionError, and notes the first attempt: the status is "blocked" whatever the program does next."""
    if not refused:
        refused.append(event)
    raise PermissionError(f"a generated program may not do this: {event}")


def warm_up(kind: str) -> dict:
    """Does once what each child would otherwise do again; returns the names that are in scope for a program."""
    # The compiler's first run touches 200 fresh pages: 1.5 ms, more than the rest of a small program's cost.
    names = {"math": math}
    source = "def solution():\n    total = [2.5 * i for i in range(3)]\n    return f'{sum(total)}'"
    exec(compile(source, "<warm>", "exec"), {})
    if kind == "sympy":
        import sympy
        import sympy.core.random

        # The first use of the solver imports and caches about 0.3 s worth of code.
        x, y = sympy.symbols("x y")
        sympy.solve(x**2 - 3 * x + 2, x)
        sympy.solve([x + y - 3, x - y - 1], [x, y])
        float(sympy.simplify(sympy.Rational(1, 3) + sympy.sqrt(2)).evalf())
        sympy.core.random.seed(0)
        names["sympy"] = sympy
    return names


class Template(NamedTuple):
    """What the server made once and every child inherits."""

    pid: int
    libc: ctypes.CDLL | None  # for prctl; None elsewhere than on Linux
    mapped: int  # bytes of address space in use before a program runs
    names: dict  # in scope for a program
    refused: list[str]  # empty; a child notes here what it was refused first
    roots: tuple[str, ...]  # folders to import from, each ending in "/"
    null: int  # file descriptor of /dev/null


# ---- in the child ----------------------------------------------------------------------------------------------------


def render(value: object) -> str | None:
    """The answer as text (an int exactly, another real number as repr(float)); None for what is no answer.

    No answer: None, truth values, complex, NaN, infinities, numbers beyond float, containers, empty or long text.
    """
    if isinstance(value, bool | bytes | bytearray):
        return None
    if isinstance(value, str):
        text = str.strip(value)  # not a subclass's own
        return text if 0 < len(text) <= MAX_STRING and text.isprintable() else None
    if not (hasattr(type(value), "__float__") or isinstance(value, int)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int.__repr__(value) if isinstance(value, int) else repr(number)


def describe(error: BaseException) -> str:
    """The error's type and the program's line, as far as they can be told."""
    name = type(error).__name__
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return (name if name.isidentifier() else "error")[:80] + (f" at line {line}" if isinstance(line, int) else "")


def make_hook(roots: tuple[str, ...], refused: list[str]):
    """The audit hook: refuses files, network and processes; reading below `roots` is allowed, for imports."""

    def within(path: object) -> bool:
        path = os.fsdecode(path) if isinstance(path, bytes) else path
        return isinstance(path, str) and (path + "/").startswith(roots) and "/../" not in path

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, mode, flags = args
            reading = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND) == 0
            # The compiler looks for a file of the program's name when it reports a syntax error; there is none.
            allowed = reading and (within(path) or path == FILENAME)
        elif event == "os.listdir" or event == "os.scandir":
            allowed = within(args[0])
        elif event == "import":
            allowed = args[0] not in REFUSED_MODULES
        else:
            allowed = event.partition(".")[0] not in REFUSED_EVENTS or event in ALLOWED_EVENTS
        if not allowed:
            refuse(refused, event)

    return hook


def limit(which: int, soft: int, hard: int) -> None:
    """Lowers a resource limit; a limit that is lower already stays."""
    ceiling = resource.getrlimit(which)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))


def confine(request: dict, template: Template) -> None:
    """Puts this child into its own session, under its limits; an error if the system refuses one of them."""
    os.setsid()
    if template.libc is not None:
        template.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: dies with the server
        template.libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if os.getppid() != template.pid:
            os._exit(1)  # it died before the line above
        # On top of what the interpreter has mapped, so that the figure means the program's own memory.
        size = template.mapped + request["memory_mb"] * 2**20
        limit(resource.RLIMIT_AS, size, size)
    seconds = math.ceil(request["timeout_s"]) + 1
    limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    limit(resource.RLIMIT_FSIZE, 0, 0)
    limit(resource.RLIMIT_CORE, 0, 0)
    limit(resource.RLIMIT_NOFILE, 64, 64)
    limit(resource.RLIMIT_NPROC, 0, 0)  # the kernel does not apply it to root; the hook refuses forks there


def child(request: dict, template: Template, token: bytes) -> None:
    """Runs one program and writes its result to RESULT_FD. Never returns."""
    # Taken now, because a program may replace them in their modules.
    write, leave, dumps, refused = os.write, os._exit, json.dumps, template.refused
    memory_result = token + dumps({"status": "memory", "value": None, "detail": "MemoryError"}).encode()

    def finish(status: str, value: str | None = None, detail: str = "") -> None:
        write(RESULT_FD, token + dumps({"status": status, "value": value, "detail": detail}).encode())
        leave(0)

    try:
        confine(request, template)
    except (OSError, ValueError, OverflowError) as error:
        finish("verifier", detail=f"could not set limits: {error}")
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    module.__dict__.update(template.names)
    sys.addaudithook(make_hook(template.roots, refused))
    # After the fork, which seeds anew: a program gives the same value on every server and in a resumed run.
    random.seed(0)
    gc.enable()
    try:
        exec(compile(request["source"], FILENAME, "exec"), module.__dict__)
        if "solution" not in module.__dict__:
            finish("error", detail="the program defines no solution()")
        value = render(module.__dict__["solution"]())
        if refused:
            finish("blocked", detail=refused[0])
        finish("ok" if value is not None else "no_answer", value)
    except MemoryError:
        write(RESULT_FD, memory_result)  # made beforehand: there may be no memory left to make one
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: whatever the program raises is its result
        finish("blocked" if refused else "error", detail=refused[0] if refused else describe(error))
    finally:
        leave(0)


# ---- in the server ---------------------------------------------------------------------------------------------------


def supervise(request: dict, template: Template) -> dict | None:
    """Forks a child for one program and waits for its result or its deadline; None if the caller has gone."""
    token = os.urandom(16)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for fd in (0, 1, 2):
                os.dup2(template.null, fd)
            os.dup2(writer, RESULT_FD)
            os.closerange(RESULT_FD + 1, 256)
            child(request, template, token)
        finally:
            os._exit(1)
    os.close(writer)
    deadline = time.monotonic() + request["timeout_s"]
    received, reply = b"", None
    try:
        poller = select.poll()
        poller.register(0, select.POLLIN)
        poller.register(reader, select.POLLIN)
        while reply is None:
            left = deadline - time.monotonic()
            ready = [fd for fd, _ in poller.poll(1000 * min(max(left, 0.0), MAX_POLL_S))]
            if 0 in ready:  # nothing is sent while a program runs: this is the end of the caller
                return None
            if reader in ready:
                chunk = os.read(reader, MAX_RESULT + 1)
                received += chunk
                reply = parse_result(received, token)
                if reply is None and len(received) > MAX_RESULT:
                    reply = failure("error", "wrote to its result channel")
                if reply is None and not chunk:
                    reply = explain_exit(pid)
            elif left <= 0:
                reply = failure("timeout", f"no result after {request['timeout_s']:g} s")
    finally:
        os.close(reader)
        kill(pid)
    return reply


def failure(status: str, detail: str) -> dict:
    return {"status": status, "value": None, "detail": detail}


def parse_result(received: bytes, token: bytes) -> dict | None:
    """The child's result once it is complete and bears the token; None otherwise."""
    if not received.startswith(token):
        return None
    try:
        reply = json.loads(received[len(token) :])
    except ValueError:
        return None
    if not isinstance(reply, dict) or set(reply) != {"status", "value", "detail"} or reply["status"] not in STATUSES:
        return None
    if not isinstance(reply["detail"], str) or not isinstance(reply["value"], str | None):
        return None
    if reply["status"] == "verifier":
        return failure("error", f"verifier: {reply['detail']}")
    return reply | {"detail": reply["detail"].removeprefix("verifier:")}


def explain_exit(pid: int) -> dict:
    """Why a child ended without a result. It closed its end of the pipe; a moment passes until it can be waited for."""
    give_up = time.monotonic() + 0.1
    while True:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is not None:
            break
        if time.monotonic() > give_up:
            return failure("error", "closed its result channel")
        time.sleep(0.001)
    if info.si_code == os.CLD_EXITED:
        return failure("error", f"left with exit code {info.si_status} before it had a result")
    if info.si_status == signal.SIGXCPU:
        return failure("timeout", "used up its processor time")
    if info.si_status == signal.SIGKILL:
        return failure("memory", "killed by the system")
    names = {known.value: known.name for known in signal.Signals}  # the real-time signals have none
    return failure("error", f"killed by {names.get(info.si_status, info.si_status)}")


def kill(pid: int) -> None:
    """Ends a child and its session's process group, and reaps it."""
    for send in (os.kill, os.killpg):
        try:
            send(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # gone already, or it had no time to make its own group
    os.waitpid(pid, 0)


def read_message(caller: int) -> dict | None:
    """The next request; None at the end of the caller, which shows as end of file or as another parent process."""
    data, wanted = b"", 4
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while len(data) < wanted:
        if not poller.poll(ORPHAN_CHECK_S * 1000):
            if os.getppid() != caller:
                return None
            continue
        chunk = os.read(0, wanted - len(data))
        if not chunk:
            return None
        data += chunk
        if len(data) == 4 == wanted:
            wanted += struct.unpack(">I", data)[0]
    return json.loads(data[4:])


def write_message(message: dict) -> None:
    data = json.dumps(message).encode()
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[os.write(0, data) :]


def main(kind: str, extra: list[str]) -> None:
    """Serves requests until the caller ends."""
    caller = os.getppid()
    os.chdir("/")
    sys.dont_write_bytecode = True
    sys.path[:] = import_roots(extra)
    roots = tuple(os.path.join(form(p), "") for p in sys.path for form in (os.path.abspath, os.path.realpath))
    try:
        names = warm_up(kind)
    except ImportError as error:
        write_message(failure("not_ready", f"{type(error).__name__}: {error}"))
        return
    refused = []
    disarm(refused)
    linux = sys.platform == "linux"
    gc.collect()
    gc.disable()
    gc.freeze()  # what is here now is never collected, so that children share its pages
    template = Template(
        pid=os.getpid(),
        libc=ctypes.CDLL(None) if linux else None,
        mapped=int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if linux else 0,
        names=names,
        refused=refused,
        roots=roots,
        null=os.open(os.devnull, os.O_RDWR),
    )
    write_message(failure("ready", ""))
    while (request := read_message(caller)) is not None:
        reply = supervise(request, template)
        if reply is None:
            return
        write_message(reply)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
