"""Programs that mean harm, between honest ones; each layer of the sandbox alone; a pool that is killed, starved, interrupted."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from reft_jax.errors import InputError
from reft_jax.rewards import program, sandbox
from reft_jax.rewards.program import ProgramResult, VerifierError, run_programs
from tests import runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="the layers are those of Linux")

# name: (body of solution(), the statuses that are right). CANARY is a file's path, PORT a listening port of this machine.
HOSTILE = {
    "loop that swallows every exception": ("while True:\n try:\n  while True: pass\n except BaseException: pass", "timeout"),
    "loop in a finally": ("try:\n 1 / 0\nfinally:\n while True: pass", "timeout"),
    "loop in __del__": ("class D:\n def __del__(self):\n  while True: pass\nd = D()\ndel d", "timeout"),
    "sleep for ever": ("import time\nwhile True: time.sleep(1e6)", "timeout"),
    "regular expression that blows up": ("import re\nreturn re.match('(a|a)*$', 'a' * 99 + 'b')", "timeout"),
    "power tower": ("return 9 ** 9 ** 9 ** 9", "timeout memory"),
    "factorial": ("return math.factorial(10 ** 8)", "timeout memory"),
    "sympy: huge factorisation": ("return sympy.factorint(10 ** 400 + 69)", "timeout no_answer"),
    "sympy: huge expansion": ("x = sympy.Symbol('x')\nreturn sympy.expand((x + 1) ** 10 ** 5)", "timeout memory"),
    "sympy: parser that runs code": ("return sympy.sympify('__import__(\"os\").system(\"rm CANARY\")')", "blocked"),
    "ignores its signals": ("import signal\nfor s in (1, 2, 3, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", "timeout"),
    "timer that interrupts": ("import signal\nsignal.setitimer(signal.ITIMER_REAL, .01)\nwhile True: pass", "error"),
    "list bomb": ("return len([0] * 10 ** 11)", "memory"),
    "string bomb": ("s = 'x'\nwhile True: s += s", "memory"),
    "bytearray bomb": ("b = bytearray(1)\nwhile True: b *= 2", "memory"),
    "dictionary bomb": ("d = {}\nwhile True: d[len(d)] = bytes(10 ** 6)", "memory"),
    "mmap bomb": ("import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2 ** 27))", "memory error"),
    "memory error that is swallowed": ("x = []\nwhile True:\n try: x.append(bytes(10 ** 7))\n except MemoryError: pass", "timeout"),
    "recursion": ("import sys\nsys.setrecursionlimit(10 ** 9)\nf = lambda n: f(n + 1)\nreturn f(0)", "memory error timeout"),
    "deep structure": ("x = []\nfor _ in range(10 ** 5): x = [x]\nreturn x", "no_answer"),
    "deep structure, written out": ("x = []\nfor _ in range(10 ** 5): x = [x]\nreturn repr(x)", "error"),
    "fork": ("import os\nreturn os.fork()", "blocked"),
    "fork bomb that is swallowed": ("import os\nwhile True:\n try: os.fork()\n except OSError: return 1", "blocked"),
    "thread bomb": ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()", "error"),
    "multiprocessing": ("import multiprocessing\nmultiprocessing.Process(target=print).start()", "blocked"),
    "process pool": ("import concurrent.futures as f\nreturn f.ProcessPoolExecutor().submit(int).result()", "blocked error"),  # without seccomp Landlock refuses its semaphore
    "subprocess": ("import subprocess\nreturn subprocess.check_output(['rm', 'CANARY'])", "blocked"),
    "os.system": ("import os\nreturn os.system('rm CANARY')", "blocked"),
    "os.popen": ("import os\nreturn os.popen('rm CANARY').read()", "blocked"),
    "execv": ("import os\nos.execv('/bin/rm', ['rm', 'CANARY'])", "blocked"),
    "posix_spawn": ("import os\nos.posix_spawn('/bin/rm', ['rm', 'CANARY'], {})", "blocked"),
    "pty": ("import pty\npty.spawn('/bin/sh')", "blocked"),
    "exit by os._exit": ("import os\nos._exit(0)", "error"),
    "exit by SystemExit": ("raise SystemExit(0)", "error"),
    "exit by sys.exit": ("import sys\nsys.exit(0)", "no_answer"),
    "exit by abort": ("import os\nos.abort()", "error"),
    "exit by a crash": ("import sys\nsys.setrecursionlimit(10 ** 8)\nclass A:\n def __getattr__(s, n): return getattr(s, n + n[0])\nA().x", "error memory timeout"),
    "exit by atexit": ("import atexit, os\natexit.register(lambda: open('CANARY', 'w'))\nreturn 7", "ok"),
    "kill the parent": ("import os\nos.kill(os.getppid(), 9)", "blocked"),
    "kill the group": ("import os\nos.killpg(0, 9)", "blocked"),
    "kill everything": ("import os\nos.kill(-1, 9)", "blocked"),
    "kill process 1": ("import os\nos.kill(1, 9)", "blocked"),
    "raise a signal": ("import signal\nsignal.raise_signal(9)", "memory"),
    "delete a file": ("import os\nos.remove('CANARY')", "blocked"),
    "delete a tree": ("import shutil\nshutil.rmtree('FOLDER')", "blocked"),
    "overwrite a file": ("open('CANARY', 'w').write('x')", "blocked"),
    "append to a file": ("open('CANARY', 'a').write('x')", "blocked"),
    "truncate a file": ("import os\nos.truncate('CANARY', 0)", "blocked"),
    "create a file": ("open('FOLDER/new', 'x')", "blocked"),
    "create a folder": ("import os\nos.mkdir('FOLDER/new')", "blocked"),
    "rename a file": ("import os\nos.rename('CANARY', 'FOLDER/new')", "blocked"),
    "link to a file": ("import os\nos.symlink('CANARY', 'FOLDER/new')", "blocked"),
    "change a file's mode": ("import os\nos.chmod('CANARY', 0)", "blocked"),
    "read a secret file": ("return open('CANARY').read()", "blocked"),
    "read through io": ("import io\nreturn io.FileIO('CANARY').read()", "blocked"),
    "read through codecs": ("import codecs\nreturn codecs.open('CANARY').read()", "blocked"),
    "read through linecache": ("import linecache\nreturn linecache.getline('CANARY', 1)", "blocked"),
    "read through runpy": ("import runpy\nreturn runpy.run_path('CANARY')", "blocked"),
    "read through the loader": ("import importlib.machinery as m\nreturn m.FileFinder('FOLDER').find_spec('x').origin", "blocked error"),
    "read through _io": ("import _io\nreturn _io.open('CANARY').read()", "blocked"),
    "secrets of the environment": ("import os\nreturn os.environ['CANARY_SECRET']", "error"),
    "environment through posix": ("import posix\nreturn str(posix.environ[b'CANARY_SECRET'])", "error"),
    "secrets in /proc": ("return open('/proc/self/environ').read()", "blocked"),
    "memory through /proc": ("return open('/proc/self/mem', 'rb').read(1)", "blocked"),
    "walk over /proc": ("import os\nreturn len(list(os.scandir('/proc')))", "blocked"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', PORT))", "blocked"),
    "socket through _socket": ("import _socket\n_socket.socket().connect(('127.0.0.1', PORT))", "blocked"),
    "socketpair": ("import socket\nreturn socket.socketpair()", "blocked"),
    "name look-up": ("import socket\nreturn socket.gethostbyname('example.com')", "blocked"),
    "urllib": ("import urllib.request as u\nreturn u.urlopen('http://127.0.0.1:PORT/').read()", "blocked"),
    "asyncio": ("import asyncio\nasync def f(): await asyncio.open_connection('127.0.0.1', PORT)\nasyncio.run(f())", "blocked"),
    "ctypes": ("import ctypes\nreturn ctypes.CDLL(None).system(b'rm CANARY')", "blocked"),
    "ctypes: memory": ("import ctypes\nctypes.memset(id(1), 0, 64)", "blocked error"),
    "class tree": ("c = [c for c in object.__subclasses__() if c.__name__ == '_wrap_close'][0]\nreturn c.__init__.__globals__['system']('rm CANARY')", "blocked"),
    "class tree to the importer": ("c = [c for c in object.__subclasses__() if c.__name__ == 'BuiltinImporter'][0]\nreturn c.load_module('posix').system('rm CANARY')", "blocked"),
    "frames up to the server": ("import sys\nf = sys._getframe()\nwhile f:\n f.f_locals.clear()\n s = f.f_locals.get('self')\n f = f.f_back\n if s: s.replies.append(b'x'); s.flush()\nreturn 1", "error ok blocked"),
    "patched builtins": ("import builtins\nbuiltins.len = builtins.str = builtins.float = builtins.int = builtins.repr = lambda *a: 42\nreturn 7", "ok error"),
    "patched modules": ("import math, os, json, sys\nmath.sqrt = None\nos.write = os._exit = os.getpid = os.fork = lambda *a: 0\nsys.modules.clear()\nreturn 7", "ok"),
    "patched types": ("import gc\nd = gc.get_referents(int.__dict__)[0]\nd['__repr__'] = lambda s: '42'\nreturn 7", "blocked"),
    "trace function": ("import sys\nsys.settrace(lambda *a: 1 / 0)\nsys.setprofile(lambda *a: 1 / 0)\nreturn 7", "ok error"),
    "import hook": ("import sys, builtins\nsys.meta_path.insert(0, None)\nbuiltins.__import__ = None\nreturn 7", "ok error"),
    "forged result": ("import os\nos.write(3, bytes(16) + b'ok\\x0042\\0')\nos._exit(0)", "error"),
    "forged result on every descriptor": ("import os\nfor fd in range(64):\n try: os.write(fd, b'\\0\\0\\0\\x090\\0ok\\x0042\\0')\n except OSError: pass\nos._exit(0)", "error"),
    "forged failure of the verifier": ("import os, sys\nf = sys._getframe()\nwhile f:\n for v in list(f.f_locals.values()):\n  if type(v) is bytes: os.write(3, v + b'verifier\\0\\0x')\n f = f.f_back\nos._exit(0)", "error"),
    "flood of its result": ("import os\nwhile True: os.write(3, bytes(9999))", "error"),
    "flood of output": ("import sys\nwhile True: print('x' * 10 ** 5); sys.stderr.write('y' * 10 ** 5)", "timeout"),
    "long answer": ("return 'x' * 10 ** 8", "no_answer"),
    "huge integer": ("return 10 ** 10 ** 6", "no_answer"),
    "not a number": ("return float('nan')", "no_answer"),
    "infinity": ("return -math.inf", "no_answer"),
    "complex": ("return 1j ** 2", "no_answer"),
    "hostile __float__": ("class F:\n def __float__(self):\n  while True: pass\nreturn F()", "no_answer"),
    "hostile __eq__": ("class F(float):\n def __eq__(s, o): return True\n __sub__ = __repr__ = __float__ = __lt__ = None\nreturn F(7)", "ok"),
    "hostile __str__": ("class S(str):\n def __str__(s): raise SystemExit\n strip = __len__ = isprintable = __str__\nreturn S('7')", "ok"),
    "hostile __repr__": ("class I(int):\n def __repr__(s): raise SystemExit\n __int__ = __index__ = __float__ = __repr__\nreturn I(7)", "ok"),
    "hostile __class__": ("class C:\n @property\n def __class__(s):\n  while True: pass\nreturn C()", "no_answer"),
    "hostile metaclass": ("class M(type):\n def __getattribute__(c, n):\n  while True: pass\nclass C(metaclass=M): pass\nreturn C()", "no_answer"),
    "hostile exception": ("class E(Exception):\n def __str__(s):\n  while True: pass\n __repr__ = __str__\nraise E", "error"),
    "exception with a long name": ("raise type('E' * 10 ** 6, (Exception,), {})", "error"),
    "exception named like the verifier": ("raise type('verifier: x', (Exception,), {})", "error"),
    "null character": ("return 'a\\0b'", "no_answer"),
    "limits raised again": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "blocked"),
    "garbage collector": ("import gc\nreturn len(gc.get_objects())", "blocked"),
    "new interpreter": ("import _xxsubinterpreters", "blocked error"),
    "bytecode made by hand": ("def f(): pass\nf.__code__ = f.__code__.replace(co_code=bytes([100, 255, 83, 0] * 9))\nreturn f()", "error memory timeout no_answer"),
    "numpy: read a file": ("import numpy as np\nreturn np.fromfile('CANARY', 'u1')[0]", "blocked"),
    "numpy: load a file": ("import numpy as np\nreturn np.load('CANARY', allow_pickle=True)", "blocked"),
    "numpy: text file": ("import numpy as np\nreturn np.loadtxt('CANARY')", "blocked"),
    "numpy: text from the network": ("import numpy as np\nreturn np.genfromtxt('http://127.0.0.1:PORT/x')", "blocked"),
    "numpy: map a file": ("import numpy as np\nreturn np.memmap('CANARY')[0]", "blocked"),
    "numpy: write a file": ("import numpy as np\nnp.ones(3).tofile('CANARY')", "blocked"),
    "numpy: save a file": ("import numpy as np\nnp.save('FOLDER/new', np.ones(3))", "blocked"),
    "numpy: ctypeslib": ("import numpy as np\nnp.ctypeslib.load_library('libc.so.6', '/lib').system(b'rm CANARY')", "blocked error"),
    "numpy: ctypes of a module": ("import numpy._core._internal as i\ni.ctypes.CDLL(None).system(b'rm CANARY')", "blocked"),
    "numpy: ctypes": ("import numpy, ctypes\nreturn ctypes.CDLL(None).system(b'rm CANARY')", "blocked"),
    "numpy: f2py": ("import numpy.f2py as f\nreturn f.compile('end')", "blocked error"),
    "numpy: memory": ("import numpy as np\nreturn np.ones(10 ** 9).sum()", "memory"),
    "scipy: read a file": ("import scipy.io\nreturn scipy.io.loadmat('CANARY')", "blocked"),
    "scipy: write a file": ("import scipy.io\nscipy.io.savemat('FOLDER/new', {'x': 1})", "blocked"),
    "scipy: ctypes": ("import scipy, ctypes\nreturn ctypes.CDLL(None).system(b'rm CANARY')", "blocked"),
    "scipy: processes": ("from scipy.optimize import brute\nreturn brute(abs, ((-1, 1),), workers=2)[0]", "blocked error"),
    "lambdify that runs code": ("x = sympy.Symbol('x')\nreturn sympy.lambdify(x, '__import__(\"os\").system(\"rm CANARY\")')(1)", "blocked"),
    "pickle": ("import pickle\nreturn pickle.loads(b'cposix\\nsystem\\n(S\"rm CANARY\"\\ntR.')", "blocked"),
}  # fmt: skip


def program_of(body: str) -> str:
    return "def solution():\n" + "\n".join("    " + line for line in body.split("\n"))


def solve(body: str, **settings) -> ProgramResult:
    return run_programs([program_of(body)], **({"timeout_s": 5.0, "memory_mb": 256, "workers": 1} | settings))[0]


def processes() -> dict[int, str]:
    """Command lines of all program servers and their children, by process id."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(program.SERVER) in line:
                found[int(path.parent.name)] = line
    return found


def below(pid: int) -> list[int]:
    """All descendants of a process, the older first."""
    own = runs.children(pid)
    return own + [p for child in own for p in below(child)]


def wait_for(condition, seconds: float = 5.0) -> bool:
    give_up = time.monotonic() + seconds
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def fresh_pool():
    """Before and after the test there are no servers, and all layers are on."""
    program.close()
    yield
    program.close()
    program._OFF.clear()
    program._REQUIRED = False


# ---- the hostile suite


def test_hostile_programs_between_honest_ones(tmp_path, monkeypatch):
    assert len(HOSTILE) >= 60
    canary = tmp_path / "canary"
    canary.write_text("4242")
    monkeypatch.setenv("CANARY_SECRET", "s3cret")
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        places = {"CANARY": str(canary), "FOLDER": str(tmp_path), "PORT": str(listener.getsockname()[1])}
        sources = []
        for i, (body, _) in enumerate(HOSTILE.values()):
            for name, value in places.items():
                body = body.replace(name, value) if f"{name}_SECRET" not in body else body
            sources += [program_of(body), f"def solution():\n    return {i} * 3 + math.sqrt(4)"]
        # bombs are over sooner than 4 s, on a busy machine too
        results = run_programs(sources, timeout_s=4.0, memory_mb=128, workers=2)
        with pytest.raises(BlockingIOError):
            listener.accept()
    wrong = [
        (name, result)
        for (name, (_, legal)), result in zip(HOSTILE.items(), results[::2], strict=True)
        if result.status not in legal.split() or (result.value is None) != (result.status != "ok")
    ]
    assert wrong == []
    assert [r.value for r in results[1::2]] == [str(float(3 * i + 2)) for i in range(len(HOSTILE))]
    assert not any(r.detail.startswith("verifier:") for r in results)
    assert canary.read_text() == "4242" and sorted(p.name for p in tmp_path.iterdir()) == ["canary"]
    launchers = [server.process.pid for server in program._SERVERS]
    assert wait_for(lambda: sum(len(below(pid)) for pid in launchers) == 2 * len(launchers))  # servers and their moulds
    assert solve("return 6") == ProgramResult("ok", "6")
    assert time.monotonic() - start < 60


def test_what_was_tried_is_told():
    assert solve("import os\nos.system('true')").detail == "os.system"
    assert solve("open('/etc/passwd')").detail == "open"
    assert solve("import socket\nsocket.socket()").detail == "socket.__new__"


# ---- each layer alone

OPEN_FILES = "import os\nfor n in range(999):\n try: os.dup(0)\n except OSError: break\nreturn n < 70"
# layer: (what else is off, so that this one is seen; the program; what is true of its result with the layer alone on)
ALONE = {
    "hook": ("landlock seccomp", "return len(open('/etc/passwd').read())", lambda r: r.detail == "open"),
    "seccomp": ("hook user net pid", "import socket\nsocket.socket()\nreturn 1", lambda r: r.detail == "system call at line 3"),
    "landlock": ("hook seccomp", "return len(open('/etc/passwd').read())", lambda r: r.detail.startswith("PermissionError")),
    "user": ("hook seccomp landlock", "return len(open('/proc/self/uid_map').read().split()[2])", lambda r: r.value == "1"),
    "net": ("hook seccomp landlock", "return len(open('/proc/self/net/dev').read().split('lo:')) == 2 and len(open('/proc/self/net/dev').readlines())", lambda r: r.value == "3"),
    "pid": ("hook seccomp landlock", "import os\nreturn os.getppid()", lambda r: r.value == "1"),
    "ipc": ("hook seccomp landlock", "import os\nreturn os.readlink('/proc/self/ns/ipc')", lambda r: r.value != os.readlink("/proc/self/ns/ipc")),
    "privileges": ("hook seccomp landlock", "return open('/proc/self/status').read().split('NoNewPrivs:')[1].split()[0]", lambda r: r.value == "1"),
    "capabilities": ("hook seccomp landlock", "return open('/proc/self/status').read().split('CapEff:')[1].split()[0]", lambda r: r.value == "0" * 16),
    "memory": ("", "return len(bytearray(2 ** 30))", lambda r: r.status == "memory"),
    "cpu": ("clock", "while True: pass", lambda r: r.status == "timeout"),
    "processes": ("", "import resource\nreturn resource.getrlimit(resource.RLIMIT_NPROC)[1]", lambda r: r.value == "0"),
    "open_files": ("hook", OPEN_FILES + " and 1 or 2", lambda r: r.value == "1"),
    "file_size": ("hook seccomp landlock", "f = open('FILE', 'w')\nf.write('x')\nf.close()\nreturn 1", lambda r: r.value is None),
    "core": ("", "import resource\nreturn resource.getrlimit(resource.RLIMIT_CORE)[1]", lambda r: r.value == "0"),
    "environment": ("", "import os\nreturn len(os.environ)", lambda r: r.value == "0"),
    "descriptors": ("hook seccomp landlock", "import os\nreturn max(map(int, os.listdir('/proc/self/fd')[:-1]))", lambda r: r.value == "3"),
    "clock": ("cpu", "import time\ntime.sleep(60)", lambda r: r.status == "timeout"),
}  # fmt: skip


@linux
@pytest.mark.parametrize("layer", ALONE)
def test_each_layer_holds_and_does_not_when_it_is_off(layer, fresh_pool, monkeypatch, tmp_path):
    assert set(ALONE) == set(sandbox.LAYERS)
    if reason := program.layers()[layer]:
        pytest.skip(reason)
    monkeypatch.setattr(program, "MAX_DEATHS", 1)
    if layer == "core" and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("core dumps are off for all here")
    off, body, held = ALONE[layer]
    for broken in (False, True):
        program.close()
        monkeypatch.setattr(program, "GRACE_S", 3.0 if broken else 30.0)  # to spend a second of CPU may take long
        program._OFF.clear()
        program._OFF.update(off.split() + ["clock"] * (layer == "cpu") + [layer] * broken)
        try:
            result = solve(body.replace("FILE", str(tmp_path / "file")), timeout_s=0.5)
        except VerifierError:  # without its clock a server does not answer: the caller gives it up
            result = ProgramResult("error", detail="verifier")
        assert bool(held(result)) is not broken, result


@linux
def test_require_names_the_missing_layer_and_auto_runs(fresh_pool, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "rewards"
    folder.mkdir()
    for name in ("program_server.py", "sandbox.py"):
        shutil.copy(ROOT / "reft_jax" / "rewards" / name, folder)
    broken = (folder / "sandbox.py").read_text().replace("call(libc.syscall(444", "call(-libc.syscall(444")
    (folder / "sandbox.py").write_text(broken)
    monkeypatch.setattr(program, "SERVER", folder / "program_server.py")
    assert program.layers()["landlock"] and not program.layers()["memory"]
    with pytest.raises(InputError, match="require.*missing layers:.*landlock"):
        program.use_sandbox("require")
    program.use_sandbox("auto")
    assert solve("return 5").value == "5"
    assert program.main(["--check"]) == 1
    assert "\nno   landlock" in capsys.readouterr().out
    assert program.main([]) == 2
    program.close()
    program._REQUIRED = True
    with pytest.raises(VerifierError, match="landlock"):
        solve("return 5")


@linux
def test_check_prints_a_line_for_each_layer(capsys):
    code = program.main(["--check"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(sandbox.LAYERS) and code == any(line.startswith("no") for line in lines)


@linux
def test_programs_run_as_a_normal_user():
    """The same as root and as nobody, where there is a Python that nobody may run."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    script = (
        "from reft_jax.rewards.program import layers, run_programs\n"
        "bad = 'def solution():\\n    import os\\n    os.fork()'\n"
        "r = run_programs(['def solution():\\n    return 5', bad, 'def solution():\\n    while True: pass'], timeout_s=.5)\n"
        "assert [x.status for x in r] == ['ok', 'blocked', 'timeout'], r\n"
        "print(*(name for name, reason in layers().items() if reason))\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "PATH": os.environ["PATH"]}
    ready = "import os, sys, sympy, reft_jax; assert sys.version_info >= (3, 11) and os.access(sys.executable, os.X_OK)"
    for python in (sys.executable, "/usr/bin/python3"):
        command = [*nobody, python, "-c"]
        if subprocess.run([*command, ready], env=environment, capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("there is no Python that nobody may run")
    done = subprocess.run([*command, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Mounts a folder's entries again where they are, below a folder of the same name that anyone may enter.
OPEN = """
set -e
for closed in $CLOSED; do
    behind=$(mktemp -d)
    mount --rbind "$closed" "$behind"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    for entry in $(ls -A "$behind"); do
        if [ -L "$behind/$entry" ]; then cp -P "$behind/$entry" "$closed/"; continue; fi
        if [ -d "$behind/$entry" ]; then mkdir "$closed/$entry"; else touch "$closed/$entry"; fi
        mount --rbind "$behind/$entry" "$closed/$entry"
    done
done
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


@linux
@pytest.mark.slow
def test_the_suite_and_every_layer_as_a_normal_user():
    """Nobody runs the tests above, in a mount namespace in which nobody may enter the folders above this Python and this checkout."""
    if os.getuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("needs root, setpriv and unshare")
    places = [pathlib.Path(p) for p in (sys.executable, os.path.realpath(sys.executable), sys.base_prefix, ROOT)]
    closed = sorted({str(p) for place in places for p in place.parents if not p.stat().st_mode & 1})
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        # Nobody has no capabilities that could be seen to go.
        tests = [
            "tests/test_hostile.py",
            "-k",
            "between_honest_ones or each_layer_holds and not capabilities",
            "-m",
            "not slow",
        ]
        command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", f"--basetemp={folder}/t"]
        command += ["-p", "no:xdist", "-p", "no:hypothesispytest"]
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", OPEN, "bash", *command, *tests],
            env=os.environ | dict(CLOSED=" ".join(closed), HOME=folder, PYTHONDONTWRITEBYTECODE="1", TMPDIR=folder),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0 and done.stdout.count("PASSED") >= len(ALONE) - 1, done.stdout + done.stderr


# ---- the pool


def test_any_process_of_the_pool_may_be_killed_at_any_moment():
    """Launchers, servers and children are shot at while programs run: each program still gets its own value."""
    sources = [program_of(f"import time\ntime.sleep(.005)\nreturn {i}") for i in range(300)]
    done, shots = threading.Event(), []

    def shoot():
        while not done.wait(0.12) and len(shots) < 5:
            servers = [(s.process.pid, below(s.process.pid)) for s in list(program._SERVERS)]
            victims = [([pid] + rest)[len(shots) % 2] for pid, rest in servers if rest]
            if victims:
                shots.append(victims[0])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victims[0], signal.SIGKILL)

    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        results = run_programs(sources, timeout_s=10.0, workers=2)
    finally:
        done.set()
        thread.join()
    faults = [r for r in results if r.value is None]
    assert shots and all(r.detail.startswith("verifier:") for r in faults) and len(faults) <= 2
    assert all(r.value in (str(i), None) for i, r in enumerate(results))


def test_a_killed_child_costs_only_its_program(fresh_pool):
    solve("return 1")
    (server,) = below(program._SERVERS[0].process.pid)[:1]
    results = []
    thread = threading.Thread(
        target=lambda: results.extend(
            run_programs([program_of("import time\ntime.sleep(9)"), program_of("return 2")], timeout_s=20.0, workers=1)
        )
    )
    thread.start()
    assert wait_for(lambda: len(below(server)) == 2)  # its mould and the program
    time.sleep(0.3)
    os.kill(below(server)[1], signal.SIGKILL)
    thread.join()
    assert [r.status for r in results] == ["memory", "ok"]


@linux
def test_a_server_whose_mould_was_killed_is_replaced(fresh_pool):
    assert solve("return 1").value == "1"
    server, mould = below(program._SERVERS[0].process.pid)[:2]
    os.kill(mould, signal.SIGKILL)
    assert solve("return 2") == ProgramResult("ok", "2")
    assert server not in below(program._SERVERS[0].process.pid)


def test_where_no_process_can_be_made_the_verifier_is_at_fault(fresh_pool):
    program._OFF.add("fork")
    result = solve("return 1")
    assert result.status == "error" and result.detail.startswith("verifier: no process could be made")


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_and_no_folder_for_temporary_files_do_not_matter(fresh_pool, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/full/none")
    with open("/dev/full", "w") as full:
        saved = os.dup(2)
        os.dup2(full.fileno(), 2)  # what a server has to say cannot be written
        try:
            assert solve("return 4") == ProgramResult("ok", "4")
            assert solve("return sympy.Integer(4)") == ProgramResult("ok", "4")
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@linux
def test_an_interrupt_of_the_caller_leaves_no_process_behind():
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background of a shell ignores it
        "from reft_jax.rewards.program import run_programs\n"
        "run_programs(['def solution():\\n    return 1'])\n"
        "print('ready', flush=True)\n"
        "run_programs(['def solution():\\n    while True: pass'] * 6, timeout_s=300.0, workers=2)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as caller:
        try:
            assert caller.stdout.readline() == "ready\n"
            assert wait_for(lambda: len(below(caller.pid)) >= 8)
            family = below(caller.pid)
            caller.send_signal(signal.SIGINT)
            assert caller.wait(20) != 0 and "KeyboardInterrupt" in caller.stderr.read()
        finally:
            caller.kill()

    def ended(pid: int) -> bool:
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    assert wait_for(lambda: all(map(ended, family)))


def resident_kb() -> int:
    """Of the servers when they rest: every program's process has been waited for."""
    assert wait_for(lambda: all(len(below(s.process.pid)) == 2 for s in program._SERVERS))
    pids = [pid for s in program._SERVERS for pid in [s.process.pid, *below(s.process.pid)]]
    lines = [line for pid in pids for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def many_in_a_row(number: int) -> None:
    """Memory and descriptors after `number` programs are those after a thousand."""
    sources = [program_of(f"return {i}" if i % 50 else "return 1 / 0") for i in range(1000)]
    run_programs(sources, workers=2, timeout_s=20.0)
    before = resident_kb()
    for _ in range(number // len(sources)):
        results = run_programs(sources, workers=2, timeout_s=20.0)
        assert all(r.value == str(i) for i, r in enumerate(results) if i % 50)
    assert resident_kb() - before < 2000


@linux
def test_memory_stays_flat(fresh_pool):
    many_in_a_row(2_000)


@linux
@pytest.mark.slow
def test_memory_stays_flat_over_a_hundred_thousand_programs(fresh_pool):
    many_in_a_row(100_000)


def test_endless_programs_do_not_hold_up_the_others():
    """2 % of a batch without end: the batch takes its timeout and little more."""
    sources = [program_of("while True: pass" if i % 50 == 7 else f"return {i}") for i in range(256)]
    run_programs(sources[:2], workers=2, timeout_s=0.1)
    start = time.monotonic()
    results = run_programs(sources, timeout_s=2.0, workers=2)
    assert time.monotonic() - start < 6.0  # about 2.3 s where nothing else runs
    assert [r.status for r in results] == ["timeout" if i % 50 == 7 else "ok" for i in range(256)]
