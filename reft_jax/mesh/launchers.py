"""What started this process, as the environment tells: alone, or one of several that Slurm, MPI or a TPU's machines have started.

Slurm sets its variables in shells that are no task of a step, too, where this process is the only one:

| where | SLURM_NTASKS | SLURM_PROCID, SLURM_LOCALID | SLURM_STEP_NODELIST, SLURM_STEP_NUM_TASKS |
|---|---|---|---|
| a shell of salloc, where it was called | of the job, if asked for | - | - |
| a script of sbatch, outside srun | of the job, if asked for | 0 | - |
| a shell of salloc on the job's first node (an interactive step) | of the job | 0 | the step's, 1 |
| a task of srun | of the step | its own | the step's |
"""

import glob
import os
import typing

from reft_jax.config import packages
from reft_jax.errors import InputError

ALONE = "or --processes=1, and this process runs alone"
# Launchers in which JAX does not find the others: (name, the variable that only it sets, number of processes, which one this is)
UNFOUND = (
    ("MPICH or Intel MPI", "PMI_SIZE", "PMI_SIZE", "PMI_RANK"),
    ("torchrun", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK"),
)


class Started(typing.NamedTuple):
    """What a launcher has started: `processes` (0 = more than one, JAX counts them), which of them this is (-1 = JAX knows), and a line
    for the user."""

    processes: int = 1
    process: int = 0
    note: str = ""


def started(environment) -> Started:
    """How many processes there are. InputError where several were asked for and this one cannot find them, or is alone on one of
    several nodes."""
    for look in (_by_open_mpi, _by_others, _by_slurm):
        if (found := look(environment)) is not None:
            return found
    several = (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or environment.get("JAX_COORDINATOR_ADDRESS")
        or _number(environment, "MEGASCALE_NUM_SLICES") > 1
        or _on_a_tpu(environment)  # whose metadata tell
    )
    return Started(0, -1) if several else Started()


def _number(environment, name: str, default: int = 1) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else default


def _absent(environment, *names: str) -> str:
    return ", ".join(name for name in names if not environment.get(name))


def _on_a_tpu(environment) -> bool:
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")  # up to v4, and since
    return bool(chips) and packages.there("libtpu") and "tpu" in environment.get("JAX_PLATFORMS", "tpu")


def _by_open_mpi(environment) -> Started | None:
    num = _number(environment, "OMPI_COMM_WORLD_SIZE")
    if num <= 1:
        return None
    if absent := _absent(
        environment, "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
    ):  # Open MPI 5 no longer says where its first process is
        raise InputError(
            f"Open MPI started {num} processes (OMPI_COMM_WORLD_SIZE), but {absent} is not set, from which JAX finds the others: give "
            f"--coordinator=HOST:PORT --processes={num} --process=$OMPI_COMM_WORLD_RANK, {ALONE}"
        )
    return Started(num, _number(environment, "OMPI_COMM_WORLD_RANK"))


def _by_others(environment) -> Started | None:
    for name, sign, size, rank in UNFOUND:
        num = _number(environment, size)
        # srun --mpi=pmi2 sets PMI_SIZE as well, and there Slurm's variables tell
        if sign in environment and num > 1 and num != _number(environment, "SLURM_STEP_NUM_TASKS"):
            raise InputError(
                f"{name} started {num} processes ({size}), in which JAX does not find the others: give --coordinator=HOST:PORT "
                f"--processes={num} --process=${rank}, {ALONE} (one process drives all accelerators of its host)"
            )
    return None


def _by_slurm(environment) -> Started | None:
    asked, nodes = _number(environment, "SLURM_NTASKS"), _number(environment, "SLURM_JOB_NUM_NODES")
    if "SLURM_STEP_NODELIST" in environment:
        tasks = _number(environment, "SLURM_STEP_NUM_TASKS", asked)
        if tasks > 1:
            return _task_of_slurm(environment, tasks)
        if asked <= 1:  # srun was asked for one task
            return None
    if nodes > 1:
        raise InputError(
            f"Slurm: the job has {nodes} nodes, but this process is no task of srun and would run alone on one of them: start it with "
            f"srun, {ALONE}"
        )
    if asked <= 1:
        return None
    return Started(
        note=f"Slurm: the job asks for {asked} tasks (SLURM_NTASKS), but this process is no task of srun: it runs alone, with all "
        "accelerators that it sees here; srun starts one process a task"
    )


def _task_of_slurm(environment, tasks: int) -> Started:
    if absent := _absent(environment, "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        raise InputError(
            f"Slurm: the step has {tasks} tasks (SLURM_STEP_NUM_TASKS), but {absent} is not set, from which JAX finds the others: start "
            f"with srun, {ALONE}"
        )
    if "SLURM_PTY_PORT" in environment and environment.get("SLURM_TASK_PID") != str(os.getpid()):
        raise InputError(
            f"Slurm: this is a shell in a terminal (srun --pty), one of {tasks} tasks, and those of the others have ended, having nothing "
            f"to read: leave it and start the run itself with srun, {ALONE}"
        )
    return Started(tasks, _number(environment, "SLURM_PROCID"))
