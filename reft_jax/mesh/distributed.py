"""Several processes, one for each host: how they find each other, and what they have to do once or agree on.

Every process runs the same program on the same questions, and arrays lie over the devices of all. Process 0 alone writes files and
prints; programs are run by the process whose rows they are, and the grades shared, so that a timeout on one host cannot make two
hosts disagree; a signal to one stops all at the same step.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import sys

from reft_jax.errors import InputError, RunError
from reft_jax.mesh import launchers

FLAGS = dict(
    processes="how many processes the run has; another number than this is an error",
    process="which of them this is, from 0 (where the environment does not say)",
    coordinator="HOST:PORT at which process 0 listens (where the environment does not say)",
    init_timeout="seconds to wait for all processes at the start",
    watchdog="minutes without a step after which the process prints all its stacks and ends; 0 = never",
)
HEARTBEAT_S = 30  # a process that is silent for so long is taken for dead, and the others end


@dataclasses.dataclass
class _State:
    process: int = 0
    processes: int = 1
    queries: int = 0  # how often all were asked whether to stop
    stopped: bool = False
    watchdog_s: float = 0.0


_STATE = _State()


def read_flags(given: dict[str, str], environment) -> dict:
    """The flags, completed from REFT_PROCESSES, REFT_PROCESS, REFT_COORDINATOR (as `launch/local.sh` sets them). Raises InputError."""
    texts = {name: given.get(name, environment.get(f"REFT_{name.upper()}", "")) for name in FLAGS}
    out = dict(coordinator=texts["coordinator"])
    for name, default in (("processes", 0), ("process", -1), ("init_timeout", 600), ("watchdog", 0)):
        if texts[name] and not texts[name].isdigit():
            raise InputError(f"--{name}: got {texts[name]!r}; it must be a whole number ({FLAGS[name]})")
        out[name] = int(texts[name]) if texts[name] else default
    if (out["process"] >= 0) != bool(out["coordinator"]):
        raise InputError("--coordinator and --process go together: where process 0 listens, and which process this is")
    if out["coordinator"] and out["processes"] < 1:
        raise InputError("--processes is missing: with --coordinator it must be said how many there are")
    if out["coordinator"] and not 0 <= out["process"] < out["processes"]:
        raise InputError(f"--process: got {out['process']}; it must be from 0 to {out['processes'] - 1}")
    return out


def started(flags: dict, environment=os.environ) -> launchers.Started:
    """How many processes there are and which this is, by the flags, else by the environment. Raises InputError, RunError."""
    if flags["processes"] == 1:
        return launchers.Started()
    if flags["coordinator"]:
        return launchers.Started(flags["processes"], flags["process"])
    found = launchers.started(environment)
    if found.processes == 1 and flags["processes"] > 1:
        raise RunError(
            f"--processes={flags['processes']}, but nothing here says how to find the others: give --coordinator=HOST:PORT and --process=I, "
            f"or start under Slurm, MPI, or on all hosts of a TPU slice{found.note and f' ({found.note})'}"
        )
    return found


def initialize(flags: dict, environment=os.environ):
    """Joins the other processes, if there are any; before anything else asks JAX for a device. Raises InputError, RunError."""
    _STATE.watchdog_s = 60.0 * flags["watchdog"]
    found = started(flags, environment)
    if found.note:
        print(found.note, flush=True)
    if found.processes == 1:
        return
    import jax

    if environment.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known = dict(num_processes=found.processes) if found.processes else {}
    if flags["coordinator"]:
        known |= dict(coordinator_address=flags["coordinator"], process_id=flags["process"])
    if found.process == 0:
        print(f"waiting for {found.processes - 1} more processes, at most {flags['init_timeout']} s", flush=True)
    try:
        jax.distributed.initialize(
            **known, initialization_timeout=flags["init_timeout"], heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except Exception as error:  # its ways to find the others, and their services, raise what they like
        said = " ".join(str(error).split())[:500]
        raise RunError(
            f"several processes were started, as it seems here, and this one has not joined them ({type(error).__name__}: {said}): start all "
            "within --init_timeout seconds, say --coordinator=HOST:PORT --processes=N --process=I, or --processes=1, and this process runs alone"
        ) from error
    _STATE.process, _STATE.processes = jax.process_index(), jax.process_count()
    if flags["processes"] and _STATE.processes != flags["processes"]:
        raise RunError(f"--processes={flags['processes']}, but there are {_STATE.processes}: not every host has joined")
    print(
        f"host {_STATE.process} of {_STATE.processes}, {jax.local_device_count()} of {jax.device_count()} devices",
        flush=True,
    )
    if _STATE.process:
        sys.stdout = open(os.devnull, "w")  # what follows is said by process 0


def shutdown():
    """Leaves the others in good order; without it they would take this process for dead."""
    if _STATE.processes > 1:
        import jax

        with contextlib.suppress(RuntimeError):  # the run's own result counts, not how its farewell went
            jax.distributed.shutdown()


def is_primary() -> bool:
    """Whether this process writes files and prints."""
    return _STATE.process == 0


def barrier(name: str):
    """Waits until all processes are here: what the primary wrote before can be read after."""
    if _STATE.processes > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def mine(row: int) -> bool:
    """Whether host work on that row is this process's."""
    return row % _STATE.processes == _STATE.process


def share(values: list, num: int) -> list:
    """All `num` rows' values, given this process's (those for which `mine` holds, in order); plain JSON values."""
    if _STATE.processes == 1:
        return values
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([len(text)])))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(text)] = text
    texts = np.reshape(multihost_utils.process_allgather(padded), (_STATE.processes, -1))
    parts = [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]
    return [parts[row % _STATE.processes][row // _STATE.processes] for row in range(num)]


def fetch(tree):
    """Host arrays of device arrays, whole in every process."""
    import jax

    if _STATE.processes > 1:
        from jax.experimental import multihost_utils

        tree = jax.tree.map(
            lambda x: x if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True), tree
        )
    return jax.device_get(tree)


def asked_to_stop() -> bool:
    """Whether a signal has reached any of the processes; all get the same answer, if all ask equally often."""
    from jax.experimental import multihost_utils

    _STATE.queries += 1
    _STATE.stopped = _STATE.stopped or multihost_utils.reached_preemption_sync_point(_STATE.queries)
    return _STATE.stopped


def several() -> bool:
    return _STATE.processes > 1


def beat():
    """A step was made: the watchdog, if there is one, begins to count anew."""
    if _STATE.watchdog_s:
        faulthandler.dump_traceback_later(_STATE.watchdog_s, exit=True)


def rest():
    """No step is to come: the watchdog sleeps."""
    faulthandler.cancel_dump_traceback_later()
