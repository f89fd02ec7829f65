"""Checkpoints: every bit back, on another layout too; which are kept; what a folder means; errors."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.config import choices
from reft_jax.errors import InputError, RunError
from reft_jax.run import checkpoint
from reft_jax.run.checkpoint import Checkpoints
from reft_jax.training.state import init_state
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


@pytest.mark.parametrize("use", choices.names("optim"))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
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
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no complete checkpoint") as caught:
            checkpoint.load_params(folder)
        assert str(folder) in str(caught.value)
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert checkpoint.locate(tmp_path) is None


def test_selected_is_what_the_finished_stage_named(tmp_path):
    (tmp_path / "DONE").write_text(json.dumps({"selected_step": 12}))
    assert checkpoint.selected(tmp_path) == tmp_path / "checkpoints" / "12"


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
    assert done.returncode == 1 and "Error" in done.stderr
    assert kept(tmp_path) == [3]


def test_nothing_saved_is_nothing_to_go_on_from(state, open_checkpoints):
    assert open_checkpoints().go_on(state) is None
