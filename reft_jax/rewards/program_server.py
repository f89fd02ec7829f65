"""The process that runs generated programs: started by `program.py`, makes one child per program, kills it in time.

Run as a script only (`python -s -S -P program_server.py KIND WITHOUT FOLDER ...`), with the caller's socket as standard input;
the package never imports it. What starts is a launcher: it enters namespaces, makes the filters and then starts the server,
whose memory is kept small because its size is what a fork costs: .14 us for each of its pages, so it imports this file, as
compiling it would leave 1.5 MB behind, and `_signal` for `signal`, which needs enum and all that stands behind it. KIND names
the libraries that it holds ready (PRELOADED). On Linux children are copies of a process that the server starts first and that does nothing else
(`sandbox.Mould`): a program finds the same memory whatever ran before it, and nothing of the others. A child runs under
the layers of `sandbox.py`, with standard streams on /dev/null and an audit hook that names and refuses files, network
and processes. Its result comes over a pipe behind a random token and is checked again here; whatever else it writes
there, prints or exits with is not a result. At the deadline its process group gets SIGKILL, which no program can catch.

Several children may run at once, so that programs without end do not hold up the others: up to YOUNG that have not yet
taken SLOW_S, and SLOTS in all; those that compute for longer than HEAVY_S go on at lower priority. So at most SLOTS * memory_mb is in use per server.

What a child can still do: use its time and memory, see the files of the interpreter, and, if it knows this code well,
send any result that it could as well have returned. A fault of the kernel, or of the interpreter together with one of
the kernel, is what it takes to get out where all layers are in force; `python -m reft_jax.rewards.program --check`
tells which are. Elsewhere than on Linux there are resource limits (no memory limit) and the audit hook, which stops
accidents but not intent. WITHOUT names layers that are left off, for the tests.

Messages to the server are a 4-byte big-endian length and marshal of (number, source, timeout_s, memory_mb); replies are
a length and UTF-8 text: number, status, value and detail, with a zero character between them.
"""

import marshal
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sandbox  # noqa: E402

del sys.path[0]

START = "import sys; sys.path.insert(0, sys.argv[1]); import program_server; program_server.serve(*sys.argv[2:])"
RESULT_FD, CALLER_FD = 3, 4
PAGE = 4096
MAX_RESULT = 4000  # bytes; below PIPE_BUF, so that a result is written whole or not at all
MAX_COMPILED, COMPILE_S = 4000, 0.002  # characters of a program that the server compiles; time for several in one go
MAX_STRING = 256  # characters of an answer that is a string
MAX_DIGITS = 309  # of an int: beyond this float() overflows
FILENAME = "<program>"  # in tracebacks
STATUSES = ("ok", "error", "memory", "blocked", "no_answer")
ORPHAN_CHECK_S = 2.0
MAX_POLL_S = 1e5  # poll() counts milliseconds in a C int
SLOTS, YOUNG, SLOW_S = 12, 2, 0.02
HEAVY_S, HEAVY_NICE = 0.03, 10  # processor time, after which a program makes way for others
FORK_TRIES, FORK_WAIT_S = 20, 0.05
# What the servers of each kind import before they serve: what takes a program's time or asks for what a child may not have.
NUMPY = ("numpy", "numpy.random", "numpy.polynomial")
SYMPY = ("random", "sympy", "sympy.core.random")
SCIPY = (
    "scipy.constants",
    "scipy.signal",
    "scipy.sparse",
    "scipy.special",
    "scipy.stats",
)  # which import nearly all others
PRELOADED = {"plain": (), "sympy": SYMPY, "numpy": NUMPY, "scipy": (*NUMPY, *SCIPY), "all": (*SYMPY, *NUMPY, *SCIPY)}
# A library with threads of its own starts one per processor otherwise. In C's environment only: `os.environ` is empty.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# What every clock shows at first: 2024-01-01, 00:00 UTC. Each look at one finds it 1 ms later, and so do sleeps by what they take.
NOW_NS, LOOK_NS = 1_704_067_200 * 10**9, 10**6
# Audit events by the part before the first dot (docs.python.org/3/library/audit_events.html): all of these are refused.
REFUSED_EVENTS = frozenset(
    "os subprocess pty socket shutil tempfile glob ctypes fcntl resource signal syslog webbrowser urllib http ftplib "
    "smtplib poplib imaplib nntplib telnetlib sqlite3 dbm cpython gc".split()
)
ALLOWED_EVENTS = frozenset({"os.putenv", "os.unsetenv"})
# A new interpreter would start without the hook; the others fork, write, test or debug without an event.
REFUSED_MODULES = frozenset(
    "_xxsubinterpreters _interpreters readline _testcapi _testinternalcapi ctypes _ctypes faulthandler sandbox "
    "program_server".split()
)
# Calls that raise no event and reach beyond the child, or tell what differs from run to run.
REFUSED_CALLS = (
    "times getloadavg sysconf mkfifo mknod chroot sync memfd_create openpty pidfd_open nice setpriority sched_setaffinity sched_setscheduler "
    "setuid setgid seteuid setegid setreuid setregid setresuid setresgid setgroups initgroups copy_file_range sendfile"
).split()


# ---- in the launcher -------------------------------------------------------------------------------------------------


def launch(kind: str, without: str, folders: list[str]) -> None:
    """Enters namespaces, starts the server in them and waits for its end, or for that of the caller."""
    import signal

    caller, off = os.getppid(), without.split(",")
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, folder)
    import program_server  # noqa: F401  # compiles it: the first server would have another memory than those that find it so

    sys.path[:1] = folders  # for pyseccomp
    filters, missing = ["", ""], {}
    try:
        if "seccomp" not in off:
            filters = [code.hex() for code in sandbox.build_filters()]
    except (ImportError, OSError, RuntimeError) as error:
        missing["seccomp"] = f"{type(error).__name__}: {error} (pip install pyseccomp; it needs libseccomp.so.2)"
    for name in sandbox.NAMESPACES:
        try:
            if name not in off:
                sandbox.enter_namespace(name)
        except OSError as error:
            missing[name] = str(error)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        sandbox.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: dies with the launcher
        notes = "\n".join(f"{name}={reason}" for name, reason in missing.items())
        pid_namespace = "" if "pid" in missing or "pid" in off else "pid"
        arguments = [kind, without, *filters, notes, pid_namespace, *folders]
        sandbox.fix_addresses()
        os.execv(sys.executable, [sys.executable, "-s", "-S", "-P", "-W", "ignore", "-c", START, folder, *arguments])
    os.dup2(2, 0)  # the caller's socket is the server's now
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if os.getppid() != caller:
            os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, ORPHAN_CHECK_S)


# ---- in the server, before it serves ---------------------------------------------------------------------------------


def refuse(refused: list[str], event: str, *args: object, **kwargs: object):
    """Raises PermissionError, and notes the first attempt: the status is "blocked" whatever the program does next."""
    if not refused:
        refused.append(event)
    raise PermissionError(f"a generated program may not do this: {event}")


def disarm(refused: list[str]) -> None:
    """Replaces what the audit hook would not see, and makes `sys.exit` harmless, as in the authors' runs."""
    import _signal
    import builtins
    import posix
    import resource

    def refusing(name: str):
        return lambda *args, **kwargs: refuse(refused, name)

    for module in (os, posix):
        for name in REFUSED_CALLS:
            if hasattr(module, name):  # they differ between systems and Python versions
                setattr(module, name, refusing(name))
    _signal.pidfd_send_signal = refusing("pidfd_send_signal")
    resource.getrusage = refusing("getrusage")
    forker = type(sys)("_posixsubprocess")
    forker.fork_exec = refusing("fork_exec")
    sys.modules["_posixsubprocess"] = forker
    # numpy and scipy look it up, scipy whenever it is given a function; what ctypes itself may do, the hook decides.
    for name in REFUSED_MODULES - ({"ctypes", "_ctypes"} if "numpy" in sys.modules else set()):
        sys.modules.pop(name, None)
    sys.exit = builtins.exit = builtins.quit = lambda *args: None


def repeat() -> None:
    """Makes a program's value the same in every run and on every machine: clocks, chance, processes and processors."""
    import _datetime
    import _random
    import _thread
    import builtins
    import gc
    import posix
    import time

    now, draws, asked = [NOW_NS], [0], {}

    def look_ns() -> int:
        now[0] += LOOK_NS
        return now[0]

    def look() -> float:
        return look_ns() / 1e9

    def sleep(seconds: float, sleep=time.sleep) -> None:
        sleep(seconds)
        now[0] += int(seconds * 1e9)

    def urandom(size: int, flags: int = 0) -> bytes:
        draws[0] += 1
        numbers = (hash(b"%d %d" % (draws[0], i)) for i in range(-(-size // 8)))  # SipHash with a key of zeros
        return b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)[:size]

    def number_of(thing: object, /, address=id) -> int:
        """Like id(), by the order in which things are asked for. They are kept, so that no address is used twice."""
        return asked.setdefault(address(thing), (2**44 + 16 * len(asked), thing))[0]

    class Random(_random.Random):
        """Without a seed the system would be asked for one."""

        def __new__(cls, *args, **kwargs):
            return super().__new__(cls, 0)

        def __init__(self, seed=None):
            self.seed(seed)

        def seed(self, seed=None):
            super().seed(0 if seed is None else seed)

    for clock in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        setattr(time, clock, look)
        setattr(time, f"{clock}_ns", look_ns)
    time.clock_gettime, time.clock_gettime_ns = lambda which: look(), lambda which: look_ns()
    now_if_none = {name: getattr(time, name) for name in ("localtime", "gmtime", "ctime", "asctime", "strftime")}
    time.localtime, time.gmtime, time.ctime = (
        lambda seconds=None, convert=now_if_none[name]: convert(look() if seconds is None else seconds)
        for name in ("localtime", "gmtime", "ctime")
    )
    time.asctime, time.strftime = (
        lambda *args, convert=now_if_none[name], most=most: convert(*args, *[time.localtime()] * (len(args) < most))
        for name, most in (("asctime", 1), ("strftime", 2))
    )
    time.sleep = sleep
    # The methods of a type in C can only be replaced in its own table.
    (table,) = gc.get_referents(_datetime.datetime.__dict__)
    table["now"] = classmethod(lambda cls, tz=None: cls.fromtimestamp(look(), tz))
    table["utcnow"] = classmethod(lambda cls: cls.utcfromtimestamp(look()))
    sandbox.ctypes.pythonapi.PyType_Modified(sandbox.ctypes.py_object(_datetime.datetime))
    _random.Random, builtins.id, _thread.get_native_id = Random, number_of, lambda: 1000
    same = {"urandom": urandom, "getrandom": urandom, "getpid": lambda: 1000, "cpu_count": lambda: 1}
    same |= {"process_cpu_count": lambda: 1, "sched_getaffinity": lambda pid: {0}}
    for module in (os, posix):
        for name in set(same) & set(dir(module)):
            setattr(module, name, same[name])
    # Of libraries that ask the system for time and chance themselves, or a server for users; Python's own code takes their place.
    sys.modules |= dict.fromkeys(("_uuid", "pwd", "grp"))
    sys.argv[:] = sys.orig_argv[:] = [""]


def warm_up(kind: str) -> dict:
    """Does once what each child would otherwise do again; returns the names that are in scope for a program."""
    import math

    # The compiler's first run touches many fresh pages: more than the rest of a small program's cost.
    names = {"math": math}
    source = "def solution():\n    total = [2.5 * i for i in range(3)]\n    return f'{sum(total)}'"
    exec(compile(source, "<warm>", "exec"), {})
    for variable in ONE_THREAD:
        os.putenv(variable, "1")
    register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
    for library in PRELOADED[kind]:
        __import__(library)  # random's own hook would seed every child anew
    os.register_at_fork = register
    loaded = sys.modules
    if "sympy" in PRELOADED[kind]:
        names["sympy"] = sympy = loaded["sympy"]
        # The first use of the solver imports and caches about 0.3 s worth of code.
        x, y = sympy.symbols("x y")
        sympy.solve(x**2 - 3 * x + 2, x)
        sympy.solve([x + y - 3, x - y - 1], [x, y])
        float(sympy.simplify(sympy.Rational(1, 3) + sympy.sqrt(2)).evalf())
        if kind == "all":
            sympy.lambdify(x, sympy.sqrt(x) * 7 - 5)(4.0)  # collects the names of numpy and scipy
        sympy.core.random.seed(0)
    if "numpy" in PRELOADED[kind]:
        loaded["numpy"].random.seed(0)
    if "random" in loaded:
        loaded["random"].seed(0)
    return names


def compiled(source: str) -> bytes | str:
    """The code of a short program, compiled here because a child would pay for it in fresh pages; else `source`."""
    try:
        # Later versions write what else this process holds into it.
        return marshal.dumps(compile(source, FILENAME, "exec"), 2)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return source  # the child meets the same and reports it


# ---- in the child ----------------------------------------------------------------------------------------------------


_TABLE, _BASES, _MODULE = (type.__dict__[name].__get__ for name in ("__dict__", "__mro__", "__module__"))


def render(value: object) -> str | None:
    """The answer as text: an int exactly, another real number as repr(float), a short printable string; or None.

    Numbers are those of Python, fractions, decimal, numpy (an array of one too) and sympy; integers exactly. No code of a
    program's own class is called. No answer: None, truth values, complex, NaN, infinities, what float cannot hold, containers.
    """
    kind = type(value)
    if kind is float:
        return float.__repr__(value) if value - value == 0 else None
    if issubclass(kind, str):
        text = str.strip(value)  # not a subclass's own
        return text if 0 < len(text) <= MAX_STRING and text.isprintable() else None
    if issubclass(kind, int):
        if issubclass(kind, bool) or int.bit_length(value) > 1024:
            return None
        text = int.__repr__(value)
        return text if len(text.lstrip("-")) <= MAX_DIGITS and finite(int.__float__, value) is not None else None
    if issubclass(kind, float):
        number = finite(float.__float__, value)
    else:
        tables = [_TABLE(cls) for cls in _BASES(kind)]  # a metaclass of the program's own is not asked
        known = [table["__float__"] for table in tables if "__float__" in table]
        package = _MODULE(kind)
        if not known or not isinstance(package, str):
            return None
        if package.partition(".")[0] not in ("fractions", "decimal", "numpy", "sympy", "numbers", "mpmath"):
            return None
        if package.startswith("sympy.") and getattr(value, "is_Integer", None) is True:
            return render(int(value))
        if package == "numpy" and (numbers := elements(value)):
            return render(numbers[0]) if len(numbers) == 1 else None
        number = finite(known[0], value)
    return None if number is None else float.__repr__(number)


def elements(value: object) -> list:
    """What an array of numpy, or one of its scalars, holds, as objects of Python; [] if Python has none for it."""
    numpy = sys.modules["numpy"]
    if issubclass(type(value), numpy.generic):
        item = numpy.generic.item(value)
        return [] if issubclass(type(item), numpy.floating) else [item]
    return value.ravel()[:2].tolist() if type(value) is numpy.ndarray else []


def finite(convert, value: object) -> float | None:
    try:
        number = convert(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if type(number) is float and number - number == 0 else None


def describe(error: BaseException) -> str:
    """The error's type and the program's line, as far as they can be told."""
    name = type.__dict__["__name__"].__get__(type(error))
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


class Server:
    """What the server made once and every child inherits, and the children that run."""

    def __init__(self, kind: str, without: str, filters: list[str], notes: str, pid_namespace: str, folders: list[str]):
        import _signal
        import gc
        import resource
        import select
        import time

        self.off = frozenset(without.split(","))
        self.signal, self.resource, self.clock, self.gc = _signal, resource, time.monotonic, gc
        self.set_priority = os.setpriority  # which `disarm` replaces
        self.processor_time = time.clock_gettime
        self.pid, self.pid_namespace = os.getpid(), bool(pid_namespace)
        self.refused: list[str] = []  # a child notes here what it was refused first
        self.missing = dict(note.split("=", 1) for note in notes.split("\n") if note)
        self.poller = select.poll()
        self.readable = select.POLLIN
        self.jobs, self.num_ready, self.received = [], 0, b""  # the first num_ready jobs are prepared
        self.running: dict[int, Child] = {}  # by the descriptor of their result
        self.dying: set[int] = set()  # killed, not yet taken leave of
        self.replies: list[bytes] = []
        self.fork_failures = 0

        os.dup2(0, CALLER_FD)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, RESULT_FD)  # taken, so that no other is a child's
        os.dup2(null, 0)
        os.dup2(null, 1)  # standard error stays the caller's until the first child
        os.chdir("/")
        sys.dont_write_bytecode = True
        sys.path[:] = folders
        sys.modules["__main__"] = module = type(sys)("__main__")  # of which every child has its own copy
        self.random_bytes, self.own_id = os.urandom, os.getpid
        repeat()
        module.__dict__.update(warm_up(kind))
        self.names = module.__dict__
        readable = (*folders, sandbox.ZONES)
        self.roots = tuple(os.path.join(f(p), "") for p in readable for f in (os.path.abspath, os.path.realpath))
        self.hook = make_hook(self.roots, self.refused)
        self.confine_all(filters)
        disarm(self.refused)
        if "environment" not in self.off:
            os.environ.clear()
        self.poller.register(CALLER_FD, self.readable)
        gc.collect()
        gc.disable()
        gc.freeze()  # what is here now is never collected, so that children share its pages
        self.mould = sandbox.Mould() if sandbox.Mould.CLONE else None
        if self.mould and self.mould.start() is None:
            self.become_child(self.mould.request_fd, self.mould.result_fd)

    def confine_all(self, filters: list[str]) -> None:
        """Puts the server, and so every child, under the layers that need no more than one call; notes what is missing."""
        r = self.resource
        limits = {"file_size": (r.RLIMIT_FSIZE, 0), "core": (r.RLIMIT_CORE, 0), "open_files": (r.RLIMIT_NOFILE, 64)}
        for name, (which, most) in limits.items():
            if name not in self.off:
                r.setrlimit(which, (self.lower(which, most),) * 2)
        self.mapped, self.filter = 0, None
        self.linux = sys.platform == "linux"
        if not self.linux:
            unknown = ("user", "net", "pid", "ipc", "privileges", "capabilities", "landlock", "seccomp", "memory")
            self.missing |= dict.fromkeys(unknown, "only on Linux")
            return
        with open("/proc/self/statm") as file:
            self.mapped = int(file.read().split()[0]) * r.getpagesize()
        steps = {
            "capabilities": sandbox.drop_capabilities,
            "privileges": sandbox.no_new_privileges,
            "landlock": lambda: sandbox.restrict_files(list(self.roots)),
        }
        if filters[0] and "seccomp" not in self.off:
            self.filter = sandbox.Filter(bytes.fromhex(filters[1]))
            steps["seccomp"] = sandbox.Filter(bytes.fromhex(filters[0])).load
            import faulthandler  # writes the program's line to the pipe when the filter ends it

            faulthandler.register(self.signal.SIGSYS, file=RESULT_FD, all_threads=False, chain=True)
        for name, step in steps.items():
            try:
                if name not in self.off:
                    step()
            except OSError as error:
                self.missing[name] = str(error)
        if "seccomp" in self.missing:
            self.filter = None

    def lower(self, which: int, most: int) -> int:
        """A limit as wanted, or as it is if that is lower."""
        ceiling = self.resource.getrlimit(which)[1]
        return most if ceiling == self.resource.RLIM_INFINITY else min(most, ceiling)

    def limits(self, timeout_s: float, memory_mb: int) -> list[tuple[int, tuple[int, int]]]:
        """The limits of a child, as arguments of setrlimit()."""
        r, out = self.resource, []
        if self.mapped and "memory" not in self.off:
            # On top of what the interpreter has mapped, so that the figure means the program's own memory.
            out.append((r.RLIMIT_AS, (self.lower(r.RLIMIT_AS, self.mapped + memory_mb * 2**20),) * 2))
        if "cpu" not in self.off:
            seconds = self.lower(r.RLIMIT_CPU, int(timeout_s) + 2)
            out.append((r.RLIMIT_CPU, (seconds, self.lower(r.RLIMIT_CPU, seconds + 1))))
        if "processes" not in self.off:
            out.append((r.RLIMIT_NPROC, (0, 0)))
        return out

    def confine(self, limits: list[tuple[int, tuple[int, int]]]) -> None:
        """Puts this child into its own process group, under its limits; an error if the system refuses one of them."""
        setrlimit = self.resource.setrlimit
        # Not a session of its own: with autogroups Linux would give each as much time as the server has, whatever its priority.
        os.setpgid(0, 0)
        if self.linux and not self.pid_namespace:  # which ends with the server, and all in it
            sandbox.libc.prctl(1, self.signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != self.pid:
                os._exit(1)  # it died before the line above
        for which, most in limits:
            setrlimit(which, most)
        if self.filter is not None:
            self.filter.load(self.own_id())

    def copy(self, request: bytes, writer: int) -> int:
        """Makes a child, which is to run what is requested and write the result to `writer`; returns its process id."""
        if "fork" in self.off:
            raise BlockingIOError("switched off")
        asked, asking = os.pipe()
        try:
            sent = os.write(asking, request[:PAGE])  # which every pipe holds, so that the child need not wait for it
            pid = self.mould.cast(asked, writer) if self.mould else os.fork()
            if pid == 0:
                self.become_child(asked, writer)
            os.dup2(CALLER_FD, asked)  # closes this end of the pipe
            while sent < len(request):
                sent += os.write(asking, request[sent:])
        except BrokenPipeError:
            pass  # it was killed before it had read
        finally:
            os.close(asked)
            os.close(asking)
        return pid

    def become_child(self, asked: int, writer: int):
        """What a new child does first. Never returns."""
        try:
            size, request = int.from_bytes(os.read(asked, 4), "big"), b""
            while len(request) < size:  # its end would never be seen: this process holds the writing end too
                request += os.read(asked, size - len(request))
            source, limits, token = marshal.loads(request)
            os.dup2(0, 2)
            os.dup2(writer, RESULT_FD)
            if "descriptors" not in self.off:
                os.closerange(RESULT_FD + 1, 1024)
            keys, token = [token[:16], token[16:]], None
            self.child(source, limits, keys)
        finally:
            os._exit(1)

    def child(self, source: bytes | str, limits: list, keys: list[bytes]):
        """Runs one program and writes its result to RESULT_FD. Never returns.

        `keys`: the tokens of a result and of a failure to confine it; the second has gone when the program begins.
        """
        # Taken now, because a program may replace them in their modules.
        write, leave, refused, token = os.write, os._exit, self.refused, keys[0]
        memory_result, unpack = token + b"memory\0\0MemoryError", marshal.loads
        names, status, value, detail = self.names, "error", None, "the program defines no solution()"
        try:
            try:
                self.confine(limits)
            except (OSError, ValueError, OverflowError) as error:
                write(RESULT_FD, keys[1] + f"could not set limits: {error}".encode())
                leave(0)
            keys.clear()
            if "hook" not in self.off:
                sys.addaudithook(self.hook)
            self.gc.enable()
            exec(compile(source, FILENAME, "exec") if type(source) is str else unpack(source), names)
            if "solution" in names:
                value = render(names["solution"]())
                status, detail = "no_answer" if value is None else "ok", ""
            if refused:
                status, value, detail = "blocked", None, refused[0]
            write(RESULT_FD, token + f"{status}\0{value or ''}\0{detail}".encode())
        except MemoryError:
            write(RESULT_FD, memory_result)  # made beforehand: there may be no memory left to make one
        except BaseException as error:
            # SystemExit and KeyboardInterrupt too: whatever the program raises is its result
            status, detail = ("blocked", refused[0]) if refused else ("error", describe(error))
            write(RESULT_FD, token + f"{status}\0\0{detail}".encode())
        finally:
            leave(0)

    # ---- the server's loop

    def serve(self) -> None:
        """Serves requests until the caller ends."""
        while True:
            self.start_children()
            # Replies are held back while there is more to start, but never while nothing moves.
            if self.replies and (not self.jobs or len(self.replies) >= 8 or len(self.running) >= SLOTS):
                self.flush()
            for fd, _ in self.poller.poll(self.patience_ms()):
                if fd == CALLER_FD:
                    if not self.read_requests():
                        return
                elif (reply := self.read_result(self.running[fd])) is not None:
                    self.settle(self.running[fd], *reply)
            self.check_time()
            self.reap()

    def patience_ms(self) -> float | None:
        """How long nothing can happen by itself; None for ever."""
        if not self.running or self.dying:
            return 1000 * FORK_WAIT_S if self.jobs and not self.dying else 2 if self.dying else None
        now = self.clock()
        left = min(c.next_look() for c in self.running.values()) - now
        return 1000 * min(max(left, 0.0), FORK_WAIT_S if self.jobs else MAX_POLL_S) + 0.1

    def prepare(self) -> None:
        """Compiles the next jobs in one go: between two forks each would pay for the compiler's pages anew."""
        enough = self.clock() + COMPILE_S
        for i, (number, source, *limits) in enumerate(self.jobs):
            if len(source) <= MAX_COMPILED:
                self.jobs[i] = (number, compiled(source), *limits)
            self.num_ready = i + 1
            if self.clock() > enough:
                break

    def take_off(self) -> None:
        del self.jobs[0]
        self.num_ready -= 1

    def start_children(self) -> None:
        young = sum(not child.slow for child in self.running.values())
        while self.jobs and young < YOUNG and len(self.running) < SLOTS:
            if not self.num_ready:
                self.prepare()
            number, source, timeout_s, memory_mb = self.jobs[0]
            token, limits = self.random_bytes(32), self.limits(timeout_s, memory_mb)
            reader, writer = os.pipe()
            try:
                request = marshal.dumps((source, limits, token), 2)
                pid = self.copy(len(request).to_bytes(4, "big") + request, writer)
            except OSError as error:
                os.close(reader)
                os.close(writer)
                self.fork_failures += 1
                if self.fork_failures >= FORK_TRIES:
                    self.reply(number, "error", None, f"verifier: no process could be made: {error}")
                    self.take_off()
                return  # until a child has ended, or for a moment
            os.close(writer)
            self.take_off()
            self.fork_failures = 0
            young += 1
            self.running[reader] = Child(number, pid, reader, token, self.clock(), timeout_s)
            self.poller.register(reader, self.readable)

    def read_requests(self) -> bool:
        """Takes over what the caller has sent; False at its end."""
        chunk = os.read(CALLER_FD, 1 << 16)
        self.received += chunk
        while len(self.received) >= 4:
            end = 4 + int.from_bytes(self.received[:4], "big")
            if len(self.received) < end:
                # The rest of a long source at once; pieces put together one by one would take quadratic time.
                pieces, size = [self.received], len(self.received)
                while chunk and size < end:
                    chunk = os.read(CALLER_FD, end - size)
                    pieces.append(chunk)
                    size += len(chunk)
                self.received = b"".join(pieces)
                if size < end:
                    return False
            self.jobs.append(marshal.loads(self.received[4:end]))
            self.received = self.received[end:]
        return bool(chunk)

    def read_result(self, child: "Child") -> tuple[str, str | None, str] | None:
        """(status, value, detail) if that can be told by now."""
        chunk = os.read(child.reader, MAX_RESULT + 1)
        child.received += chunk
        result = parse_result(child.received, child.token)
        if result is None and len(child.received) > MAX_RESULT:
            return "error", None, "wrote to its result channel"
        return result if result is not None or chunk else self.explain_exit(child)

    def explain_exit(self, child: "Child") -> tuple[str, None, str]:
        """Why a child ended without a result. It closed its pipe; a moment passes until it can be waited for."""
        import time

        signal, give_up = self.signal, self.clock() + 0.1
        while child.status is None and self.clock() < give_up:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.status = status
            else:
                time.sleep(0.001)
        if child.status is None:
            return "error", None, "closed its result channel"
        if os.WIFEXITED(child.status):
            return "error", None, f"left with exit code {os.WEXITSTATUS(child.status)} before it had a result"
        number = os.WTERMSIG(child.status)
        if number == sandbox.SIGSYS:
            line = child.received.rpartition(f'File "{FILENAME}", line '.encode())[2].split(b" ")[0]
            where = f" at line {int(line)}" if line.isdigit() and len(line) < 8 else ""
            return "blocked", None, "system call" + where
        if number == signal.SIGXCPU:
            return "timeout", None, "used up its processor time"
        if number == signal.SIGKILL:
            return "memory", None, "killed by the system"
        names = {value: name for name, value in vars(signal).items() if name.startswith("SIG") and name[3] != "_"}
        return "error", None, f"killed by {names.get(number, number)}"  # the real-time signals have no names

    def check_time(self) -> None:
        now = self.clock()
        for child in list(self.running.values()):
            if now >= child.deadline:
                if "clock" not in self.off:
                    self.settle(child, "timeout", None, f"no result after {child.timeout_s:g} s")
            elif not child.heavy and now >= child.look:
                child.slow, child.look = True, now + HEAVY_S
                try:
                    # By the processor's time, not the wall's: on a busy machine a program only waits, and must not wait more.
                    if self.processor_time(~child.pid << 3 | 2) >= HEAVY_S:
                        self.set_priority(os.PRIO_PROCESS, child.pid, HEAVY_NICE)
                        child.heavy = True
                except OSError:
                    child.heavy = True  # it has ended, or this system has no such clock

    def settle(self, child: "Child", status: str, value: str | None, detail: str) -> None:
        """Ends a child, whatever it is doing, and answers for it."""
        del self.running[child.reader]
        self.poller.unregister(child.reader)
        os.close(child.reader)
        if child.status is None:
            self.dying.add(child.pid)
            for send in (os.kill, os.killpg):
                try:
                    send(child.pid, self.signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass  # gone already, or it had no time to make its own group
        self.reply(child.number, status, value, detail)

    def reply(self, number: int, status: str, value: str | None, detail: str) -> None:
        data = f"{number}\0{status}\0{value or ''}\0{detail}".encode()
        self.replies.append(len(data).to_bytes(4, "big") + data)

    def flush(self) -> None:
        data = b"".join(self.replies)
        self.replies.clear()
        while data:
            data = data[os.write(CALLER_FD, data) :]

    def reap(self) -> None:
        """Takes leave of the children that have ended, known ones or not."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.dying.discard(ended[0])
                if self.mould and ended[0] == self.mould.pid:
                    os._exit(1)  # no more children: the caller takes another server
                for child in self.running.values():
                    if child.pid == ended[0]:
                        child.status = ended[1]
        except ChildProcessError:
            self.dying.clear()


class Child:
    """A program that runs. `status` is that of `waitpid` once it has ended."""

    __slots__ = "number pid reader token timeout_s deadline received status slow heavy look".split()

    def __init__(self, number: int, pid: int, reader: int, token: bytes, started: float, timeout_s: float):
        self.number, self.pid, self.reader, self.token = number, pid, reader, token
        self.timeout_s, self.deadline = timeout_s, started + timeout_s
        self.received, self.status = b"", None
        self.slow, self.heavy, self.look = False, False, started + SLOW_S

    def next_look(self) -> float:
        """When it is time to see to this child again."""
        return self.deadline if self.heavy else min(self.deadline, self.look)


def parse_result(received: bytes, token: bytes) -> tuple[str, str | None, str] | None:
    """The child's result once it is complete, bears the token and is a legal one; None otherwise."""
    if received.startswith(token[16:]):
        return "error", None, f"verifier: {received[16:].decode(errors='replace')}"
    if not received.startswith(token[:16]):
        return None
    try:
        status, value, detail = received[16:].decode().split("\0")
    except ValueError:
        return None
    if status not in STATUSES or (status == "ok") != bool(value) or not (value.isprintable() and len(value) <= 512):
        return None
    return status, value or None, detail.removeprefix("verifier:") if detail.isprintable() else ""


def serve(kind: str, without: str, base: str, more: str, notes: str, pid_namespace: str, *folders: str) -> None:
    try:
        server = Server(kind, without, [base, more], notes, pid_namespace, list(folders))
    except ImportError as error:
        text = f"0\0not_ready\0\0{type(error).__name__}: {error}".encode()
        os.write(CALLER_FD, len(text).to_bytes(4, "big") + text)
        return
    server.reply(0, "ready", None, "\n".join(f"{name}={reason}" for name, reason in server.missing.items()))
    try:
        server.flush()
        server.serve()
    except ConnectionError:
        pass  # the caller is gone, with an answer unread or on its way


if __name__ == "__main__":
    if sys.platform == "linux":
        launch(sys.argv[1], sys.argv[2], sys.argv[3:])
    else:
        serve(sys.argv[1], sys.argv[2], "", "", "", "", *sys.argv[3:])
