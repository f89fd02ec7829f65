"""What all commands share: their arguments, --help, `~`, and how they end where nobody reads, nothing can be shown, or there is no device."""

import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from reft_jax import commands, convert, main, recipe, rescore
from reft_jax.commands import SWITCH, Flag
from reft_jax.config.paths import expanded
from reft_jax.errors import InputError, Stop
from reft_jax.report import __main__ as report
from tests import runs

MODULES = ("main", "compile", "convert", "doctor", "fetch", "rescore", "report", "tables")
KNOWN = {
    "FILE": Flag(),
    "--to": Flag(needed=True),
    "--num-rows": Flag(commands.whole(1), default=7),
    "--form": Flag(commands.one_of("csv", "html")),
    "--more": Flag(several=True),
    "--watch": Flag(float, bare=30.0),
    "--all": SWITCH,
    "--config.": Flag(several=True),
}
NONE = dict(FILE=None, to="x", num_rows=7, form=None, more=(), watch=None, all=False) | {"config.": ()}


def parsed(*argv) -> dict:
    return commands.parse(argv, "What it does.\n\n    it [--to=FILE]\n", KNOWN)


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["--to=x"], {}),
        (["--to", "x", "a b"], {"FILE": "a b"}),
        (["--to=y=z", "--to", "x"], {}),  # the last counts
        (["--to=x", "--num-rows", "3", "--form=csv"], {"num_rows": 3, "form": "csv"}),
        (["--more=a", "--to=x", "--more", "-b"], {"more": ("a", "-b")}),
        (["--to=x", "--watch", "a"], {"watch": 30.0, "FILE": "a"}),
        (["--to=x", "--watch=2", "--all"], {"watch": 2.0, "all": True}),
        (["--config.a.b=", "--to=x", "--config.c", "1"], {"config.": (("a.b", ""), ("c", "1"))}),
    ],
)
def test_what_is_read(argv, given):
    assert parsed(*argv) == NONE | given


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--to is missing"),
        (["--to"], "--to needs a value"),
        (["--to="], "--to needs a value"),
        (["--to", "--all"], "--to needs a value"),
        (["--al", "--to=x"], "unknown argument '--al'; did you mean '--all'?"),
        (["--num_rows=3"], "unknown argument '--num_rows'; did you mean '--num-rows'?"),
        (["-a"], "unknown argument '-a'"),
        (["--config.=3"], "unknown argument '--config.'"),
        (["--hepl"], "did you mean '--help'?"),
        (["--all=yes"], "--all takes no value; got 'yes'"),
        (["--num-rows=0"], "--num-rows: got '0'; it must be a whole number from 1"),
        (["--num-rows=²"], "--num-rows: got '²'"),
        (["--form=htm"], "--form: got 'htm'; did you mean 'html'? legal are csv, html"),
        (["a", "b"], "one FILE at a time: got 'a' and 'b'"),
    ],
)
def test_what_is_refused(argv, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        parsed(*argv)
    assert ("usage:\n    it [--to=FILE]" in str(caught.value)) != (": got" in str(caught.value) and "time" not in said)


HELP = """
import io, runpy, sys, contextlib
for name in sys.argv[1].split():
    sys.argv = [name, "--nonsense", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_module(f"reft_jax.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, (name, end.code)
    assert f"python -m reft_jax.{name}" in printed.getvalue(), name
    assert len(printed.getvalue().splitlines()) > 6
    assert not {"jax", "transformers", "matplotlib"} & set(sys.modules), name
"""


def test_help_comes_before_anything_else():
    command = [sys.executable, "-c", HELP, " ".join(MODULES)]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ ~


def test_a_home_is_spelt_out_wherever_a_path_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main.parse(["--config=demo", "--workdir=~/run"])[1] == f"{tmp_path}/run"
    assert convert.parse(["--from=~/a", "--to", "~/b"])[:2] == (tmp_path / "a", tmp_path / "b")
    assert rescore.parse(["~/run"])["WORKDIR"] == tmp_path / "run"
    assert report.parse(["~/run", "--output=~/r.html"])["output"] == tmp_path / "r.html"
    assert expanded("a/~b") == pathlib.Path("a/~b")
    with pytest.raises(InputError, match="~no_such_user_here/x: there is no such user"):
        expanded("~no_such_user_here/x")


def test_a_record_has_the_path_and_config_json_what_was_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_bytes((runs.ROOT / "configs/reft.py").read_bytes())
    spec = "~/mine.py:data=svamp,cot=nl,model=~/model,train_file=~/t.json,test_file=~/t.json"
    made, tree = recipe.load(spec, [("stages.warmup.init_from", "~/base"), ("stages.evaluate.checkpoints.sft", "~/b")])
    assert (made.data.train_file, made.model.directory) == (f"{tmp_path}/t.json", f"{tmp_path}/model")
    assert dict(made.stages)["warmup"].init_from == f"{tmp_path}/base"
    assert dict(dict(made.stages)["evaluate"].checkpoints)["sft"] == f"{tmp_path}/b"
    assert (tree["data"]["train_file"], tree["stages"]["warmup"]["init_from"]) == ("~/t.json", "~/base")
    with pytest.raises(
        InputError, match="config.data.train_file: got ~no_such_user_here/t.json: there is no such user"
    ):
        recipe.load(spec, [("data.train_file", "~no_such_user_here/t.json")])


# ------------------------------------------------------------------ consoles

WORKS = """
import subprocess, sys, threading, warnings
from reft_jax import commands

@commands.command({how})
def main(argv):
    open("record", "w").close()
    subprocess.run([sys.executable, "-c", "import os; [os.fstat(number) for number in range(3)]"], check=True)
    def say(i):
        for _ in range(200):
            print(f"line of thread {{i}}", file=(sys.stdout, sys.stderr)[i % 2], flush=True)
    threads = [threading.Thread(target=say, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    warnings.warn("a warning")
    for i in range(20000):
        print("a line without flush", i)
    open("record", "a").write("done")
    return 5

sys.exit(main([]))
"""


def worked(folder, script: str, **how) -> subprocess.CompletedProcess:
    """The script in a shell's hands: `python` in `script` is the command above."""
    python = f'"{sys.executable}" -c "$WORKS"'
    environment = os.environ | dict(PYTHONPATH=str(runs.ROOT), WORKS=WORKS.format(how=how.get("how", "")))
    command = ["bash", "-c", script.replace("python", python)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "script",
    [
        "python | head -c 5 >out; echo ${PIPESTATUS[0]}",
        "python 2>&1 >/dev/null | head -c 5 >out; echo ${PIPESTATUS[0]}",
        "python 2>&1 | true; echo ${PIPESTATUS[0]}",
        "python >&-; echo $?",
        "python 2>&- >out; echo $?",
        "python <&- >&- 2>&-; echo $?",
        "python >/dev/full 2>/dev/full; echo $?",
    ],
)
def test_work_goes_on_without_its_readers(tmp_path, script):
    done = worked(tmp_path, script)
    assert done.stdout == "5\n" and (tmp_path / "record").read_text() == "done"
    assert "Error" not in done.stderr and "Exception" not in done.stderr


def test_what_only_prints_ends_quietly_with_its_reader(tmp_path):
    done = worked(tmp_path, "python 2>err | head -n 1 >out; echo ${PIPESTATUS[0]}", how="unread=3")
    assert done.stdout == "3\n" and "done" not in (tmp_path / "record").read_text()
    said = (tmp_path / "err").read_text()
    assert "Error" not in said and "Exception" not in said and said.count("line of thread") == 400


def test_what_only_prints_says_that_its_output_was_cut_short(tmp_path):
    done = worked(tmp_path, "python >/dev/full 2>err; echo $?", how="unread=3")
    assert done.stdout == "1\n" and "the disk is full (standard output)" in (tmp_path / "err").read_text()


def test_what_the_console_cannot_show_is_escaped(tmp_path):
    code = (
        "import sys\nfrom reft_jax import commands\nfrom reft_jax.errors import InputError\n"
        "@commands.command()\ndef main(argv):\n    print(argv[0], sys.getfilesystemencoding())\n"
        "    raise InputError(argv[0])\nsys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "it.py").write_text(code)
    strange = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii", PYTHONPATH=str(runs.ROOT))
    command = [sys.executable, "it.py", "né ½"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | strange, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == "n\\xe9 \\xbd utf-8\n" and done.stderr == "error: n\\xe9 \\xbd\n"


def test_how_a_command_ends(capsys):
    def ends(raised, **how):
        @commands.command(**how)
        def main(argv):
            raise raised

        return main([]), capsys.readouterr().err.strip()

    assert ends(InputError("no")) == (2, "error: no")
    assert ends(commands.RunError("lost")) == (1, "error: lost")
    assert ends(KeyboardInterrupt()) == (130, "stopped by Ctrl-C")
    assert ends(KeyboardInterrupt(), stopped=(1, "so far")) == (1, "so far")
    assert ends(BrokenPipeError(), unread=0) == (0, "")
    code, said = ends(OSError(28, "No space left on device", "here"))
    assert code == 1 and said.startswith("error: the disk is full (here)") and "the same command again" in said
    for other in (RuntimeError("x"), OSError(2, "x"), BrokenPipeError()):
        with pytest.raises(type(other)):
            ends(other)


# ------------------------------------------------------------------ signals


def test_a_hangup_asks_to_stop_unless_it_is_ignored(capfd):
    for handler, asked in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            stop = Stop()
            with stop.listening():
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.01)
                assert stop.requested == asked
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, before)


def test_in_a_thread_a_command_runs_without_signals(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main.main(["--config=no_such_config", "--workdir=x"])))
    thread.start()
    thread.join()
    assert codes == [2] and "no file 'no_such_config'" in capsys.readouterr().err


# ------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    ("environment", "device", "platforms"),
    [
        ({}, None, "cpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None, "cpu"),  # JAX's own
        ({"JAX_PLATFORMS": "tpu"}, None, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, None, None),
        ({"JAX_FORCE_TPU_INIT": "1"}, None, None),
        ({}, "/dev/accel0", None),
        ({}, "/dev/vfio/0", None),
        ({}, "/dev/nvidia0", None),
        ({}, "/dev/dxg", None),
    ],
)
def test_libtpu_is_left_alone_where_there_is_no_tpu(environment, device, platforms, monkeypatch):
    there = [pathlib.PurePath(device)] if device else []
    monkeypatch.setattr(commands.glob, "glob", lambda pattern: [str(d) for d in there if d.match(pattern)])
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: name)
    commands.leave_libtpu_alone(environment)
    assert environment.get("JAX_PLATFORMS") == platforms
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    commands.leave_libtpu_alone(environment := {})
    assert environment == {}


ASKS = """
import os, sys
from reft_jax import commands

@commands.command()
def main(argv):
    import jax
    jax.numpy.asarray([1.0]) if argv else jax.devices()

for name, argv in (("nonsense", []), ("cuda", []), ("cuda", ["array"])):
    if not os.fork():
        os.environ["JAX_PLATFORMS"] = name
        code = main(argv)
        sys.stderr.flush()
        os._exit(code)
    print(name, os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_platform_that_is_not_there_is_one_error():
    done = subprocess.run([sys.executable, "-c", ASKS], cwd=runs.ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "nonsense 2\ncuda 2\ncuda 2\n", done.stdout + done.stderr
    first, second, third = done.stderr.splitlines()
    assert first.startswith(
        "error: JAX_PLATFORMS='nonsense': JAX cannot begin: Unable to initialize backend 'nonsense'"
    )
    assert "'cpu'" in first and "set JAX_PLATFORMS=cpu" in first
    assert second.startswith("error: JAX_PLATFORMS='cuda': JAX cannot begin: no device of that kind is visible here")
    assert third == second


def test_a_device_that_is_busy_is_a_failure_and_no_bad_input():
    for text, expected in (
        ("Unable to initialize backend 'tpu': UNAVAILABLE: in use. (set JAX_PLATFORMS='' to automatically ...)", 1),
        ("Unable to initialize backend 'tpu': NOT_FOUND: no device", 2),
    ):
        told, code = commands.no_device(RuntimeError(text))
        assert code == expected and "automatically" not in told and ".." not in told.replace("'.[", "")
    for other in (RuntimeError("RESOURCE_EXHAUSTED"), AssertionError(), AssertionError("wrong")):
        assert commands.no_device(other) == ("", 0)


@pytest.fixture(autouse=True)
def captured():
    """pytest stands in for the console: commands leave it alone."""
    before = sys.stdout, sys.stderr
    yield
    assert (sys.stdout, sys.stderr) == before and isinstance(sys.stdout, io.TextIOBase)
