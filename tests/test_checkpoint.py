"""Checkpoints: every bit back, on another layout too; which are kept; what a folder means; errors."""

import contextlib
import io
import json
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.config import choices
from reft_jax.errors import InputError, RunError
from reft_jax.run import checkpoint, checksums
from reft_jax.run.checkpoint import Checkpoints
from reft_jax.training import loop
from reft_jax.training.state import init_state
from reft_jax.types import TrainState
from tests import runs, tiny

TX = tiny.optim(weight_decay=0.1)(10)


def state_on(where, seed=0, step=3):
    """A TrainState with nothing in it zero."""
    model = tiny.model(where)
    state = init_state(model, TX, tiny.params(model, seed, value_head=True))
    moments = jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x + 5, state.opt_state)
    return state.replace(step=state.step + step, opt_state=moments)


def progress(best_step=None, **more):
    return {"best_step": best_step, "best_accuracy": 0.25, **more}


@pytest.fixture(scope="module")
def state():
    return state_on("one")


@pytest.fixture
def open_checkpoints(tmp_path):
    """Opens tmp_path/stage as Checkpoints, as often as asked, and closes all."""
    opened = []

    def open_again():
        opened.append(Checkpoints(tmp_path / "stage"))
        return opened[-1]

    yield open_again
    for checkpoints in opened:
        checkpoints.close()


def kept(tmp_path):
    return sorted(int(path.name) for path in (tmp_path / "stage" / "checkpoints").iterdir() if path.name.isdigit())


def test_restore_gives_back_every_bit_and_the_progress(state, open_checkpoints):
    open_checkpoints().save(7, state, progress(7, note="é"))
    again = open_checkpoints()
    assert again.latest() == 7
    restored, facts = again.restore(7, jax.tree.map(jnp.zeros_like, state))
    tiny.assert_trees_equal(restored, state)
    assert facts == progress(7, note="é")


def test_bfloat16_parameters_survive(open_checkpoints):
    model = tiny.model("one", param_dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params(model))
    state = init_state(model, TX, params)
    checkpoints = open_checkpoints()
    checkpoints.save(1, state, progress())
    tiny.assert_trees_equal(checkpoints.restore(1, state)[0], state)
    tiny.assert_trees_equal(checkpoint.read_params(checkpoints.folder / "1"), params)


@pytest.mark.parametrize(
    "use, dtype",
    [
        ("muon", "float32"),
        *(pytest.param(name, "float32", marks=pytest.mark.slow) for name in choices.names("optim") if name != "muon"),
        *(pytest.param(name, "bfloat16", marks=pytest.mark.slow) for name in choices.names("optim")),
    ],
)
def test_the_state_of_every_optimizer_survives(open_checkpoints, use, dtype):
    model = tiny.model("mixed", param_dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.params(model))
    tx = tiny.optim(use=use, rounding="stochastic" if dtype == "bfloat16" else "nearest")(10)
    state = init_state(model, tx, params)
    state = state.replace(opt_state=jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state.opt_state))
    open_checkpoints().save(1, state, progress())
    empty = init_state(model, tx, params)
    tiny.assert_trees_equal(open_checkpoints().restore(1, empty)[0], state)


def test_nothing_saved_is_no_step(open_checkpoints):
    assert open_checkpoints().latest() is None


def test_the_last_two_and_the_best_are_kept(state, open_checkpoints, tmp_path):
    checkpoints = open_checkpoints()
    for step, best in [(1, None), (2, 2), (3, 2), (4, 2), (5, 2)]:
        checkpoints.save(step, state, progress(best))
    assert kept(tmp_path) == [2, 4, 5]
    again = open_checkpoints()  # a resumed run knows the best from the progress that it restores
    again.restore(5, state)
    again.save(6, state, progress(2))
    assert kept(tmp_path) == [2, 5, 6]
    again.save(7, state, progress(7))
    again.save(8, state, progress(7))
    again.save(9, state, progress(7))
    assert kept(tmp_path) == [7, 8, 9]


def test_saving_the_same_step_again_leaves_it_as_it_is(state, open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(4, state, progress(4))
    checkpoints.save(4, state.replace(step=state.step + 1), progress(None))
    restored, facts = checkpoints.restore(4, state)
    assert restored.step == state.step and facts == progress(4)


@pytest.mark.parametrize("there, here", [("mixed", "one"), ("one", "fsdp")])
def test_restore_onto_another_layout(there, here, open_checkpoints):
    written, like = state_on(there), state_on(here, seed=5, step=0)
    checkpoints = open_checkpoints()
    checkpoints.save(1, written, progress())
    restored, _ = checkpoints.restore(1, like)
    tiny.assert_trees_equal(restored, written)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, like)


def test_read_params_places_what_it_reads(state, open_checkpoints):
    checkpoints, model = open_checkpoints(), tiny.model("mixed")
    checkpoints.save(1, state, progress())
    shapes = checkpoint.shapes(checkpoints.folder / "1")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state.params
    )
    places = models.param_shardings(model, shapes)
    read = checkpoint.read_params(checkpoints.folder / "1", places)
    tiny.assert_trees_equal(read, state.params)
    assert jax.tree.map(lambda x: x.sharding, read) == places


def test_load_params_of_a_stage_is_its_last_checkpoint_and_of_a_checkpoint_itself(state, open_checkpoints, tmp_path):
    checkpoints = open_checkpoints()
    doubled = state.replace(params=jax.tree.map(lambda x: 2 * x, state.params))
    checkpoints.save(9, state, progress(9))
    checkpoints.save(10, doubled, progress(9))  # as numbers: "10" comes after "9"
    loaded = checkpoint.load_params(tmp_path / "stage")
    tiny.assert_trees_equal(loaded, doubled.params)
    assert type(loaded) is dict and type(loaded["blocks"]) is dict and isinstance(loaded["norm"]["scale"], jax.Array)
    tiny.assert_trees_equal(checkpoint.load_params(str(tmp_path / "stage" / "checkpoints" / "9")), state.params)
    tiny.assert_trees_equal(checkpoint.load_params(checkpoint.locate(tmp_path / "stage")), doubled.params)


def test_a_relative_path_is_fine(state, open_checkpoints, tmp_path, monkeypatch):
    open_checkpoints().save(1, state, progress())
    monkeypatch.chdir(tmp_path)
    tiny.assert_trees_equal(checkpoint.load_params("stage"), state.params)


def test_a_half_written_checkpoint_is_not_seen(state, open_checkpoints, tmp_path):
    open_checkpoints().save(1, state, progress())
    folder = tmp_path / "stage" / "checkpoints"
    (folder / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    tiny.assert_trees_equal(checkpoint.load_params(tmp_path / "stage"), state.params)
    again = open_checkpoints()
    assert again.latest() == 1
    again.save(2, state, progress())
    assert again.latest() == 2


def test_load_params_of_a_folder_without_a_checkpoint_is_refused(tmp_path):
    for folder, said in ((tmp_path, "no complete checkpoint"), (tmp_path / "absent", "there is no such directory")):
        with pytest.raises(InputError, match=said) as caught:
            checkpoint.load_params(folder)
        assert str(folder) in str(caught.value)
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert checkpoint.locate(tmp_path) is None


@pytest.mark.parametrize("name", ["3.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-17", "3.making"])
def test_an_interrupted_write_is_never_taken_for_a_checkpoint(name, state, tmp_path):
    """Not even where it is named, and all its files are there."""
    checkpoint.write_params(tmp_path / "stage" / "checkpoints" / "2", state.params)
    shutil.copytree(tmp_path / "stage" / "checkpoints" / "2", tmp_path / "stage" / "checkpoints" / name)
    assert checkpoint.locate(tmp_path / "stage") == tmp_path / "stage" / "checkpoints" / "2"
    with pytest.raises(InputError, match="interrupted"):
        checkpoint.load_params(tmp_path / "stage" / "checkpoints" / name)


def test_selected_is_what_the_finished_stage_named(tmp_path):
    (tmp_path / "DONE").write_text(json.dumps({"selected_step": 12, "last_step": 13}))
    for step in (12, 13):
        (tmp_path / "checkpoints" / str(step) / "params").mkdir(parents=True)
    assert checkpoint.selected(tmp_path) == tmp_path / "checkpoints" / "12"
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoints" / "13"


def test_a_chosen_checkpoint_that_is_gone_is_said_with_what_to_do(tmp_path):
    (tmp_path / "DONE").write_text(json.dumps({"selected_step": 12, "last_step": 13}))
    for find, step, what in ((checkpoint.selected, 12, "chose"), (checkpoint.last, 13, "ended with")):
        with pytest.raises(
            InputError, match=rf"checkpoints/{step}: .* {what} is gone; restore it, or remove {tmp_path} and"
        ):
            find(tmp_path)
    with pytest.raises(InputError, match="a finished stage whose checkpoints are gone"):
        checkpoint.load_params(tmp_path)
    (tmp_path / "DONE").write_text('{"selected_step": 1')
    with pytest.raises(InputError, match="DONE:1: malformed JSON .*; restore it, or remove"):
        checkpoint.selected(tmp_path)


def test_a_run_s_folder_is_answered_with_its_stages(state, tmp_path):
    for stage in ("sft", "reft"):
        checkpoint.write_params(tmp_path / stage / "checkpoints" / "2", state.params)
    (tmp_path / "evaluate").mkdir()
    with pytest.raises(InputError, match="a whole run; name the folder of one of its stages .*: reft, sft$"):
        checkpoint.load_params(tmp_path)


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(state, open_checkpoints, monkeypatch):
    checkpoints = open_checkpoints()
    checkpoints.save(1, state, progress())

    def full(*args, **kwargs):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise ValueError("write failed") from error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(RunError, match="disk is full.*checkpoint was not written; the last complete one is 1"):
            checkpoints.save(2, state, progress())
    tiny.assert_trees_equal(checkpoints.restore(1, state)[0], state)


def test_a_save_that_is_not_waited_for_is_of_that_moment(state, open_checkpoints, tmp_path, monkeypatch):
    """What was saved is the state at that moment, even if its buffers are given away at once; a failure is said by what comes next."""
    checkpoints, facts = open_checkpoints(), progress(None)
    given_away = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    copy = jax.tree.map(jnp.copy, state)
    checkpoints.save(1, copy, facts, wait=False)
    facts["note"] = "later"
    given_away(copy)
    checkpoints.save(2, state, facts, wait=False)
    checkpoints.wait()
    assert kept(tmp_path) == [1, 2]
    for step, said in ((1, progress(None)), (2, facts)):
        restored, read = checkpoints.restore(step, state)
        tiny.assert_trees_equal(restored, state)
        assert read == said

    def full():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", full)
        with pytest.raises(RunError, match="disk is full.*the last complete one is 2"):
            checkpoints.save(3, state, facts, wait=False)
        shutil.rmtree(checkpoints.folder / "1")
        shutil.rmtree(checkpoints.folder / "2")
        with pytest.raises(RunError, match="disk is full.*no complete one was written before"):
            checkpoints.save(3, state, facts, wait=False)


def test_another_failure_is_not_taken_for_a_full_disk(state, open_checkpoints, monkeypatch):
    checkpoints = open_checkpoints()

    def broken(*args, **kwargs):
        raise PermissionError("no")

    monkeypatch.setattr(checkpoints._manager, "save", broken)
    with pytest.raises(PermissionError):
        checkpoints.save(2, state, progress())


def test_parameters_can_be_read_without_the_optimizer(state, open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(1, state, progress())
    for path in sorted((checkpoints.folder / "1" / "opt").rglob("*"), reverse=True):
        pathlib.Path.rmdir(path) if path.is_dir() else path.unlink()
    tiny.assert_trees_equal(checkpoint.read_params(checkpoints.folder / "1"), state.params)
    assert np.isfinite(checkpoint.read_params(checkpoints.folder / "1")["norm"]["scale"]).all()


# ------------------------------------------------------------------ damaged checkpoints


def spoil(folder: pathlib.Path):
    """Cuts the largest file under the folder to half."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def damaged(tmp_path, *saved: int) -> subprocess.CompletedProcess:
    """A process that saves those steps, spoils the last and goes on; of its own, since the storage library leaves reads behind
    that fail later."""
    code = f"""
from tests.test_checkpoint import *
folder, state = pathlib.Path({str(tmp_path)!r}) / "stage", state_on("one")
checkpoints = Checkpoints(folder)
for step in {saved}:
    checkpoints.save(step, state.replace(step=state.step + step), progress(3))
spoil(folder / "checkpoints" / str(step) / "params")
again = Checkpoints(folder)
step, restored, facts = again.go_on(jax.tree.map(jnp.zeros_like, state))
assert facts == progress(3) and again.latest() == step == 3
tiny.assert_trees_equal(restored, state.replace(step=state.step + 3))
again.save(4, state, progress(3))  # the step can be saved anew
tiny.assert_trees_equal(Checkpoints(folder).go_on(state)[1], state)
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True
    )


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(tmp_path):
    done = damaged(tmp_path, 3, 4)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoints/4 cannot be read" in done.stderr and "going on from step 3" in done.stderr
    assert (tmp_path / "stage" / "checkpoints" / "4.unreadable").is_dir() and kept(tmp_path) == [3, 4]


def test_a_damaged_only_checkpoint_is_an_error_and_stays(tmp_path):
    done = damaged(tmp_path, 3)
    assert done.returncode == 1 and "InputError" in done.stderr
    assert "none of its checkpoints can be read (3: " in done.stderr and "bytes" in done.stderr
    assert kept(tmp_path) == [3]


def small(seed: int) -> TrainState:
    """A state that is saved in no time."""
    rng = np.random.default_rng(seed)
    matrix, vector = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((64, 32), (7,)))
    return TrainState(
        jnp.int32(seed), {"a": {"kernel": matrix}, "b": vector}, {"mu": matrix + 1, "count": jnp.int32(3)}
    )


def flip(path: pathlib.Path, rng: random.Random):
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def went_on(folder: pathlib.Path, like) -> tuple:
    """(what `go_on` gives, its warnings) of a stage's folder."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        checkpoints = Checkpoints(folder)
        found = checkpoints.go_on(like)
        checkpoints.close()
    return found, said.getvalue()


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_any_file_is_found_or_harmless(seed, tmp_path):
    """In every file of a step: metadata, progress and checksums too. What is found is put aside; what is harmless restores bit for bit."""
    rng, states, whole = random.Random(seed), {1: small(1), 2: small(2)}, tmp_path / "whole"
    checkpoints = Checkpoints(whole)
    for step, state in states.items():
        checkpoints.save(step, state, progress(step))
    checkpoints.close()
    found = {}
    for path in sorted(path for path in (whole / "checkpoints" / "2").rglob("*") if path.is_file()):
        stage = tmp_path / "stage"
        shutil.copytree(whole, stage)
        flip(stage / path.relative_to(whole), rng)
        with contextlib.suppress(checksums.Damaged):
            tiny.assert_trees_equal(checkpoint.load_params(stage), states[2].params)
        (step, restored, facts), said = went_on(stage, states[1])
        tiny.assert_trees_equal(restored, states[step])
        assert facts == progress(step) and (step == 1) == ("checkpoints/2 cannot be read" in said)
        assert (step == 1) == (stage / "checkpoints" / "2.unreadable").is_dir()
        found[path.relative_to(whole / "checkpoints" / "2").as_posix()] = step == 1
        shutil.rmtree(stage)
    assert {name for name, was in found.items() if not was} == {"_CHECKPOINT_METADATA", "commit_success.txt"}
    assert len(found) > 20


def test_damage_is_one_error_that_names_the_file_and_what_to_do(tmp_path):
    state, folder = small(1), tmp_path / "stage" / "checkpoints" / "1"
    checkpoints = Checkpoints(tmp_path / "stage")
    checkpoints.save(1, state, progress())
    checkpoints.close()
    data = max((folder / "params" / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().st_size)
    flip(data, random.Random(0))
    read = [checkpoint.load_params, checkpoint.read_params, checkpoint.check]
    for one in read:
        with pytest.raises(
            InputError, match=rf"^{data} is damaged: its bytes 0 to .* Restore {folder} from a copy, or name another"
        ):
            one(folder)
    assert "a" in checkpoint.shapes(folder)  # reads no weights
    manifest = (folder / "params" / "manifest.ocdbt").read_bytes()
    flip(folder / "params" / "manifest.ocdbt", random.Random(0))
    with pytest.raises(InputError, match="is damaged"):  # whichever is found first
        checkpoint.shapes(folder)
    (folder / "params" / "manifest.ocdbt").write_bytes(manifest)
    flip(folder / "params" / "_METADATA", random.Random(1))
    with pytest.raises(InputError, match="_METADATA is damaged"):
        checkpoint.shapes(folder)
    data.unlink()
    with pytest.raises(InputError, match="cannot be read .No such file or directory. .and 1 more such faults."):
        checkpoint.load_params(folder)
    (folder / checksums.NAME).unlink()
    with pytest.raises(InputError, match="checksums.json is gone"):
        checkpoint.load_params(folder)


def test_checkpoints_without_checksums_are_read(tmp_path, monkeypatch):
    """Those of earlier versions."""
    with monkeypatch.context() as patch:
        for name in ("write", "write_part"):
            patch.setattr(checksums, name, lambda *_: None)
        patch.setattr(checksums, "PROMISE", {})
        checkpoints = Checkpoints(tmp_path / "stage")
        checkpoints.save(1, small(1), progress())
        checkpoints.close()
        checkpoint.write_params(tmp_path / "alone" / "checkpoints" / "0", small(1).params)
    assert not list(tmp_path.rglob(checksums.NAME))
    tiny.assert_trees_equal(went_on(tmp_path / "stage", small(2))[0][1], small(1))
    for folder in ("stage", "alone"):
        tiny.assert_trees_equal(checkpoint.load_params(tmp_path / folder), small(1).params)


def test_files_of_several_chunks_and_empty_ones_have_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "CHUNK", 100)
    (tmp_path / "params").mkdir()
    file = tmp_path / "params" / "weights"
    file.write_bytes(bytes(range(250)))
    (tmp_path / "params" / "empty").touch()
    checksums.write(tmp_path)
    files = json.loads((tmp_path / checksums.NAME).read_text())["files"]
    assert [len(files[f"params/{name}"]["sums"]) for name in ("weights", "empty")] == [3, 0]
    checksums.check(tmp_path)
    for position, said in ((3, "0 to 100"), (199, "100 to 200"), (249, "200 to 250")):
        data = bytearray(range(250))
        data[position] ^= 16
        file.write_bytes(data)
        with pytest.raises(InputError, match=f"its bytes {said} are not"):
            checksums.check(tmp_path)
        checksums.check(tmp_path, "opt")
    file.write_bytes(bytes(range(250)) + b"more")
    with pytest.raises(InputError, match="254 bytes, 250 were saved"):
        checksums.check(tmp_path)
    file.write_bytes(bytes(range(250)))
    (tmp_path / "params" / "empty").write_bytes(b"x")
    with pytest.raises(InputError, match="1 bytes, 0 were saved"):
        checksums.check(tmp_path)


@pytest.mark.parametrize("name", ["c[1]", "a\\b", "x?y", "z*", "**", "100%", "a b", "gs:", "é", "a\nb", "-x", "{a}"])
def test_any_folder_s_name_will_do(name, tmp_path):
    state, folder = small(1), tmp_path / name
    for step in (1, 2, 3):
        checkpoints = Checkpoints(folder / "stage")
        checkpoints.save(step, state, progress())
        checkpoints.close()
    step, restored, _ = went_on(folder / "stage", small(2))[0]
    assert step == 3 and sorted(path.name for path in (folder / "stage" / "checkpoints").iterdir()) == ["2", "3"]
    tiny.assert_trees_equal(restored, state)
    tiny.assert_trees_equal(checkpoint.load_params(folder / "stage"), state.params)
    checkpoint.write_params(folder / "alone" / "checkpoints" / "0", state.params)
    tiny.assert_trees_equal(checkpoint.load_params(folder / "alone"), state.params)
    assert checkpoint.shapes(folder / "alone" / "checkpoints" / "0").keys() == state.params.keys()


# ------------------------------------------------------------------ the best


def killed_in_a_save(tmp_path, moment: str) -> str:
    """A process that saves 1 (the best), 2 and 3 (then the best), and is killed in the last save: before the step has its name, or before
    what is no longer kept is deleted. What it printed to standard error."""
    code = f"""
import os, signal
from tests.test_checkpoint import *
checkpoints, kill = Checkpoints(pathlib.Path({str(tmp_path)!r}) / "stage"), lambda *_: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(1, small(1), progress(1))
checkpoints.save(2, small(2), progress(1))
if {moment!r} == "named":
    checkpoints._manager._checkpoint_deleter.delete_steps = kill
else:
    checksums.write = kill
checkpoints.save(3, small(3), progress(3))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize("moment, there, step", [("unnamed", [1, 2], 2), ("named", [1, 2, 3], 3)])
def test_the_best_is_not_deleted_before_the_newer_best_is_whole(moment, there, step, tmp_path):
    killed_in_a_save(tmp_path, moment)
    assert kept(tmp_path) == there
    (at, restored, facts), said = went_on(tmp_path / "stage", small(9))
    assert at == step and said == "" and (tmp_path / "stage" / "checkpoints" / str(facts["best_step"])).is_dir()
    tiny.assert_trees_equal(restored, small(step))


def test_a_save_that_fails_deletes_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "stage")
    checkpoints.save(1, small(1), progress(1))
    checkpoints.save(2, small(2), progress(1))

    def full(step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checksums, "write", full)
    with pytest.raises(RunError, match="disk is full.*the last complete one is 2"):
        checkpoints.save(3, small(3), progress(3))
    assert kept(tmp_path) == [1, 2]
    monkeypatch.undo()
    assert went_on(tmp_path / "stage", small(9))[0][2] == progress(1)


class Chooses:
    select, select_on = "best", "dev"


def test_a_best_checkpoint_that_is_gone_is_said_and_the_best_of_what_follows_is_chosen(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path / "stage")
    for step in (1, 2, 3):
        checkpoints.save(step, small(step), progress(1))
    facts = progress(1)
    loop.forget_lost_best("sft", facts, checkpoints)
    assert facts == progress(1) and capsys.readouterr().err == ""
    shutil.rmtree(checkpoints.folder / "1")
    loop.forget_lost_best("sft", facts, checkpoints)
    said = capsys.readouterr().err
    assert said.startswith(
        f"warning: sft: the best checkpoint so far (0.250 at step 1) is lost: {checkpoints.folder}/1 is gone"
    )
    lost = dict(lost_step=1, lost_accuracy=0.25)
    there_again = dict(facts)
    assert facts == dict(best_step=None, best_accuracy=-1.0) | lost
    loop.select(facts, 4, {"eval/dev_accuracy": 0.2}, Chooses)
    assert facts == dict(best_step=4, best_accuracy=0.2) | lost
    loop.select(facts, 5, {"eval/dev_accuracy": 0.25}, Chooses)  # the first of equals would have been chosen
    assert facts == dict(best_step=5, best_accuracy=0.25) | lost
    loop.select(facts, 6, {"eval/dev_accuracy": 0.3}, Chooses)
    assert facts == dict(best_step=6, best_accuracy=0.3)
    shutil.copytree(checkpoints.folder / "3", checkpoints.folder / "1")
    loop.forget_lost_best("sft", there_again, checkpoints)
    assert there_again == progress(1) and capsys.readouterr().err == ""
    flip(checkpoints.folder / "1" / "params" / "manifest.ocdbt", random.Random(0))
    loop.forget_lost_best("sft", there_again, checkpoints)
    assert there_again == dict(best_step=None, best_accuracy=-1.0) | lost
    assert "(0.250 at step 1) is lost" in (said := capsys.readouterr().err) and "manifest.ocdbt is damaged" in said
    checkpoints.close()


def test_nothing_saved_is_nothing_to_go_on_from(state, open_checkpoints):
    assert open_checkpoints().go_on(state) is None
