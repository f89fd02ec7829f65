"""Runs that are killed, stopped and started again end exactly as one that nothing happened to."""

import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests import runs


def half_written(workdir, stage):
    """A condition: Orbax is writing a checkpoint of that stage (it renames the folder when it is whole)."""
    return lambda: any((workdir / stage / "checkpoints").glob("*tmp*"))


def logged(workdir, name, count):
    """A condition: that file of JSON lines has so many."""
    path = workdir / name
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= count


def begun(workdir, name):
    return lambda: (workdir / name).exists()


def stop(workdir, condition, number, spec=runs.SMOKE) -> int:
    """Starts the command, sends it the signal once condition() holds, and gives its exit code."""
    process = runs.start(workdir, spec=spec)
    try:
        runs.wait_until(process, condition, workdir)
        process.send_signal(number)
        return process.wait(runs.TIMEOUT)
    finally:
        runs.end(process)


def kill_in_a_save(workdir, stage) -> bool:
    """Kills the command while it saves; False if the save was over before the signal came."""
    assert stop(workdir, half_written(workdir, stage), signal.SIGKILL) == -signal.SIGKILL
    return half_written(workdir, stage)()


def steps(workdir, stage):
    return sorted(int(path.name) for path in (workdir / stage / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.slow
def test_kills_and_stops_across_the_stages(tmp_path):
    """kill -9 in every stage, twice during a save, and stops between, each of which saves first and exits with 75: the last start ends as
    an unbroken run."""
    workdir, in_saves, stops = tmp_path / "run", 0, 0
    for stage, number, condition in (
        ("warmup", signal.SIGKILL, begun(workdir, "config.json")),
        ("warmup", signal.SIGINT, logged(workdir, "warmup/metrics.jsonl", 1)),
        ("sft", signal.SIGTERM, logged(workdir, "sft/metrics.jsonl", 1)),
        ("sft", signal.SIGKILL, None),
        ("reft", signal.SIGKILL, logged(workdir, "reft/metrics.jsonl", 1)),
        ("reft", signal.SIGTERM, logged(workdir, "reft/metrics.jsonl", 3)),
        ("reft", signal.SIGKILL, None),
        ("evaluate", signal.SIGKILL, logged(workdir, "base/predictions.jsonl", 1)),
        ("evaluate", signal.SIGINT, logged(workdir, "sft/predictions.jsonl", 1)),
    ):
        if condition is None:
            in_saves += kill_in_a_save(workdir, stage)
            continue
        code = stop(workdir, condition, number)
        if number == signal.SIGKILL:
            assert code == -number
            continue
        stops += 1
        assert code == 75, runs.log(workdir)[-3000:]
        assert not (workdir / stage / "DONE").exists()
        if stage != "evaluate":
            assert steps(workdir, stage)[-1] >= runs.lines(workdir / stage / "metrics.jsonl")[-1]["step"]
    assert in_saves >= 1, "no kill hit a save"
    assert "Traceback" not in runs.log(workdir) and runs.log(workdir).count("run the same command again") == stops == 4
    runs.run(workdir)
    runs.assert_same_run(runs.unbroken(), workdir)
    assert not list(workdir.rglob("*tmp*"))


@pytest.mark.slow
def test_a_run_that_nobody_reads_is_the_same(tmp_path):
    """Without standard input, output and error, its programs included."""
    workdir = tmp_path / "run"
    command = f"'{sys.executable}' -m reft_jax.main --config={runs.SMOKE} --workdir='{workdir}' <&- >&- 2>&-"
    subprocess.run(["bash", "-c", command], cwd=runs.ROOT, env=runs.environment(), check=True, timeout=runs.TIMEOUT)
    runs.assert_same_run(runs.unbroken(), workdir)


@pytest.mark.slow
def test_ctrl_c_in_the_stages_that_sample(tmp_path):
    """Self-training's collection, and the re-ranker's steps: each stop saves, and says the command that goes on."""
    workdir, spec = tmp_path / "run", "tests/stages_config.py"
    for stage, condition in (
        ("offline", begun(workdir, "offline/drawn")),
        ("reranker", logged(workdir, "reranker/metrics.jsonl", 1)),
    ):
        assert stop(workdir, condition, signal.SIGINT, spec) == 75, runs.log(workdir)[-3000:]
        assert (workdir / stage).exists() and not (workdir / stage / "DONE").exists()
    runs.run(workdir, spec=spec)
    printed = runs.log(workdir)
    assert "Traceback" not in printed and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)
    assert printed.count("Ctrl-C: saving what is done") == 2
    again = f"-m reft_jax.main --config={spec} --workdir={workdir}\n"
    assert printed.count(f"run the same command again to go on:\n  {sys.executable} {again}") == 2
    assert "reranker: goes on after step" in printed and "warmup: done before (3 steps)" in printed
    for stage in ("warmup", "offline", "online", "reranker"):
        numbers = [line["step"] for line in runs.lines(workdir / stage / "metrics.jsonl")]
        assert numbers == sorted(set(numbers)), stage


@pytest.mark.slow
def test_what_the_equality_is_worth(tmp_path):
    """One digit of a metric, one of a response, one file of another run: it does not hold."""
    for name, old, new in (
        ("sft/metrics.jsonl", '"step": 1', '"step": 2'),
        ("reft/samples.jsonl", '"status": "', '"status": " '),
        ("sft/DONE", "{", "{ "),
    ):
        other = tmp_path / name.replace("/", "_")
        shutil.copytree(runs.unbroken(), other)
        text = (other / name).read_text()
        assert old in text
        (other / name).write_text(text.replace(old, new, 1))
        with pytest.raises(AssertionError):
            runs.assert_same_run(runs.unbroken(), other)
    with pytest.raises(AssertionError):
        runs.assert_same_params(runs.unbroken() / "sft", runs.unbroken() / "warmup")
