"""Several processes, one for each host: how they find each other, and what they have to do once or agree on.

Every process runs the same program on the same questions, and arrays lie over the devices of all. Process 0 alone writes files and
prints; programs are run by the process whose rows they are, and the grades shared, so that a timeout on one host cannot make two
hosts disagree; a signal to one stops all at the same step.
"""

import contextlib
import dataclasses
import faulthandler
import glob
import importlib.util
import json
import os
import sys

from reft_jax.errors import InputError, RunError

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


def several_by_environment(environment) -> bool:
    """Whether this host looks like one of several, or like a TPU VM, whose metadata tell: then JAX finds the others by itself."""
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or environment.get("JAX_COORDINATOR_ADDRESS"):
        return True
    sizes = ("MEGASCALE_NUM_SLICES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    if any(environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1 for name in sizes):
        return True
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")  # up to v4, and since
    with_library = importlib.util.find_spec("libtpu") is not None
    return bool(chips) and with_library and "tpu" in environment.get("JAX_PLATFORMS", "tpu")


def initialize(flags: dict, environment=os.environ):
    """Joins the other processes, if there are any; before anything else asks JAX for a device. Raises RunError."""
    _STATE.watchdog_s = 60.0 * flags["watchdog"]
    if flags["coordinator"] and flags["processes"] > 1:
        known = dict(
            coordinator_address=flags["coordinator"], num_processes=flags["processes"], process_id=flags["process"]
        )
    elif flags["processes"] != 1 and several_by_environment(environment):
        known = {}
    elif flags["processes"] > 1:
        raise RunError(
            f"--processes={flags['processes']}, but nothing here says how to find the others: give --coordinator=HOST:PORT and --process=I, "
            "or start under Slurm, MPI, or on all hosts of a TPU slice"
        )
    else:
        return
    import jax

    if environment.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # What it raises when not all come in time names the coordinator; it is not caught, since a run of one host would go on alone.
    jax.distributed.initialize(
        **known, initialization_timeout=flags["init_timeout"], heartbeat_timeout_seconds=HEARTBEAT_S
    )
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
