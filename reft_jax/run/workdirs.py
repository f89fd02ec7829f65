"""A run's folder: whether a command may go on in it, and what config.json says of the run."""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess

from reft_jax.config.records import flatten
from reft_jax.config.renamed import DECIDED, is_old, modern
from reft_jax.config.words import listed
from reft_jax.data import json_text
from reft_jax.errors import InputError
from reft_jax.run import checkpoint


def check(workdir: pathlib.Path, tree: dict, binding):
    """Refuses a folder that cannot be written, or that holds a run of another config; writes nothing. binding(tree) -> {dotted path: value}
    of what a started run may not change. Gives {stage: its epochs so far} of begun stages whose epochs have grown."""
    for path in (workdir, *workdir.parents):
        if os.path.islink(path) and not os.path.exists(path):
            raise InputError(
                f"--workdir={workdir}: {path} is a link to {os.readlink(path)}, which is not there; make that folder, or choose another"
            )
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
    about = json_text.read_object(path, "so it is not the config of a run: restore it, or choose another --workdir")
    try:
        flatten(before := dict(about["config"]))
        dict(before["stages"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the config of a run ({error!r}); choose another --workdir") from error
    for key in ("reads", "own_files"):
        if not isinstance(about.get(key, {}), dict):
            raise InputError(f"{path}: {key} is {about[key]!r}, not a group; restore it, or choose another --workdir")
    if is_old(before):
        commit = about.get("git_commit")
        raise InputError(
            f"--workdir={workdir}: its run was begun by an older version, whose settings had other names; report, tables, samples, convert and "
            f"init_from read it, but to go on with it takes the commit that began it ({commit or 'unknown'}): git checkout "
            f"{commit or 'COMMIT'}; or choose another folder"
        )
    _check_files(workdir, before)
    before, now = flatten(modern(before)), flatten(json.loads(json.dumps(tree)))
    bound, changed, begun, longer = binding(tree), [], [], {}
    for key in sorted(before.keys() | now.keys()):
        # what is free may be new; of how a run is watched, gone too
        free = key not in bound and (key in now or key.startswith("config.logging."))
        decided = now.get(key) == "auto" and key.removeprefix("config.data.") in DECIDED
        if before.get(key) == now.get(key) or free or decided:
            continue
        parts = key.split(".")
        if parts[1] == "stages" and not (workdir / parts[2]).exists():
            continue  # that stage has not begun
        if parts[1] == "stages" and parts[3:] == ["epochs"] and 0 < before.get(key, 0) < now.get(key, 0):
            longer[parts[2]] = before[key]
            continue
        changed.append(f"{key}: there {before.get(key, '(absent)')!r}, now {now.get(key, '(absent)')!r}")
        if parts[1] == "stages" and parts[2] not in begun:
            begun.append(parts[2])
    if changed:
        raise InputError(_other_config(workdir, tree, changed, begun, [key for key in now if key not in bound]))
    return longer


def decided(workdir: pathlib.Path) -> dict[str, str]:
    """What the run in that folder has decided of config.data as it began (`renamed.DECIDED`); {} of a new one."""
    path = workdir / "config.json"
    if not os.path.exists(path):
        return {}
    data = modern(json.loads(path.read_text())["config"])["data"]
    return {key: data[key] for key in DECIDED}


def _check_files(workdir: pathlib.Path, config: dict):
    """InputError for a file of the run that is damaged: a stage would meet it hours later."""
    path = workdir / "results.json"
    if path.exists():
        remedy = "remove it, and the same command evaluates again"
        results = json_text.read_object(path, remedy)
        check_results(results, path, remedy)
    for name, stage in config["stages"].items():
        if os.path.exists(workdir / name) and not (workdir / name).is_dir():
            raise InputError(f"{workdir / name}: is a file, where the folder of stage {name} belongs; move it away")
        path = workdir / name / "DONE"
        if path.exists():
            facts = json_text.read_object(path, remedy := "remove it, and the stage goes on from its last checkpoint")
            for key in ("selected_step", "last_step") if "epochs" in stage else ():
                if type(facts.get(key)) is not int:
                    raise InputError(f"{path}: {key} is {facts.get(key)!r}, not a step; {remedy}")
        path = workdir / name / "wandb" / "sent.json"
        if path.exists():
            sent = json_text.read_object(path, remedy := "remove it, and W&B gets a new run of this stage")
            if not isinstance(sent.get("id"), str) or type(sent.get("step")) is not int:
                raise InputError(f"{path}: holds {sent}, not id and step; {remedy}")


def check_results(results: dict, path: pathlib.Path, remedy: str):
    """InputError where results.json is not a group of results."""
    stages = results.get("stages")
    if not isinstance(stages, dict):
        raise InputError(f"{path}: stages is {stages!r}, not a group of results; {remedy}")
    for label, row in stages.items():
        if not isinstance(row, dict):
            raise InputError(f"{path}: stages.{label} is {row!r}, not a group of figures; {remedy}")


def _other_config(workdir: pathlib.Path, tree: dict, changed: list[str], begun: list[str], free: list[str]) -> str:
    """What is said of a folder whose run differs: what may, how to go on in it, and how to begin with its weights elsewhere."""
    shown = "\n  ".join(changed[:20]) + (f"\n  and {len(changed) - 20} more" if len(changed) > 20 else "")
    names = dict.fromkeys(re.sub(r"^config\.(stages\.\w+\.)?", "", key) for key in free)
    said = (
        f"--workdir={workdir}: holds a run of another config:\n  {shown}\nGive the config that it was begun with, or choose another folder: a "
        f"stage that has begun keeps all its settings but {listed(names)}; "
        "its epochs may grow where its learning rate is not planned over them"
    )
    trained = [name for name, stage in tree["stages"].items() if "init_from" in stage]
    trained = [name for name in trained if checkpoint.locate(workdir / name) and (name in begun or not begun)]
    if not trained:
        return said
    source = f"--config.stages.{trained[-1]}.init_from={workdir / trained[-1]}"
    return f"{said}. In the new folder {source} goes on from the weights that are here (its epochs count anew)"


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
