"""A run's folder: whether a command may go on in it, one process at a time, and what config.json says of the run."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

from reft_jax.config.records import flatten
from reft_jax.config.renamed import is_old
from reft_jax.errors import InputError
from reft_jax.mesh import distributed


@contextlib.contextmanager
def opened(workdir: pathlib.Path):
    """Makes the folder, and keeps a second process out of it while the block runs; the lock goes with the process."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # where permissions tell nothing: /proc, a name that is too long
        raise InputError(f"--workdir={workdir}: cannot be made ({error.strerror}); choose another folder") from error
    if not distributed.is_primary():
        yield
        return
    handle = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"--workdir={workdir}: another process is running in it; wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(handle)


def check(workdir: pathlib.Path, tree: dict, binding):
    """Refuses a folder that cannot be written, or that holds a run of another config; writes nothing. binding(tree) -> {dotted path: value}
    of what a started run may not change. Gives {stage: its epochs so far} of begun stages whose epochs have grown."""
    parent = workdir
    while not os.path.exists(parent):  # unlike Path.exists, False also where one may not look
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"--workdir={workdir}: cannot be written ({parent} is {'not writable' if parent.is_dir() else 'a file'}); choose another folder"
        )
    path = workdir / "config.json"
    if not os.path.exists(path):
        if os.path.exists(workdir) and any(not name.name.endswith(".tmp") for name in workdir.iterdir()):
            raise InputError(
                f"--workdir={workdir}: holds other files and no config.json; choose an empty or a new folder"
            )
        return {}
    try:
        about = json.loads(path.read_text())
        flatten(before := dict(about["config"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the config of a run ({error!r}); choose another --workdir") from error
    if is_old(before):
        commit = about.get("git_commit")
        raise InputError(
            f"--workdir={workdir}: its run was begun by an older version, whose settings had other names; report, tables, samples, convert and "
            f"init_from read it, but to go on with it takes the commit that began it ({commit or 'unknown'}): git checkout "
            f"{commit or 'COMMIT'}; or choose another folder"
        )
    before, now = flatten(before), flatten(json.loads(json.dumps(tree)))
    bound, changed, longer = binding(tree), [], {}
    for key in sorted(before.keys() | now.keys()):
        # what is free may be new; of how a run is watched, gone too
        free = key not in bound and (key in now or key.startswith("config.logging."))
        if before.get(key) == now.get(key) or free:
            continue
        parts = key.split(".")
        if parts[1] == "stages" and not (workdir / parts[2]).exists():
            continue  # that stage has not begun
        if key == f"config.stages.{parts[2]}.epochs" and 0 < before.get(key, 0) < now.get(key, 0):
            longer[parts[2]] = before[key]
            continue
        changed.append(f"{key}: there {before.get(key, '(absent)')!r}, now {now.get(key, '(absent)')!r}")
    if changed:
        shown = "\n  ".join(changed[:20])
        raise InputError(
            f"--workdir={workdir}: holds a run of another config:\n  {shown}\nchoose another folder, or give the config that it was begun with"
        )
    return longer


def describe(tree: dict, layout) -> dict:
    """What config.json holds: the frozen config, and what it ran on."""
    import jax

    root = pathlib.Path(__file__).resolve().parents[2]
    git = (
        subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if (root / ".git").exists()
        else None
    )
    packages = (
        "reft_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "tokenizers",
        "sympy",
        "numpy",
    )
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "config": tree,
        "git_commit": git.stdout.strip() if git is not None and git.returncode == 0 else None,
        "packages": versions,
        "python": platform.python_version(),
        "devices": [str(d) for d in layout.mesh.devices.flat],
        "device_kind": jax.devices()[0].device_kind,
        "mesh": dict(layout.mesh.shape),
    }
