"""What a run shows while it goes: the progress line, event files, W&B, traces, and what Ctrl-C says."""

import contextlib
import fcntl
import gzip
import importlib.util
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
import types

import jax
import numpy as np
import pytest

from reft_jax import main as main_lib
from reft_jax import recipe
from reft_jax.config import packages
from reft_jax.config import settings as settings_lib
from reft_jax.errors import InputError, Preempted, Stop
from reft_jax.mesh import distributed
from reft_jax.run import profiler, progress, trackers, workdirs
from tests import runs

DEMO = f"--config={runs.ROOT / 'configs/demo.py'}:smoke"
LINE = re.compile(
    r"reft step \d/5 \|[^|]+\|( \d+:\d\d left| in \d+:\d\d)?(  ?dev \d+/40)?((  ?)(reward 0\.\d{3}|KL \d\.\d\d|tokens/s 1,240))*"
)
END = "reward 0.812  KL 0.93  tokens/s 1,240"
SHOWN = {"reward": "0.812", "KL": "0.93", "tokens/s": "1,240"}


def stand_in(workdir, **logging):
    """What trackers and profiler read of a run."""
    (workdir / "reft").mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text('{"config": {"seed": 0}}')
    config = types.SimpleNamespace(logging=settings_lib.Logging(**logging), kind=lambda name: name)
    return types.SimpleNamespace(workdir=workdir, config=config, folder=lambda name: workdir / name)


@pytest.fixture
def clock(monkeypatch):
    """The time that progress lines see; a test sets now[0]."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


# ------------------------------------------------------------------ the progress line


def test_plain_lines_are_calm_and_say_what_a_terminal_would(clock, capfd):
    bar = progress.Progress("reft", 7200, 0)
    for step in range(1, 7201):  # two hours
        clock[0] += 1.0
        bar.phase("dev", step % 40, 40)  # passes quickly
        bar.update(step, **SHOWN)
    bar.close()
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed.err)
    assert 30 <= len(lines) <= 90 and lines[0] == f"reft: step 15/7,200  1:59:45 left  {END}"
    assert not any("dev" in line for line in lines)
    assert lines[-1] == "reft: step 7,200/7,200  in 2:00:00  " + END
    halfway = next(line for line in lines if int(line.split()[2].split("/")[0].replace(",", "")) >= 3600)
    minutes, _ = map(int, re.search(r"  (\d+):(\d+) left", halfway).groups())
    assert 55 <= minutes <= 60  # a step a second


def test_a_long_phase_is_shown_and_forgotten(clock, capfd):
    bar = progress.Progress("reft", 2, waiting="compiling")
    for name, total in (("sampling", 256), ("dev", 40)):
        for done in range(1, total + 1):
            clock[0] += 0.5
            bar.phase(name, done, total)
    bar.update(1, **SHOWN)
    clock[0] += 20.0
    bar.update(2, **SHOWN)
    first, *phases, last = capfd.readouterr().err.splitlines()
    assert first == "reft: step 0/2  compiling" and last == f"reft: step 2/2  in 2:48  {END}"
    assert phases[0] == "reft: step 0/2  sampling 30/256" and phases[-1].startswith("reft: step 0/2  dev ")
    bar.close()


def test_the_first_steps_do_not_spoil_the_time_left(clock, capfd):
    bar = progress.Progress("sft", 1000, 500, waiting="compiling")  # resumed
    clock[0] += 300.0  # compiles
    bar.update(501)
    for step in range(502, 702):
        clock[0] += 2.0
        bar.update(step)
    first, *_, last = capfd.readouterr().err.splitlines()
    assert first == "sft: step 500/1,000  compiling"
    done, minutes, seconds = map(int, re.search(r"step (\d+)/1,000  (\d+):(\d+) left", last).groups())
    assert done > 680 and 60 * minutes + seconds == 2 * (1000 - done)
    bar.close()


@pytest.fixture
def terminal(monkeypatch):
    """(columns) -> a function that gives all that was written, standard error being a terminal of that width until then."""
    master, slave = pty.openpty()
    file, parts = open(slave, "w", encoding="utf-8"), []

    def collect():
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(master, 1 << 16):
                parts.append(part)

    reader = threading.Thread(target=collect)

    def make(columns):
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        monkeypatch.setattr(sys, "stderr", file)
        reader.start()

        def written():
            file.close()
            reader.join()
            return b"".join(parts).decode()

        return written

    yield make
    os.close(master)


@pytest.mark.parametrize("columns", [200, 80, 61, 34])
def test_a_terminal_line_is_redrawn_in_place_and_fits(terminal, clock, columns):
    written = terminal(columns)
    bar = progress.Progress("reft", 5)
    for step in range(1, 6):
        for done in range(1, 41):
            clock[0] += 0.5
            bar.phase("dev", done, 40)
        bar.update(step, **SHOWN)
    progress.clear()  # as after an exception
    drawn = written()
    assert "\n" not in drawn and "\x1b" not in drawn
    lines = [line.rstrip() for line in drawn.split("\r") if line.strip()]
    assert len(lines) > 50 and max(map(len, lines)) < columns
    assert all(LINE.fullmatch(line) for line in lines), lines  # what does not fit is left out whole
    if columns >= 80:
        assert lines[-1].endswith(f"in 1:40  {END}") and "step 5/5" in lines[-1]
        assert any("dev 17/40" in line for line in lines)
    assert drawn.endswith("\r") and not drawn.split("\r")[-2].strip()  # wiped: messages begin in its place


def test_only_the_first_process_shows_anything(clock, capfd, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    bar = progress.Progress("reft", 2)
    bar.phase("dev", 1, 2)
    bar.update(2)
    bar.close()
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------ event files and W&B


def write_steps(run, steps, after_step):
    metrics = trackers.Metrics(run, "reft", after_step=after_step)
    for step in steps:
        kl = np.float32("nan") if step == 3 else np.float32(0.25 * step)
        metrics.write({"step": step, "epoch": step / 8, "time": 1e9 + step, "kl/mean": kl, "note": "text"})
    return metrics


@pytest.mark.parametrize("before", [True, False], ids=["resumed", "turned on late"])
def test_event_files_say_what_metrics_jsonl_says(tmp_path, before):
    first = write_steps(stand_in(tmp_path, tensorboard=before), range(6), after_step=-1)
    first.close()
    second = write_steps(stand_in(tmp_path), range(3, 8), after_step=2)  # killed, and resumed from step 2
    lines = runs.lines(tmp_path / "reft" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(8))
    expected = [{k: v for k, v in line.items() if v is not None and k != "note"} for line in lines]
    assert runs.event_file(tmp_path / "reft") == expected  # on disk before it is closed
    assert "kl/mean" not in expected[3] and expected[4]["kl/mean"] == 1.0
    second.close()


def test_other_processes_and_other_settings_write_no_event_files(tmp_path, monkeypatch):
    write_steps(stand_in(tmp_path / "off", tensorboard=False), range(2), after_step=-1).close()
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    write_steps(stand_in(tmp_path / "second"), range(2), after_step=-1).close()
    assert not list(tmp_path.rglob("events.*")) and len(list(tmp_path.rglob("metrics.jsonl"))) == 1


class FakeRun:
    """W&B's run, as far as it is used."""

    def __init__(self, settings):
        self.settings, self.logged, self.dir, self.url = settings, [], "there/files", "https://there"

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.logged.append("finished")


def test_wandb_is_sent_every_step_once(tmp_path, monkeypatch):
    begun = []
    fake = types.SimpleNamespace(
        init=lambda **settings: begun.append(FakeRun(settings)) or begun[-1],
        Settings=dict,
        errors=types.SimpleNamespace(Error=OSError),
        run=None,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    write_steps(stand_in(tmp_path), range(2), after_step=-1).close()  # before it was turned on
    logging = dict(tensorboard=False, wandb="offline", wandb_project="p")
    killed = write_steps(stand_in(tmp_path, **logging), range(2, 6), after_step=1)
    write_steps(stand_in(tmp_path, **logging), range(3, 8), after_step=2).close()
    (first, second), ids = begun, {run.settings["id"] for run in begun}
    assert [step for step, _ in first.logged] == list(range(6))  # what was written before is sent too
    assert [entry[0] for entry in second.logged[:-1]] == [6, 7] and second.logged[-1] == "finished"
    assert len(ids) == 1 and first.settings["project"] == "p" and first.settings["mode"] == "offline"
    assert first.settings["config"] == {"config": {"seed": 0}} and first.settings["name"] == f"{tmp_path.name}/reft"
    assert first.logged[3][1] == {"epoch": 3 / 8}  # neither the NaN nor the text
    killed.close()


@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_wandb_offline_writes_a_folder(tmp_path, capfd):
    pytest.importorskip("wandb")
    write_steps(stand_in(tmp_path, wandb="offline"), range(3), after_step=-1).close()
    [folder] = (tmp_path / "reft" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
    out = capfd.readouterr().out
    assert re.search(r"reft: W&B: wandb sync \S+offline-run-", out), out
    assert json.loads((tmp_path / "reft" / "wandb" / "sent.json").read_text())["step"] == 2


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "flags, message",
    [
        (["logging.tensorbord=True"], "config.logging.tensorbord: unknown key; did you mean 'tensorboard'?"),
        (["logging.wandb=ofline"], "config.logging.wandb: got 'ofline'; did you mean 'offline'? legal are off, offline, online"),
        (["logging.profile_steps=(3,)"], "config.logging.profile_steps: got (3,); it must be (first, last)"),
        (["logging.profile_steps=(5,4)"], "config.logging.profile_steps: got (5, 4); it must be (first, last)"),
        (["logging.profile_steps=(0,4)"], "config.logging.profile_steps: got 0; it must be >= 1"),
        (["logging.wandb=offline", "logging.wandb_project="], "config.logging.wandb_project: got ''"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(flags, message, tmp_path, capfd):
    assert main_lib.main([DEMO, f"--workdir={tmp_path / 'run'}", *(f"--config.{flag}" for flag in flags)]) == 2
    assert message in capfd.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag, package, extra",
    [("tensorboard=True", "tensorboardX", "pip install -e ."), ("wandb=offline", "wandb", "pip install -e '.[wandb]'")],
)
def test_a_missing_package_is_said_before_a_device_is_touched(flag, package, extra, tmp_path, capfd, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    monkeypatch.setattr(distributed, "initialize", lambda flags: pytest.fail("came to the devices"))
    assert main_lib.main([DEMO, f"--workdir={tmp_path / 'run'}", f"--config.logging.{flag}"]) == 2
    error = capfd.readouterr().err
    assert f"config.logging.{flag.partition('=')[0]}: got" in error and package in error and extra in error
    assert not (tmp_path / "run").exists()


def test_wandb_online_needs_a_key(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(login=lambda prompt: False))
    monkeypatch.setattr(packages, "load", lambda name, *attributes: sys.modules.get(name))
    with pytest.raises(InputError, match="config.logging.wandb: got 'online'.*WANDB_API_KEY.*offline"):
        trackers.check(settings_lib.Logging(wandb="online"))


def test_how_a_run_is_watched_may_change_and_may_be_new(tmp_path):
    """A workdir from before config.logging goes on, and so does one with other settings of it; nothing else may change."""
    _, tree = recipe.load(DEMO.removeprefix("--config="))
    config, before = {key: value for key, value in tree.items() if key != "logging"}, tmp_path / "config.json"
    for stage in tree["stages"]:
        (tmp_path / stage).mkdir()
    before.write_text(json.dumps({"config": config}))
    workdirs.check(tmp_path, tree, recipe.binding)
    assert recipe.build(config) == recipe.build(tree)
    before.write_text(json.dumps({"config": tree | {"logging": {"wandb": "offline", "gone": 1}}}))
    workdirs.check(tmp_path, tree, recipe.binding)
    with pytest.raises(InputError, match="config.seed: there 0, now 1"):
        workdirs.check(tmp_path, tree | {"seed": 1}, recipe.binding)


# ------------------------------------------------------------------ traces


def test_named_steps_are_traced_and_no_others(tmp_path, capfd):
    run = stand_in(tmp_path, profile_steps=(2, 3))
    step_fn = jax.jit(lambda x: x * 2.0)
    x = np.float32(1.0)
    for _ in profiler.traced(run, "reft", range(1, 6)):
        x = step_fn(x)
    assert float(x) == 32.0
    folder = tmp_path / "reft" / "profile"
    assert list(folder.rglob("*.xplane.pb"))
    [trace] = folder.rglob("perfetto_trace.json.gz")
    marks = [e for e in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"] if e.get("name") == "reft"]
    assert sorted({int(mark["args"]["step_num"]) for mark in marks}) == [2, 3]
    assert f"reft: trace of steps 2 to 3 in {folder}: open its perfetto_trace.json.gz" in capfd.readouterr().out


def test_steps_that_a_stage_has_not_are_not_traced(tmp_path, capfd):
    run = stand_in(tmp_path, profile_steps=(2, 3))
    assert list(profiler.traced(run, "reft", range(4, 6))) == [4, 5]
    assert "names none of steps 4 to 5" in capfd.readouterr().out and not (tmp_path / "reft" / "profile").exists()


def test_a_trace_that_an_exception_cuts_short_is_written(tmp_path):
    run = stand_in(tmp_path, profile_steps=(1, 3))

    def stage_run(name, stage, run):
        for _ in profiler.traced(run, name, range(1, 6)):
            raise Preempted

    with pytest.raises(Preempted):
        main_lib.run_stage(stage_run, "reft", None, run)
    assert list((tmp_path / "reft" / "profile").rglob("*.xplane.pb"))
    profiler.end()  # nothing is left to end


# ------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_says_what_it_does_and_the_second_ends_at_once(capfd):
    stop = Stop()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        assert "Ctrl-C: saving what is done, then stopping. Once more ends the run at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


@pytest.mark.parametrize(
    "raised, code, said",
    [
        (
            Preempted,
            75,
            "run the same command again to go on:\n  {python} -m reft_jax.main '--config=a b' --workdir=w\n",
        ),
        (KeyboardInterrupt, 1, "ended at once: what was saved before is intact"),
    ],
)
def test_what_is_said_at_the_end(raised, code, said, monkeypatch, capfd):
    def prepare(argv, stop):
        raise raised

    monkeypatch.setattr(main_lib, "prepare", prepare)
    assert main_lib.main(["--config=a b", "--workdir=w"]) == code
    assert said.format(python=sys.orig_argv[0]) in capfd.readouterr().err
