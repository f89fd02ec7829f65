"""The executor against programs that loop, swallow, allocate, exit, forge, fork, print, recurse and kill."""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from reft_jax.errors import InputError
from reft_jax.rewards import program
from reft_jax.rewards.program import ProgramResult, run_programs
from tests import runs

ROOT = pathlib.Path(__file__).resolve().parents[1]


def solve(body: str, **settings) -> ProgramResult:
    """The result of one program with this body, indented here."""
    lines = "\n".join("    " + line for line in body.split("\n"))
    defaults = {"timeout_s": 5.0, "memory_mb": 256, "workers": 1}
    return run_programs([f"def solution():\n{lines}"], **(defaults | settings))[0]


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether the process ends (a zombie has ended) within the time."""
    give_up = time.monotonic() + within_s
    while time.monotonic() < give_up:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


# ---- values


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 * 4", "12"),
        ("7 / 2", "3.5"),
        ("10 ** 20 + 1", "100000000000000000001"),
        ("1e300", "1e+300"),
        ("-0.0", "-0.0"),
        ("math.sqrt(16)", "4.0"),
        ("__import__('fractions').Fraction(1, 4)", "0.25"),
        ("__import__('decimal').Decimal('2.50')", "2.5"),
        ("sympy.Rational(1, 4)", "0.25"),
        ("sympy.Integer(9)", "9"),
        ("sympy.Integer(10) ** 20 + 1", "100000000000000000001"),
        ("sympy.solve(sympy.Symbol('x') ** 2 - 4)[1]", "2"),
        ("' b '", "b"),
        ("__import__('numpy').float64(3.0)", "3.0"),
        ("__import__('numpy').int64(2**62 + 1)", str(2**62 + 1)),
        ("__import__('numpy').array([[2.5]])", "2.5"),
        ("__import__('numpy').linalg.solve([[2, 0], [0, 4]], [4, 8])[1]", "2.0"),
        ("sympy.lambdify(sympy.Symbol('x'), sympy.sqrt(sympy.Symbol('x')))(16)", "4.0"),
        ("__import__('scipy.integrate').integrate.quad(lambda x: 2 * x, 0, 3)[0]", "9.0"),
        ("type('I', (int,), {'__repr__': lambda s: 'x'})(5)", "5"),
    ],
)
def test_answers_are_rendered_as_text(expression, value):
    assert solve(f"return {expression}") == ProgramResult("ok", value)


@pytest.mark.parametrize(
    "expression",
    [
        "None", "True", "float('nan')", "float('inf')", "-math.inf", "1j", "[5]", "{}", "(1, 2)", "b'42'", "''", "' \\n '", "'x' * 300",
        "'a\\nb'", "10 ** 400", "10 ** 5000", "object()", "print", "(i for i in [1])", "sympy.oo", "sympy.zoo", "sympy.nan", "sympy.I",
        "sympy.Symbol('x')", "sympy.true", "__import__('numpy').array([1, 2])", "__import__('numpy').bool_(1)",
        "__import__('numpy').nan", "__import__('decimal').Decimal('sNaN')",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_told_in_the_child(expression):
    assert solve(f"return {expression}") == ProgramResult("no_answer")


def test_authors_conditions_sys_exit_is_harmless_and_stdout_is_not_the_result():
    assert solve("import sys\nsys.exit(1)\nexit()\nquit()\nreturn 5") == ProgramResult("ok", "5")
    assert solve("print(41)\nimport sys\nsys.stderr.write('x')\nsys.stdout.flush()\nreturn 42") == ProgramResult(
        "ok", "42"
    )
    assert (
        run_programs(["import math\nx = math.pi\ndef solution():\n    return x\nprint(solution())"])[0].status == "ok"
    )


HARMLESS = """abc argparse array ast base64 bisect calendar cmath collections colorsys contextlib copy csv dataclasses datetime decimal difflib
    email enum fractions functools graphlib hashlib heapq html inspect io itertools json keyword locale logging math mpmath numbers
    numpy operator os pathlib pickle platform pprint pydoc queue random re reprlib scipy secrets shutil statistics string struct subprocess sympy
    sys sysconfig tempfile textwrap threading time timeit traceback types typing unicodedata unittest uuid warnings weakref zoneinfo"""


def test_common_imports_work():
    names = [*HARMLESS.split(), "numpy.linalg", "scipy.stats", "scipy.optimize", "concurrent.futures", "urllib.parse"]
    sources = [f"import {name}\n\ndef solution():\n    return {name}.__name__" for name in names]
    results = run_programs(sources, timeout_s=20.0, workers=1)
    assert [(name, r) for name, r in zip(names, results, strict=True) if r.value != name] == []
    star = "from numpy import *\n\ndef solution():\n    return sum(array([1, 2]))"
    assert run_programs([star], timeout_s=20.0, workers=1)[0].value == "3"
    assert solve("import statistics\nreturn statistics.mean([1, 2, 3])") == ProgramResult("ok", "2")
    assert solve(
        "from sympy import symbols, Eq, solve\nx = symbols('x')\nreturn solve(Eq(2 * x, 10), x)[0]"
    ) == ProgramResult("ok", "5")


# ---- failures of the program


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("def solution():\n    a = 1\n    return a / 0", "ZeroDivisionError at line 3"),
        ("def solution(:\n    return 1", "SyntaxError at line 1"),
        ("def solution():\n    return undefined", "NameError at line 2"),
        ("def solution(x):\n    return x", "TypeError"),
        ("def answer():\n    return 1", "the program defines no solution()"),
        ("", "the program defines no solution()"),
        ("def solution():\n    raise SystemExit(3)", "SystemExit at line 2"),
        ("def solution():\n    raise KeyboardInterrupt", "KeyboardInterrupt at line 2"),
        ("def solution():\n    return solution()", "RecursionError at line 2"),
        ("def solution():\n    return int('9' * 5000)", "ValueError at line 2"),
        ("def solution():\n    return '\ud800'", "UnicodeEncodeError"),
        ("def solution():\n    return 1\0", ("ValueError", "SyntaxError")),
        ("(" * 5000, "SyntaxError at line 1"),
        ("def solution():\n    return input()", "EOFError at line 2"),
        ("def solution():\n    raise type('verifier: ha', (Exception,), {})", "error at line 2"),
    ],
)
def test_errors_name_type_and_line(source, detail):
    result = run_programs([source], timeout_s=5.0, workers=1)[0]
    assert result.status == "error" and result.value is None and result.detail.startswith(detail), result


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import time\ntime.sleep(1000)",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    try:\n        time.sleep(9)\n    except: pass",
        "return len(str(9 ** 9 ** 9))",
        "while True: print('x' * 1000)",
        "import re\nreturn len(re.match('(a+)+$', 'a' * 60 + 'b'))",
        "class E(Exception):\n    __str__ = __repr__ = lambda self: __import__('time').sleep(1000)\nimport threading\nthreading.Event().wait()",
        "class F(int):\n    def __format__(self, spec):\n        while True: pass\nreturn f'{F(1)}'",
    ],
)  # fmt: skip
def test_a_program_without_end_is_killed_at_its_deadline(body):
    start = time.monotonic()
    result = solve(body, timeout_s=0.3)
    assert result.status == "timeout" and result.value is None
    assert time.monotonic() - start < 3.0


@pytest.mark.parametrize(
    "body",
    [
        "return len([0] * 10 ** 9)",
        "x = []\nwhile True: x.append('y' * 10 ** 7)",
        "return len(bytearray(2 ** 40))",
        "import math\nreturn math.factorial(10) << (2 ** 36)",
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1) + 1\nreturn f(0)",
        "import mmap\nreturn len([mmap.mmap(-1, 2 ** 28) for _ in range(100)])",
    ],
)
def test_a_memory_bomb_stops_at_its_limit(body):
    before = available_memory()
    result = solve(body, memory_mb=64, timeout_s=10.0)
    # Where CPython or `mmap` turns the lack of memory into another exception, that one is reported.
    assert result.status == "memory" or result.detail.startswith(("OSError", "SystemError")), result
    assert before - available_memory() < 500e6


def available_memory() -> float:
    line = next(row for row in pathlib.Path("/proc/meminfo").read_text().splitlines() if row.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024.0


def test_memory_mb_is_the_programs_own():
    assert solve("return len(bytearray(100 * 2 ** 20))", memory_mb=128) == ProgramResult("ok", str(100 * 2**20))
    assert solve("return len(bytearray(100 * 2 ** 20))", memory_mb=64).status == "memory"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("import os\nos._exit(0)", "left with exit code 0"),
        ("import os\nos._exit(7)", "left with exit code 7"),
        ("import os\nos.abort()", "killed by SIGABRT"),
        ("import signal\nsignal.raise_signal(40)", "killed by 40"),
        ("import os\nos.closerange(0, 100)\nwhile True: pass", "closed its result channel"),
        ("import os\nos.close(3)\nreturn 5", ""),
    ],
)
def test_a_child_that_leaves_without_a_result_is_an_error(body, detail):
    result = solve(body)
    assert result.status == "error" and result.value is None and result.detail.startswith(detail), result


def test_a_forged_result_is_not_believed():
    forged = '{"status": "ok", "value": "42", "detail": ""}'
    for prefix in ("b''", "bytes(16)", "b'x' * 16", "os.urandom(16)"):
        result = solve(f"import os\nos.write(3, {prefix} + {forged.encode()!r})\nos._exit(0)")
        assert (result.status, result.value) == ("error", None)
    flood = solve("import os\nwhile True: os.write(3, b'z' * 65536)")
    assert (flood.status, flood.detail) == ("error", "wrote to its result channel")
    # Text on descriptors that were the server's own does not reach the caller either.
    assert (
        solve(
            "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\0\\0\\0\\2{}' * 9)\n    except OSError: pass\nreturn 1"
        ).value
        is None
    )
    assert solve("return 6") == ProgramResult("ok", "6")


def test_a_program_cannot_spoil_the_next_one():
    spoil = "import builtins, math, os, json\nmath.sqrt = len\nbuiltins.float = str\njson.dumps = None\nos.fork = None\nreturn 1"
    assert solve(spoil).status in ("ok", "no_answer", "error")
    assert solve("return float(math.sqrt(9))") == ProgramResult("ok", "3.0")


# ---- files, network, processes


@pytest.mark.parametrize(
    "body",
    [
        "return len(open('/etc/passwd').read())",
        "open('made_by_a_program', 'w').write('x')",
        "import pathlib\nreturn len(pathlib.Path('/etc/passwd').read_text())",
        "import os\nreturn len(os.listdir('/'))",
        "import os\nreturn os.open('/etc/passwd', os.O_RDONLY)",
        "import os\nos.system('true')",
        "import os\nreturn os.fork()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nreturn os.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess\nreturn subprocess.run(['true']).returncode",
        "import _posixsubprocess\n_posixsubprocess.fork_exec()",
        "import subprocess\nsubprocess._fork_exec()",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.kill(os.getppid(), 9)",
        "import os, signal\nos.killpg(os.getpgid(os.getppid()), signal.SIGKILL)",
        "import socket\nsocket.socket()",
        "import socket\nsocket.gethostbyname('localhost')",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1/')",
        "import ctypes\nreturn ctypes.CDLL(None).getpid()",
        "import ctypes\nreturn ctypes.string_at(0)",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "import os\nos.remove('/tmp/nothing-here')",
        "import shutil\nshutil.rmtree('/tmp/nothing-here')",
        "import _xxsubinterpreters",
        "import os\nos.mkfifo('/tmp/made_by_a_program')",
        "import posix\nposix.setuid(1)",
        "import os\nos.pidfd_open(os.getppid())",
        "import signal\nsignal.pidfd_send_signal(0, 9)",
        "import readline",
        "import program_server",
        "import sandbox",
        "import os\ntry:\n    os.system('true')\nexcept OSError: pass\nreturn 42",
        "import gc\nreturn len(gc.get_objects())",
        "return len(open(sympy.__file__.replace('sympy/__init__.py', '../../../../../../../etc/passwd')).read())",
    ],
)  # fmt: skip
def test_reaching_out_is_blocked(body):
    result = solve(body)
    assert (result.status, result.value) == ("blocked", None), result


def test_the_working_tree_cannot_be_imported():
    assert solve("import reft_jax.errors\nreturn 1").status in ("error", "blocked")
    assert solve("import tests.tiny\nreturn 1").status in ("error", "blocked")


# ---- the pool


def test_results_keep_the_order_and_equal_the_serial_ones():
    bodies = [f"return {i} * 2" for i in range(40)] + [
        "return 1 / 0",
        "while True: pass",
        "return sympy.Integer(3)",
        "return None",
    ]
    sources = [f"def solution():\n    {body}" for body in bodies]
    parallel = run_programs(sources, timeout_s=1.0, memory_mb=128, workers=3)
    assert [r.value for r in parallel[:40]] == [str(2 * i) for i in range(40)]
    assert [r.status for r in parallel[40:]] == ["error", "timeout", "ok", "no_answer"]
    assert parallel == run_programs(sources, timeout_s=1.0, memory_mb=128, workers=1)
    assert run_programs([]) == []


def test_one_slow_program_does_not_hold_up_the_others():
    start = time.monotonic()
    sources = ["def solution():\n    while True: pass"] + [f"def solution():\n    return {i}" for i in range(30)]
    results = run_programs(sources, timeout_s=1.0, workers=2)
    assert [r.status for r in results] == ["timeout"] + ["ok"] * 30
    assert time.monotonic() - start < 4.0


REPEATED = {  # what differs from run to run elsewhere: its value here, or "" for any
    "__import__('time').time_ns()": "1704067200001000000",
    "str(__import__('datetime').datetime.now())": "2024-01-01 00:00:00.001000",
    "str(__import__('datetime').date.today())": "2024-01-01",
    "__import__('time').strftime('%H:%M')": "00:00",
    "(lambda f: f() < f())(__import__('time').perf_counter) + 0": "1",
    "__import__('os').cpu_count() + __import__('os').getpid()": "1001",
    "__import__('os').urandom(8).hex()": "",
    "str(__import__('uuid').uuid4())": "",
    "__import__('secrets').token_hex(8)": "",
    "__import__('statistics').NormalDist().samples(1)[0]": "",
    "[f() for f in [__import__('random').seed, __import__('random').random]][1]": "",
    "__import__('random').SystemRandom().random() + __import__('random').Random().random()": "",
    "__import__('numpy').random.rand() + __import__('numpy').random.default_rng().random()": "",
    "id(object())": "17592186044416",
}
ADDRESSES = ["hash(object())", "str(object())", "hash(lambda: 0)", "hash(type('A', (), {}))", "hash(float('nan'))"]
ADDRESSES += ["str([a.n for a in {type('A', (), {'n': i})() for i in range(9)}])"]


def test_clocks_chance_and_addresses_are_the_same_in_every_run():
    expressions = [*REPEATED, *(ADDRESSES if addresses_can_be_fixed() else [])]
    sources = [f"def solution():\n    return {expression}" for expression in expressions]
    first = run_programs(sources, timeout_s=20.0, workers=1)
    run_programs(["def solution():\n    return 'x' * 99"] * 40, workers=2)
    program.close()
    second = run_programs(sources[::-1], timeout_s=20.0, workers=2)[::-1]
    assert [r.status for r in first] == ["ok"] * len(first) and first == second
    wrong = [(e, r) for (e, value), r in zip(REPEATED.items(), first, strict=False) if value not in ("", r.value)]
    assert wrong == []


def addresses_can_be_fixed() -> bool:
    """Whether this system lets a process ask for fixed addresses (many containers do not)."""
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"):
        return False
    libc = ctypes.CDLL(None)
    own = libc.personality(0xFFFFFFFF)
    fixed = libc.personality(own | 0x0040000) >= 0
    libc.personality(own)
    return fixed


def test_the_same_program_gives_the_same_value_on_every_server():
    body = "import random\nreturn abs(hash('pear')) % 10 ** 6 + random.random()"
    values = {solve(body).value, solve("sympy\n" + body).value}
    program.close()
    values |= {solve(body).value}
    assert len(values) == 1
    assert (
        len({r.value for r in run_programs([f"def solution():\n    {body.replace(chr(10), '; ')}"] * 6, workers=3)})
        == 1
    )


def test_killed_servers_are_replaced_and_their_programs_run_again():
    solve("return 1")
    sources = [f"def solution():\n    import time\n    time.sleep(.02)\n    return {i}" for i in range(60)]
    done = threading.Event()
    killed = []

    def killer():
        while not done.wait(0.15) and len(killed) < 4:
            for server in list(program._SERVERS):
                os.kill(server.process.pid, signal.SIGKILL)
                killed.append(server.process.pid)
                break

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        results = run_programs(sources, timeout_s=5.0, workers=2)
    finally:
        done.set()
        thread.join()
    assert killed and [r.value for r in results] == [str(i) for i in range(60)]


def test_a_program_that_kills_two_servers_is_the_verifiers_fault_and_the_others_are_safe(monkeypatch):
    bad = "def solution():\n    while True: pass  # bad"
    send = program._Server.send

    def send_and_die(self, requests):
        send(self, requests)
        if any("# bad" in source for _, source, _, _ in requests):
            self.process.kill()

    monkeypatch.setattr(program._Server, "send", send_and_die)
    good = [f"def solution():\n    return {i}" for i in range(10)]
    results = run_programs(good[:5] + [bad] + good[5:], workers=2)
    assert results[5].status == "error" and results[5].detail.startswith("verifier:")
    assert [r.value for r in results[:5] + results[6:]] == [str(i) for i in range(10)]


def test_servers_that_died_while_idle_cost_nothing():
    run_programs(["def solution():\n    return 1"] * 30, workers=3)
    for server in program._SERVERS:
        server.process.kill()
        server.process.wait()
    results = run_programs([f"def solution():\n    return {i}" for i in range(4)], workers=3)
    assert [r.value for r in results] == ["0", "1", "2", "3"]


def test_a_server_that_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr(program, "GRACE_S", 0.2)
    program.close()
    solve("return 1")
    os.kill(program._SERVERS[0].process.pid, signal.SIGSTOP)
    assert solve("return 7", timeout_s=0.3) == ProgramResult("ok", "7")


def test_servers_that_cannot_live_raise_instead_of_grading_zero(monkeypatch, tmp_path):
    program.close()
    script = tmp_path / "server.py"
    script.write_text("raise SystemExit(3)")
    monkeypatch.setattr(program, "SERVER", script)
    with pytest.raises(program.VerifierError, match="in a row"):
        solve("return 1")
    monkeypatch.undo()
    monkeypatch.setattr(program.sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(program.VerifierError, match="no-python"):
        solve("return 1")
    monkeypatch.undo()
    assert solve("return 8") == ProgramResult("ok", "8")


def test_an_interrupted_call_leaves_no_stale_reply(monkeypatch):
    solve("return 1")

    def interrupt(busy):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(program, "_ready", interrupt)
        solve("return 2")
    assert solve("return 3") == ProgramResult("ok", "3")


def test_the_caller_is_never_forked_and_runs_nothing(capfd):
    script = (
        "import os, sys\n"
        "forks = []\nos.register_at_fork(before=lambda: forks.append(1))\n"
        "from reft_jax.rewards.program import run_programs\n"
        "r = run_programs(['def solution():\\n    import os\\n    return os.getpgid(0)'] * 3, workers=1)\n"
        "assert not forks and str(os.getpid()) not in {x.value for x in r} and len({x.value for x in r}) == 3, r\n"
        "assert not {'jax', 'sympy', 'transformers'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, timeout=60).returncode == 0
    assert capfd.readouterr() == ("", "")


def test_threads_of_the_caller_take_turns_and_servers_outlive_them():
    results = {}

    def work(n):
        results[n] = run_programs([f"def solution():\n    return {n * 100 + i}" for i in range(20)], workers=2)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([r.value for r in results[n]] == [str(n * 100 + i) for i in range(20)] for n in range(4))
    pids = [server.process.pid for server in program._SERVERS]
    assert solve("return 1").value == "1" and [server.process.pid for server in program._SERVERS] == pids


def test_no_orphans_when_the_caller_is_killed():
    script = (
        "import threading, time\nfrom reft_jax.rewards import program\n"
        "source = 'def solution():\\n    import time\\n    while True: time.sleep(100)'\n"
        "thread = threading.Thread(target=program.run_programs, args=([source] * 2,), kwargs={'timeout_s': 500.0, 'workers': 2})\n"
        "thread.start()\n"
        "while not sum(len(s.jobs) for s in program._SERVERS) == 2: time.sleep(.02)\n"
        "time.sleep(.3)\n"
        "print(*[s.process.pid for s in program._SERVERS], flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as caller:
        servers = [int(pid) for pid in caller.stdout.readline().split()]
        inner = [pid for s in servers for pid in runs.children(s)]
        programs = [pid for s in inner for pid in runs.children(s)]
        assert len(servers) == len(inner) == 2 and len(programs) == 4  # and the servers' moulds
        # One of the two servers dies first: its children must not outlive it.
        first = next(i for i, pid in enumerate(inner) if runs.children(pid))
        orphans = runs.children(inner[first])
        os.kill(servers[first], signal.SIGKILL)
        assert gone(inner[first]) and all(map(gone, orphans))
        caller.kill()
    assert all(gone(pid) for pid in servers + inner + programs)


def test_programs_leave_no_processes_behind():
    solve("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\nreturn 1")
    solve("import time\ntime.sleep(1000)", timeout_s=0.2)
    for server in program._SERVERS:
        (pid,) = runs.children(server.process.pid)
        assert all(gone(child) for child in runs.children(pid)[1:])  # the first is the mould
        assert len(os.listdir(f"/proc/{pid}/fd")) < 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"memory_mb": 1}, "memory_mb=1"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        solve("return 1", **settings)


def test_a_source_of_a_megabyte_is_run_and_a_longer_one_is_an_error():
    long = "def solution():\n    return 1\n#" + "x" * 990_000
    assert run_programs([long, long + "x" * 10_000], workers=1)[0] == ProgramResult("ok", "1")
    assert run_programs([long + "x" * 10_000], workers=1)[0].status == "error"
