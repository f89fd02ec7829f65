"""Runs of several processes: how they are found, what they share, and what happens when one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from reft_jax.errors import InputError, RunError
from reft_jax.mesh import distributed, launchers
from reft_jax.run import checksums
from tests import runs, test_checkpoint, tiny

LOCAL = runs.ROOT / "launch" / "local.sh"


# ------------------------------------------------------------------ flags and environment


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(processes="two"), "--processes: got 'two'"),
        (dict(process="0"), "--coordinator and --process go together"),
        (dict(coordinator="a:1"), "--coordinator and --process go together"),
        (dict(coordinator="a:1", process="0"), "--processes is missing"),
        (dict(coordinator="a:1", process="2", processes="2"), "--process: got 2; it must be from 0 to 1"),
        (dict(watchdog="-3"), "--watchdog: got '-3'"),
    ],
)
def test_flags_that_cannot_be_are_named(flags, said):
    with pytest.raises(InputError) as caught:
        distributed.read_flags(flags, {})
    assert said in str(caught.value)


def test_flags_come_from_the_environment_and_the_command_line_wins():
    there = dict(REFT_PROCESSES="4", REFT_PROCESS="1", REFT_COORDINATOR="a:1")
    flags = distributed.read_flags(dict(process="3"), there)
    assert flags == dict(coordinator="a:1", processes=4, process=3, init_timeout=600, watchdog=0)


STEP = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="n[1-2]", SLURM_LOCALID="0", SLURM_PROCID="1", SLURM_NTASKS="4",
            SLURM_STEP_NUM_TASKS="4", SLURM_JOB_NUM_NODES="2")  # fmt: skip
SHELL = dict(SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_JOB_NUM_NODES="1")
TERMINAL = dict(SLURM_PTY_PORT="4000", SLURM_TASK_PID="1")
MPI = dict(
    OMPI_COMM_WORLD_SIZE="8", OMPI_COMM_WORLD_RANK="3", OMPI_COMM_WORLD_LOCAL_RANK="3", OMPI_MCA_orte_hnp_uri="1.0;tcp"
)


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


@pytest.fixture
def no_chips(monkeypatch):
    monkeypatch.setattr(launchers.glob, "glob", lambda pattern: [])


@pytest.mark.parametrize(
    "environment, processes, process",
    [
        ({}, 1, 0),
        (dict(TPU_WORKER_HOSTNAMES="localhost"), 1, 0),
        (dict(TPU_WORKER_HOSTNAMES="a,b"), 0, -1),
        (dict(MEGASCALE_NUM_SLICES="2"), 0, -1),
        (dict(JAX_COORDINATOR_ADDRESS="a:1"), 0, -1),
        (STEP, 4, 1),
        (STEP | dict(SLURM_NTASKS="9"), 4, 1),  # srun --preserve-env: the step's count is what runs
        (STEP | dict(PMI_SIZE="4", PMI_RANK="1"), 4, 1),  # srun --mpi=pmi2
        (STEP | TERMINAL | dict(SLURM_TASK_PID=str(os.getpid())), 4, 1),  # srun --pty python
        (STEP | dict(SLURM_NTASKS="1", SLURM_STEP_NUM_TASKS="1"), 1, 0),  # one of a sweep's, on one node of two
        (MPI, 8, 3),
        (STEP | MPI, 8, 3),  # mpirun in a job: its own daemons are the tasks
        (dict(OMPI_COMM_WORLD_SIZE="1", SLURM_NTASKS="many"), 1, 0),
        (dict(WORLD_SIZE="8", RANK="0"), 1, 0),  # left over in a shell
    ],
)
def test_the_environment_decides_whether_there_are_others(environment, processes, process, no_chips):
    found = launchers.started(environment)
    assert (found.processes, found.process, found.note) == (processes, process, "")


@pytest.mark.parametrize(
    "environment",
    [
        SHELL,  # salloc, where it was called
        SHELL | dict(SLURM_PROCID="0", SLURM_LOCALID="0"),  # a script of sbatch
        STEP
        | TERMINAL
        | dict(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_JOB_NUM_NODES="1"),  # salloc, on the node
    ],
)
def test_a_shell_of_slurm_that_is_no_task_runs_one_process_and_says_so(environment, no_chips, capsys):
    distributed.initialize(distributed.read_flags({}, {}), environment)
    said = capsys.readouterr().out
    assert said.startswith("Slurm: the job asks for 4 tasks (SLURM_NTASKS), but this process is no task of srun")
    assert not distributed.several()
    distributed.initialize(distributed.read_flags(dict(processes="1"), {}), environment)
    assert capsys.readouterr().out == ""
    with pytest.raises(RunError, match="--processes=4, but nothing here says .*this process is no task of srun"):
        distributed.initialize(distributed.read_flags(dict(processes="4"), {}), environment)


@pytest.mark.parametrize(
    "environment, said",
    [
        (SHELL | dict(SLURM_JOB_NUM_NODES="2"), "the job has 2 nodes, but this process is no task of srun"),
        (without(STEP, "SLURM_LOCALID"), "the step has 4 tasks (SLURM_STEP_NUM_TASKS), but SLURM_LOCALID is not set"),
        (without(STEP, "SLURM_PROCID", "SLURM_NTASKS"), "but SLURM_NTASKS, SLURM_PROCID is not set"),
        (STEP | TERMINAL, "this is a shell in a terminal (srun --pty), one of 4 tasks"),
        (without(MPI, "OMPI_MCA_orte_hnp_uri"), "Open MPI started 8 processes (OMPI_COMM_WORLD_SIZE), but OMPI_MCA_orte_hnp_uri"),
        (SHELL | dict(PMI_SIZE="4"), "MPICH or Intel MPI started 4 processes (PMI_SIZE), in which JAX does not find the others"),
        (dict(TORCHELASTIC_RUN_ID="a", WORLD_SIZE="8"), "torchrun started 8 processes (WORLD_SIZE)"),
    ],
)  # fmt: skip
def test_who_was_to_be_one_of_several_and_cannot_find_them_is_told_at_once(environment, said, no_chips):
    with pytest.raises(InputError) as caught:
        distributed.initialize(distributed.read_flags({}, {}), environment)
    assert said in str(caught.value) and "--processes=1, and this process runs alone" in str(caught.value)
    distributed.initialize(distributed.read_flags(dict(processes="1"), {}), environment)  # not refused


def test_what_jax_raises_where_variables_are_set_by_half_is_one_error(no_chips, monkeypatch):
    def fail(**known):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(RunError, match="has not joined them .*Number of processes must be defined.*--processes=1"):
        distributed.initialize(distributed.read_flags({}, {}))


def test_more_processes_than_can_be_found_are_a_loud_failure(no_chips):
    with pytest.raises(RunError, match="nothing here says how to find the others"):
        distributed.initialize(distributed.read_flags(dict(processes="2"), {}), {})


def test_one_process_is_all_there_is():
    distributed.initialize(distributed.read_flags(dict(processes="1"), dict(SLURM_NTASKS="8")), dict(SLURM_NTASKS="8"))
    assert distributed.is_primary() and not distributed.several()
    assert [row for row in range(3) if distributed.mine(row)] == [0, 1, 2] and distributed.share([1, 2], 2) == [1, 2]
    np.testing.assert_array_equal(distributed.fetch({"a": np.arange(2)})["a"], [0, 1])


def test_the_watchdog_ends_a_process_that_makes_no_step_with_all_its_stacks():
    code = """
import threading, time
from reft_jax.mesh import distributed, launchers
distributed.initialize(distributed.read_flags(dict(watchdog="1"), {}), {})
distributed._STATE.watchdog_s /= 60
def waits_for_another_host():
    time.sleep(60)
threading.Thread(target=waits_for_another_host, daemon=True).start()
for _ in range(4):
    distributed.beat()
    time.sleep(0.5)  # each step is in time, all together are not
distributed.rest()
time.sleep(1.5)
print("steps were made", flush=True)
distributed.beat()
time.sleep(60)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and time.monotonic() - began < 30
    assert done.stdout.startswith("steps were made") and "waits_for_another_host" in done.stderr
    assert done.stderr.count("Thread 0x") == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "usage"),
        (["--processes", "0"], "--processes needs a whole number from 1; got '0'"),
        (["--processes", "2", "--devices", "1", "--", "--config=x"], "--workdir is missing"),
        (["--nonsense"], "unknown argument '--nonsense'"),
    ],
)
def test_the_launcher_says_what_is_wrong(arguments, said):
    done = subprocess.run(["bash", LOCAL, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr


# ------------------------------------------------------------------ checkpoints


CHECKPOINTS = """
import os, pathlib, random, sys
from reft_jax.mesh import distributed, launchers
flags = dict(processes="2", process=sys.argv[1], coordinator=f"localhost:{sys.argv[2]}")
distributed.initialize(distributed.read_flags(flags, {}))
import jax
from jax.sharding import NamedSharding, PartitionSpec
from reft_jax.run import checkpoint, checksums
from tests.test_checkpoint import flip, progress, small

mesh, folder = jax.make_mesh((4,), ("x",)), pathlib.Path(sys.argv[3])

def split(state):
    places = lambda x: NamedSharding(mesh, PartitionSpec("x") if x.shape == (64, 32) else PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, places(x), lambda i: jax.device_get(x)[i]), state)

def damage(step):
    distributed.barrier("before")
    if distributed.is_primary():
        for path in (folder / "checkpoints" / str(step) / "params" / "ocdbt.process_1").rglob("*"):
            if path.is_file():
                flip(path, random.Random(0))
    distributed.barrier("after")

def same(a, b):
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), a, b)))

checkpoints = checkpoint.Checkpoints(folder)
for step in (1, 2):
    checkpoints.save(step, split(small(step)), progress(step), wait=step == 2)
step, state, facts = checkpoints.go_on(split(small(9)))
assert step == 2 and facts == progress(2)
same(state, split(small(2)))
damage(2)
step, state, facts = checkpoints.go_on(split(small(9)))
assert step == 1 and facts == progress(1)
same(state, split(small(1)))
checkpoints.save(2, split(small(2)), progress(2))
damage(1)
for read in (checkpoint.check, checkpoint.read_params):
    try:
        read(folder / "checkpoints" / "1")
    except checksums.Damaged as error:
        print(f"{sys.argv[1]} refused {error}", file=sys.stderr)
checkpoints.close()
distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_sum_up_a_share_each_and_agree_on_what_is_damaged(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    folder = tmp_path / "stage"
    command = [sys.executable, "-c", CHECKPOINTS]
    processes = [
        subprocess.Popen(
            [*command, str(i), port, folder],
            cwd=runs.ROOT,
            env=runs.environment(devices=2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    for i, text in enumerate(said):
        assert text.count(f"{i} refused {folder}/checkpoints/1/params/ocdbt.process_1/") == 2, text
        assert "checkpoints/2 cannot be read" in text and "going on from step 1" in text
    assert (folder / "checkpoints" / "2.unreadable").is_dir()
    files = json.loads((folder / "checkpoints" / "2" / checksums.NAME).read_text())["files"]
    assert {f"{item}/ocdbt.process_{i}/manifest.ocdbt" for item in ("params", "opt") for i in range(2)} < files.keys()
    assert not [path for path in folder.rglob(f"{checksums.NAME}.*")]
    (step, restored, facts), warned = test_checkpoint.went_on(
        folder, test_checkpoint.small(9)
    )  # one process, one device
    assert step == 2 and facts == test_checkpoint.progress(2) and warned == ""
    tiny.assert_trees_equal(restored, test_checkpoint.small(2))


# ------------------------------------------------------------------ whole runs


def start(workdir, *, processes=2, devices=2) -> subprocess.Popen:
    command = ["bash", LOCAL, "--processes", str(processes), "--devices", str(devices), "--"]
    command += [f"--config={runs.SMOKE}", f"--workdir={workdir}"]
    environment = runs.environment() | dict(PYTHON=sys.executable, XLA_FLAGS="")
    with open(f"{workdir}.log", "w") as file:
        return subprocess.Popen(
            command, cwd=runs.ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def wait_for(path, seconds=240):
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text().count("\n")):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.2)


@pytest.fixture
def launched(tmp_path):
    """A run as two processes of two devices that has begun its second stage."""
    process = start(tmp_path / "run")
    try:
        wait_for(tmp_path / "run" / "sft" / "metrics.jsonl")
        yield tmp_path / "run", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_signal_stops_all_at_one_step_and_one_process_goes_on(launched):
    workdir, process = launched
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, (workdir.parent / "run.log").read_text()[-2000:]
    assert not (workdir / "reft" / "DONE").exists()
    runs.run(workdir)
    whole = runs.unbroken()
    for stage in ("warmup", "sft", "reft"):
        ours, theirs = (runs.lines(folder / stage / "metrics.jsonl") for folder in (workdir, whole))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    asked = [[line["item_id"] for line in runs.lines(f / "reft" / "samples.jsonl")] for f in (workdir, whole)]
    assert asked[0] == asked[1] and len(asked[0]) > 0
    first = [runs.lines(folder / "warmup" / "metrics.jsonl")[-1]["sft/loss"] for folder in (workdir, whole)]
    assert first[0] == pytest.approx(first[1], rel=1e-4)  # four devices sum in another order than one


@pytest.mark.slow
def test_a_lost_process_ends_the_run_within_a_minute_and_the_same_command_goes_on(launched):
    workdir, process = launched
    victims = subprocess.run(
        ["pgrep", "-f", f"reft_jax.main.*{workdir}"], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(victims[-1]), signal.SIGKILL)
    assert process.wait(60) == 1
    assert "stopping the other 1" in (workdir.parent / "run.log").read_text()
    again = start(workdir)
    try:
        assert again.wait(300) == 0
    finally:
        if again.poll() is None:
            os.killpg(again.pid, signal.SIGKILL)
    assert (workdir / "evaluate" / "DONE").exists() and (workdir / "results.json").exists()
