"""Orbax checkpoints of a stage: <stage>/checkpoints/<step>, written atomically, the last two and the best kept.

A checkpoint holds three items: `params`, `opt` (optimizer state, step, and a critic of its own) and `progress` (a small JSON).
Parameters stand alone so that other stages, and `load_params`, read them without what only this stage's training needs.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import sys

import jax

from reft_jax.errors import InputError, RunError
from reft_jax.mesh import distributed
from reft_jax.run import lineage
from reft_jax.types import TrainState


@functools.cache
def _orbax():
    """The library, when the first checkpoint is looked at: it takes a second to import, which a config's errors need not wait for."""
    import orbax.checkpoint

    return orbax.checkpoint


@functools.cache
def _keep_last_and_best():
    """The policy that keeps the last two checkpoints and `best_step`."""
    _orbax()
    from orbax.checkpoint import checkpoint_managers

    @dataclasses.dataclass
    class KeepLastAndBest(checkpoint_managers.PreservationPolicy):
        best_step: int | None = None

        def should_preserve(self, checkpoints, *, context):
            del context
            last = len(checkpoints) - 2
            return [i >= last or info.step == self.best_step for i, info in enumerate(checkpoints)]

    return KeepLastAndBest


@functools.cache
def _quiet():
    """Orbax logs a line per file, warns of metadata that we do not write, and prints with stacks what it raises too: its threads log
    it, and those that nobody waits for after a failed write say so past all logging."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    print_error = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            print_error(unraisable)

    sys.unraisablehook = hook


def disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that the disk is full (the storage library words it as it likes)."""
    while error is not None:
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(self, folder: pathlib.Path):
        _quiet()
        self.folder = pathlib.Path(folder).resolve() / "checkpoints"
        self._policy = _keep_last_and_best()()
        options = _orbax().CheckpointManagerOptions(preservation_policy=self._policy, cleanup_tmp_directories=True)
        self._manager = _orbax().CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict, *, wait: bool = True):
        """Blocks until step is on disk, or without `wait` until it is copied from the devices (it may be donated then, and the next call
        waits for the disk). A step that is there already is left as it is. Raises RunError on a full disk."""
        self.wait()
        if step == self.latest():
            return
        self._policy.best_step = progress["best_step"]
        params, opt = _items(state)
        items = _orbax().args.Composite(
            params=_orbax().args.StandardSave(params),
            opt=_orbax().args.StandardSave(opt),
            progress=_orbax().args.JsonSave(progress | {"fingerprint": lineage.fingerprint(params)}),
        )
        with self._full_disk_said():
            self._manager.save(step, args=items)
        if wait:
            self.wait()

    def wait(self):
        """Blocks until all that was saved is on disk. Raises RunError on a full disk."""
        with self._full_disk_said():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _full_disk_said(self):
        try:
            yield
        except Exception as error:
            if disk_full(error):
                done = _steps(self.folder)
                raise RunError(
                    f"{self.folder}: the disk is full, the checkpoint was not written; the last complete one is "
                    f"{done[-1] if done else None}. Free some space and run the same command again to go on from it"
                ) from error
            raise

    def go_on(self, like: TrainState) -> tuple[int, TrainState, dict] | None:
        """(step, state, progress) of the last checkpoint that can be read; None if there is none.

        One that cannot (cut short by a lost disk, say) is put aside as <step>.unreadable, with a warning, if an earlier one can.
        """
        steps, errors = sorted(self._manager.all_steps(), reverse=True), []
        for step in steps:
            try:
                state, progress = self.restore(step, like)
            except Exception as error:  # whatever a damaged file does; raised below if no other checkpoint is better
                errors.append((step, error))
                continue
            for bad, error in errors:
                print(
                    f"warning: {self.folder / str(bad)} cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
                    f"going on from step {step}",
                    file=sys.stderr,
                    flush=True,
                )
                if distributed.is_primary():
                    (self.folder / str(bad)).rename(self.folder / f"{bad}.unreadable")
            if errors:
                distributed.barrier("unreadable checkpoints are put aside")
                self._manager.reload()
            return step, state, progress
        if errors:
            raise errors[0][1]
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """(state, progress) of a step, placed as `like` (arrays or ShapeDtypeStructs with shardings)."""
        self.wait()
        params, opt = _items(like)
        items = _orbax().args.Composite(
            params=_orbax().args.StandardRestore(params),
            opt=_orbax().args.StandardRestore(opt),
            progress=_orbax().args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=items)
        progress = {key: value for key, value in restored.progress.items() if key != "fingerprint"}
        self._policy.best_step = progress["best_step"]
        critic = {"critic": restored.opt["critic"]} if "critic" in restored.opt else {}
        return TrainState(restored.opt["step"], restored.params | critic, restored.opt["opt_state"]), progress

    def close(self):
        self.wait()
        self._manager.close()


def _items(state: TrainState) -> tuple[dict, dict]:
    """What a checkpoint's `params` and `opt` hold."""
    params = {key: node for key, node in state.params.items() if key != "critic"}
    critic = {key: node for key, node in state.params.items() if key == "critic"}
    return params, {"step": state.step, "opt_state": state.opt_state} | critic


def _steps(folder: pathlib.Path) -> list[int]:
    """The complete steps under <stage>/checkpoints: Orbax renames a step's folder to its number when it is whole."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def read_params(path: pathlib.Path, shardings=None) -> dict:
    """The parameters of one checkpoint folder; on the first device, or placed by a tree of shardings (or a function path -> sharding)."""
    _quiet()
    item = pathlib.Path(path).resolve() / "params"
    with _orbax().StandardCheckpointer() as reader:
        tree = reader.metadata(item).item_metadata.tree
        if shardings is None:
            shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), tree)
        like = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
        )
        return reader.restore(item, like)


def write_params(path: pathlib.Path, params: dict):
    """A checkpoint folder that holds parameters alone; it has its name only when it is whole."""
    _quiet()
    path = pathlib.Path(path).resolve()
    making = path.with_name(f"{path.name}.making")
    with _orbax().StandardCheckpointer() as writer:
        writer.save(making / "params", params, force=True)
    making.rename(path)


def fingerprint(path: pathlib.Path) -> str | None:
    """`lineage.fingerprint` of the parameters in a stage's checkpoint; None of one that an older version wrote."""
    return json.loads((path / "progress" / "metadata").read_text()).get("fingerprint")


def shapes(path: pathlib.Path) -> dict:
    """Tree of ShapeDtypeStructs of the parameters in one checkpoint folder."""
    _quiet()
    with _orbax().StandardCheckpointer() as reader:
        tree = reader.metadata(pathlib.Path(path).resolve() / "params").item_metadata.tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def locate(directory) -> pathlib.Path | None:
    """The checkpoint folder that `directory` means: itself, or a stage's last complete one; None if neither."""
    directory = pathlib.Path(directory)
    if (directory / "params").is_dir():
        return directory
    steps = _steps(directory / "checkpoints")
    if not steps:
        return None
    return directory / "checkpoints" / str(steps[-1])


def selected(stage_folder: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a finished stage chose (its DONE file names it)."""
    done = json.loads((pathlib.Path(stage_folder) / "DONE").read_text())
    return pathlib.Path(stage_folder) / "checkpoints" / str(done["selected_step"])


def load_params(directory) -> dict:
    """A nested dict of arrays: of a stage's folder (its last complete checkpoint) or of one checkpoint. Raises InputError."""
    path = locate(directory)
    if path is None:
        raise InputError(
            f"{directory}: no complete checkpoint there; give a stage's folder or one of its checkpoints/<step>"
        )
    return read_params(path)
