"""Orbax checkpoints of a stage: <stage>/checkpoints/<step>, written atomically, with checksums; the last two and the best are kept.

A checkpoint holds three items: `params`, `opt` (optimizer state, step, and a critic of its own) and `progress` (a small JSON).
Parameters stand alone so that other stages, and `load_params`, read them without what only this stage's training needs.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import re
import shutil
import sys
import tempfile

import jax

from reft_jax.errors import InputError, RunError
from reft_jax.mesh import distributed
from reft_jax.models import numbers
from reft_jax.run import checksums, lineage
from reft_jax.run.fingerprint import fingerprint as fingerprint_of
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
def _summing():
    """Orbax's handler of arrays, which sums up what this process has written, in the thread that writes."""
    ocp = _orbax()

    class Summing(ocp.StandardCheckpointHandler):
        typestr = ocp.StandardCheckpointHandler.typestr  # what is written is Orbax's own

        async def async_save(self, directory, *args, **kwargs):
            written = await super().async_save(directory, *args, **kwargs)
            item, process = pathlib.Path(directory), jax.process_index()
            return [ocp.future.ChainedFuture(written, lambda: checksums.write_part(item, process))]

    return Summing


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


_PLAIN = re.compile(r"[\w ./+,=@%-]*")
_WRITING = re.compile(r".*(\.making|\.orbax-checkpoint-tmp.*)")  # a folder's name until it is whole


@functools.cache
def _plain(folder: pathlib.Path) -> pathlib.Path:
    """A path to the folder that the storage library can read. It takes a path for a pattern ([ ] * ?), a URL (gs:) or Windows' (\\), so that
    a path with other than plain characters is gone by through a link in a temporary folder."""
    if _PLAIN.fullmatch(str(folder)):
        return folder
    where = next((place for place in (tempfile.gettempdir(), "/tmp", "/var/tmp") if _PLAIN.fullmatch(place)), None)
    place = pathlib.Path(tempfile.mkdtemp(prefix="reft_jax_", dir=where))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    (place / "folder").symlink_to(folder, target_is_directory=True)
    return place / "folder"


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(self, folder: pathlib.Path):
        _quiet()
        self.folder = pathlib.Path(folder).resolve() / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._policy, self._saving = _keep_last_and_best()(), None
        self._manager = self._open()

    def _open(self):
        """Orbax's manager of the folder, of the steps that are there now."""
        ocp = _orbax()
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in ("params", "opt"):
            handler = _summing()()
            handlers.add(item, ocp.args.StandardSave, handler)
            handlers.add(item, ocp.args.StandardRestore, handler)
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            handlers.add("progress", args)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # steps' metadata, which may be damaged, are not needed
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sum_up),
        )
        return ocp.CheckpointManager(_plain(self.folder), options=options, handler_registry=handlers)

    def _sum_up(self):
        """Writes the checksums of the step that is being saved; the thread that writes calls it in process 0 before the step gets its name."""
        [folder] = [
            path
            for path in self.folder.iterdir()
            if _WRITING.fullmatch(path.name) and path.name.split(".")[0] == str(self._saving)
        ]
        checksums.write(folder)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict, *, wait: bool = True, choice: bool = False):
        """Blocks until step is on disk, or without `wait` until it is copied from the devices (it may be donated then, and the next call
        waits for the disk). A step that is there already is left as it is. choice: the stage may choose it, and it gets a fingerprint. Raises
        RunError on a full disk."""
        self.wait()
        if step == self.latest():
            return
        self._policy.best_step = progress["best_step"]
        params, opt = _items(state)
        known = {"fingerprint": fingerprint_of(params)} if choice else {}
        items = _orbax().args.Composite(
            params=_orbax().args.StandardSave(params),
            opt=_orbax().args.StandardSave(opt),
            progress=_orbax().args.JsonSave(progress | known),
        )
        self._saving = step
        with self._full_disk_said():
            self._manager.save(step, args=items, custom_metadata=checksums.PROMISE)
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
                last = (
                    f"the last complete one is {done[-1]}. Free some space and run the same command again to go on from it"
                    if done
                    else "no complete one was written before. Free some space and run the same command again to begin the stage anew"
                )
                raise RunError(f"{self.folder}: the disk is full, the checkpoint was not written; {last}") from error
            raise

    def any(self) -> bool:
        """Whether one has been saved here."""
        return bool(self._manager.all_steps())

    def go_on(self, like: TrainState) -> tuple[int, TrainState, dict] | None:
        """(step, state, progress) of the last checkpoint that can be read; None if there is none. Raises InputError if none can be read.

        One that cannot (damaged, or cut short by a lost disk) is put aside as <step>.unreadable, with a warning, if an earlier one can.
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
                    f"warning: {self.folder / str(bad)} cannot be read ({_first_line(error)}); going on from step {step}",
                    file=sys.stderr,
                    flush=True,
                )
                if distributed.is_primary():
                    (self.folder / str(bad)).rename(self.folder / f"{bad}.unreadable")
            if errors:
                distributed.barrier("unreadable checkpoints are put aside")
                self._manager.close()
                self._manager = self._open()
            return step, state, progress
        if errors:
            raise InputError(
                f"{self.folder}: none of its checkpoints can be read ({'; '.join(f'{step}: {_first_line(error)}' for step, error in errors)}). "
                f"Restore one from a copy, or remove {self.folder.parent}, so that the stage begins anew"
            ) from errors[0][1]
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """(state, progress) of a step, placed as `like` (arrays or ShapeDtypeStructs with shardings). Raises InputError if its files are not
        those that were saved."""
        self.wait()
        checksums.check(self.folder / str(step))
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

    def fault(self, step: int) -> str | None:
        """Why a step's parameters cannot be read; None if they can."""
        folder = self.folder / str(step)
        if not folder.is_dir():
            return f"{folder} is gone"
        try:
            check(folder)
        except checksums.Damaged as error:
            return error.what

    def close(self):
        self.wait()
        self._manager.close()


def _first_line(error: BaseException) -> str:
    text = error.what if isinstance(error, checksums.Damaged) else f"{type(error).__name__}: {error}"
    return text.partition("\n")[0][:300]


def _items(state: TrainState) -> tuple[dict, dict]:
    """What a checkpoint's `params` and `opt` hold."""
    params = {key: node for key, node in state.params.items() if key != "critic"}
    critic = {key: node for key, node in state.params.items() if key == "critic"}
    return params, {"step": state.step, "opt_state": state.opt_state} | critic


def _steps(folder: pathlib.Path) -> list[int]:
    """The complete steps under <stage>/checkpoints: Orbax renames a step's folder to its number when it is whole."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def read_params(path: pathlib.Path, shardings=None) -> dict:
    """The parameters of one checkpoint folder; on the first device, or placed by a tree of shardings (or a function path -> sharding). Raises
    InputError if its files are not those that were saved, or hold what is no number."""
    path = pathlib.Path(path).resolve()
    check(path)
    with _reader(path) as (reader, item):
        tree = _tree(reader, item, path)
        if shardings is None:
            shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), tree)
        like = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
        )
        params = reader.restore(item, like)
    numbers.check(params, str(path))
    return params


def check(path: pathlib.Path):
    """Compares the files of a checkpoint's parameters with what was saved. Raises InputError."""
    checksums.check(pathlib.Path(path).resolve(), "params")


def write_params(path: pathlib.Path, params: dict):
    """A checkpoint folder that holds parameters alone; it has its name only when it is whole."""
    _quiet()
    path = pathlib.Path(path).resolve()
    making = path.with_name(f"{path.name}.making")
    making.mkdir(parents=True, exist_ok=True)
    with _orbax().StandardCheckpointer() as writer:
        writer.save(_plain(making) / "params", params, force=True, custom_metadata=checksums.PROMISE)
    checksums.write(making)
    making.rename(path)


def fingerprint(path: pathlib.Path) -> str | None:
    """`fingerprint.fingerprint` of the parameters in a stage's checkpoint; None of one that no stage could choose, or that an older version
    wrote."""
    try:
        return json.loads((path / "progress" / "metadata").read_text()).get("fingerprint")
    except (OSError, ValueError, AttributeError):  # a damaged one, as its checksum says
        return None


def shapes(path: pathlib.Path) -> dict:
    """Tree of ShapeDtypeStructs of the parameters in one checkpoint folder. Raises InputError if what says them is damaged."""
    path = pathlib.Path(path).resolve()
    checksums.check(path, "params/_METADATA")
    with _reader(path) as (reader, item):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _tree(reader, item, path))


@contextlib.contextmanager
def _reader(path: pathlib.Path):
    """(Orbax's reader, the folder of the parameters of a checkpoint)."""
    _quiet()
    with _orbax().StandardCheckpointer() as reader:
        yield reader, _plain(path) / "params"


def _tree(reader, item: pathlib.Path, path: pathlib.Path):
    """What the parameters of the checkpoint `path` are, as Orbax says it. Raises InputError."""
    try:
        return reader.metadata(item).item_metadata.tree
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        check(path)
        raise InputError(
            f"{path}: cannot be read as parameters ({type(error).__name__}: {error}); it is damaged or cut short: restore it from a copy"
        ) from error


def locate(directory) -> pathlib.Path | None:
    """The checkpoint folder that `directory` means: itself, or a stage's last complete one; None if neither."""
    directory = pathlib.Path(directory)
    if (directory / "params").is_dir():
        return None if _WRITING.fullmatch(directory.resolve().name) else directory
    steps = _steps(directory / "checkpoints")
    if not steps:
        return None
    return directory / "checkpoints" / str(steps[-1])


def why_none(directory) -> str:
    """Why `locate` finds no checkpoint there, and what to name instead."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return "there is no such directory"
    if _WRITING.fullmatch(directory.resolve().name):
        return "a checkpoint whose writing was interrupted, it is not complete; name another"
    if stages := [path.name for path in sorted(directory.iterdir()) if path.is_dir() and locate(path)]:
        return f"the folder of a whole run; name the folder of one of its stages that have a checkpoint: {', '.join(stages)}"
    if (directory / "DONE").is_file():
        return "a finished stage whose checkpoints are gone; restore them, or remove the folder and run the same command again to train it anew"
    return "a folder with no complete checkpoint; give a stage's folder or one of its checkpoints/<step>"


def facts(stage_folder: pathlib.Path) -> dict:
    """What a finished stage's DONE file says. Raises InputError if there is none, or if it cannot be read."""
    if (found := lineage.facts(pathlib.Path(stage_folder))) is None:
        raise InputError(f"{stage_folder}: has no DONE, so that the stage is not finished; run its command again")
    return found


def selected(stage_folder: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a finished stage chose (its DONE file names it). Raises InputError if it is gone, or another one."""
    path = _named(stage_folder, "selected_step", "chose")
    check_chosen(stage_folder)
    return path


def check_chosen(stage_folder: pathlib.Path):
    """Raises InputError where a finished stage's DONE and the checkpoint that it names, if that is there, do not belong together."""
    known = facts(stage_folder)
    path = pathlib.Path(stage_folder) / "checkpoints" / str(known.get("selected_step"))
    if "fingerprint" in known and path.is_dir() and (there := fingerprint(path)) != known["fingerprint"]:
        raise InputError(
            f"{path}: is not the checkpoint that the stage chose (its fingerprint is {there}, {pathlib.Path(stage_folder) / 'DONE'} says "
            f"{known['fingerprint']}); restore both from one copy, or remove {stage_folder} and run the same command again: it trains the stage anew"
        )


def last(stage_folder: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a finished stage ended with. Raises InputError if it is gone."""
    return _named(stage_folder, "last_step", "ended with")


def _named(stage_folder: pathlib.Path, key: str, what: str) -> pathlib.Path:
    folder = pathlib.Path(stage_folder)
    path = folder / "checkpoints" / str(facts(folder).get(key))
    if not (path / "params").is_dir():
        raise InputError(
            f"{path}: the checkpoint that the finished stage {folder.name} {what} is gone; restore it, or remove {folder} and run the "
            "same command again: it trains the stage anew"
        )
    return path


def load_params(directory) -> dict:
    """A nested dict of arrays: of a stage's folder (its last complete checkpoint) or of one checkpoint. Raises InputError."""
    path = locate(directory)
    if path is None:
        raise InputError(f"{directory}: {why_none(directory)}")
    return read_params(path)
