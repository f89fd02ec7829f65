"""What figures and stages stand on: fingerprints of parameters, stages that were removed or done anew, results of a checkpoint that is gone."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import main as main_lib
from reft_jax import models, tables
from reft_jax.errors import InputError, Stop
from reft_jax.report import plots, read
from reft_jax.run import checkpoint, lineage
from reft_jax.run.fingerprint import fingerprint
from reft_jax.stages import evaluate, export
from tests import runs, tiny

DEMO = f"--config={runs.ROOT / runs.SMOKE}"
OTHER = "--config.stages.reft.rewards.right.weight=0.5"


# ------------------------------------------------------------------ fingerprints


TREE = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": {
        "half": np.linspace(-1, 1, 6).astype(jnp.bfloat16),
        "count": np.int32(3),
        "none": np.zeros((0, 3), np.float32),
    },
}


def changed(path: str, value):
    tree = {"a": TREE["a"], "b": dict(TREE["b"])}
    (tree if path == "a" else tree["b"])[path] = value
    return tree


def test_any_bit_place_shape_type_or_name_that_changes_is_another_fingerprint():
    rng = np.random.default_rng(0)
    others = []
    for leaf, path in ((TREE["a"], "a"), (TREE["b"]["half"], "half")):
        for _ in range(40):
            flipped = leaf.copy()
            flipped.reshape(-1).view(np.uint8)[rng.integers(flipped.nbytes)] ^= 1 << rng.integers(8)
            others.append(changed(path, flipped))
    others += [changed("a", TREE["a"][[1, 0, 2]]), changed("a", TREE["a"].T), changed("a", TREE["a"].reshape(4, 3))]
    others += [changed("count", np.int32(4)), changed("count", np.uint32(3)), {"a": TREE["a"], "c": TREE["b"]}]
    bits = [jax.tree.map(lambda x: (x.tobytes(), x.shape, str(x.dtype)), tree) for tree in (TREE, *others)]
    distinct = {json.dumps(jax.tree.map(str, one)) for one in bits}
    found = {fingerprint(jax.tree.map(jnp.asarray, tree)) for tree in (TREE, *others)}
    assert len(found) == len(distinct) > 60  # two flips may be the same one
    assert fingerprint(jax.tree.map(jnp.asarray, TREE)) in found and all(len(one) == 32 for one in found)


def test_fingerprints_are_the_same_on_every_mesh():
    plain = tiny.params(tiny.model("one"), 0, value_head=True)
    expected = fingerprint(jax.device_get(plain) | {})
    for where in tiny.LAYOUTS:
        model = tiny.model(where)
        placed = jax.device_put(plain, models.param_shardings(model, jax.eval_shape(lambda: plain)))
        assert fingerprint(placed) == expected, where


# ------------------------------------------------------------------ a run whose parts are removed


@pytest.fixture
def done(tmp_path) -> pathlib.Path:
    """A copy of a finished smoke run."""
    return pathlib.Path(shutil.copytree(runs.unbroken(), tmp_path / "run"))


def prepare(workdir, *flags):
    return main_lib.prepare([DEMO, f"--workdir={workdir}", *flags], Stop())[0]


def results(workdir) -> dict:
    return json.loads((workdir / "results.json").read_text())["stages"]


def test_a_stage_says_what_it_began_with_and_a_figure_what_it_was_measured_on(done):
    given = {}
    for stage in runs.STAGES[:3]:
        given[stage] = lineage.facts(done / stage)["fingerprint"]
        assert given[stage] == fingerprint(checkpoint.read_params(checkpoint.selected(done / stage)))
    assert len(set(given.values())) == 3
    begun = {stage: lineage.facts(done / stage, "BEGUN") for stage in runs.STAGES}
    warmup = {"warmup": given["warmup"]}
    assert begun == {"warmup": {}, "sft": warmup, "reft": warmup, "evaluate": given}
    assert {label: row["measured"] for label, row in results(done).items()} == {
        label: {label: given[label]} if label in given else {} for label in runs.LABELS
    }


@pytest.mark.parametrize(
    ("removed", "stale"),
    [(["warmup"], "sft, reft"), (["warmup", "reft"], "sft"), (["warmup", "sft", "results.json"], "reft")],
)
def test_what_stands_on_a_stage_that_was_removed_is_refused(done, removed, stale):
    for name in removed:
        shutil.rmtree(done / name) if (done / name).is_dir() else (done / name).unlink()
    with pytest.raises(InputError) as caught:
        prepare(done)
    folders = " ".join(str(done / name) for name in stale.split(", "))
    assert str(caught.value) == (
        f"--workdir={done}: {stale} began with warmup, which was removed, done anew or made longer since; restore it, or remove "
        f"also what stands on it, so that all of it is done again: rm -r {folders}"
    )


def test_what_began_with_another_checkpoint_of_a_stage_is_refused(done):
    path = done / "warmup" / "DONE"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 32}))
    with pytest.raises(
        InputError, match="sft, reft began with warmup, which was removed, done anew or made longer since"
    ):
        prepare(done)


def refreshed(workdir, capfd, *flags) -> tuple[dict, bool, str]:
    """(labels whose figures are kept, whether the evaluation is still done, what was printed) when a run goes on."""
    run = prepare(workdir, *flags)
    evaluate.refresh("evaluate", dict(run.config.stages)["evaluate"], run)
    known = results(workdir) if (workdir / "results.json").exists() else {}
    return set(known), run.done("evaluate"), capfd.readouterr().out


def test_figures_of_a_stage_that_was_removed_are_taken_out_before_it_is_trained_anew(done, capfd):
    assert refreshed(done, capfd) == (set(runs.LABELS), True, "")
    shutil.rmtree(done / "reft")
    kept, still_done, said = refreshed(done, capfd, OTHER)
    assert kept == {"base", "warmup", "sft"} and not still_done
    assert said == "evaluate: reft is measured again: its figures are not of the checkpoint that is there\n"
    assert refreshed(done, capfd, OTHER) == (kept, False, "")


def test_everything_that_was_removed_with_its_source_is_done_again(done, capfd):
    for stage in runs.STAGES[:3]:
        shutil.rmtree(done / stage)
    kept, still_done, said = refreshed(done, capfd)
    assert kept == {"base"} and not still_done and said.count("is measured again") == 3
    assert [path.parent.name for path in done.glob("*/predictions.jsonl")] == ["base"]


def test_results_that_were_removed_are_measured_again(done, capfd):
    (done / "results.json").unlink()
    assert refreshed(done, capfd) == (set(), False, "")


def test_an_evaluation_whose_folder_was_removed_is_done_again(done, capfd):
    shutil.rmtree(done / "evaluate")
    kept, _, said = refreshed(done, capfd, "--config.stages.evaluate.num_samples=2")
    assert kept == set() and said.count(f"{done / 'evaluate'} was removed") == 4


def test_figures_of_another_checkpoint_are_left_out_of_report_plots_and_tables(done):
    assert not lineage.outdated(done, results(done)["reft"])
    path = done / "reft" / "DONE"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 32}))
    run = read.run(done)
    assert "reft" not in run.results and set(run.results) == {"base", "warmup", "sft"}
    assert [note for note in run.notes if "reft" in note] == [
        "results.json: reft was left out: its figures are of a checkpoint that is no longer there"
    ]
    assert set(plots.read_results(done / "results.json")) == set(tables.read_run(done).labels) == set(run.results)
    path.unlink()  # it is being trained anew
    assert "reft" not in read.run(done).results
    shutil.rmtree(done / "reft")  # results may be copied without checkpoints
    assert "reft" in read.run(done).results


def test_a_run_of_an_older_version_is_read_and_goes_on(done, capfd):
    """No fingerprints anywhere: its figures stand; a stage that is trained anew is seen."""
    for stage in runs.STAGES:
        (done / stage / "BEGUN").unlink()
        path = done / stage / "DONE"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "fingerprint"}))
    path = done / "results.json"
    stored = json.loads(path.read_text())
    for row in stored["stages"].values():
        del row["measured"]
    path.write_text(json.dumps(stored))
    assert refreshed(done, capfd) == (set(runs.LABELS), True, "")
    assert set(read.run(done).results) == set(runs.LABELS)
    anew = done / "sft" / "DONE"
    given = checkpoint.fingerprint(checkpoint.selected(done / "sft"))
    anew.write_text(json.dumps(json.loads(anew.read_text()) | {"fingerprint": given}))
    assert refreshed(done, capfd)[0] == set(runs.LABELS) - {"sft"}


@pytest.mark.parametrize("how", ["another checkpoint", "another DONE"])
def test_a_checkpoint_that_the_stage_did_not_choose_is_refused(done, how):
    folder = done / "reft" / "checkpoints"
    facts = lineage.facts(done / "reft")
    assert facts["selected_step"] != facts["last_step"]
    if how == "another checkpoint":
        shutil.rmtree(folder / str(facts["selected_step"]))
        shutil.copytree(folder / str(facts["last_step"]), folder / str(facts["selected_step"]))
    else:
        (done / "reft" / "DONE").write_text(json.dumps(facts | {"selected_step": facts["last_step"]}))
    for look in (lambda: prepare(done), lambda: checkpoint.selected(done / "reft")):
        with pytest.raises(InputError, match="is not the checkpoint that the stage chose"):
            look()


def test_rows_keep_their_order_when_some_are_measured_again(done, monkeypatch):
    path = done / "results.json"
    stored = json.loads(path.read_text())
    row = stored["stages"].pop("base")
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments: row)
    run = prepare(done)
    evaluate.refresh("evaluate", dict(run.config.stages)["evaluate"], run)
    evaluate.run("evaluate", dict(run.config.stages)["evaluate"], run)
    assert tuple(results(done)) == runs.LABELS


def test_what_a_stage_left_and_is_gone_is_made_again(tmp_path):
    stage = export.Stage(init_from="x")
    assert lineage.gone(tmp_path, "out", stage) == [tmp_path / "out" / "hf"]
    (tmp_path / "out" / "hf").mkdir(parents=True)
    assert lineage.gone(tmp_path, "out", stage) == []


def test_a_stage_may_go_on_to_more_epochs_where_its_rates_stay_what_they_were(done):
    warmup = "--config.stages.warmup.epochs=3"  # of a rate that is planned over four
    with pytest.raises(
        InputError, match="sft, reft began with warmup, which was removed, done anew or made longer since"
    ):
        prepare(done, warmup)
    for name in ("sft", "reft"):
        shutil.rmtree(done / name)
    run = prepare(done, warmup)
    assert run.longer == ("warmup",) and run.done("warmup")  # nothing is written yet
    run.resume("warmup")
    assert not prepare(done).done("warmup")
    with pytest.raises(InputError, match="config.stages.warmup.epochs: there 2.0, now 1.0"):
        prepare(done, "--config.stages.warmup.epochs=1")


def test_a_rate_that_was_planned_over_fewer_epochs_does_not_go_on(done):
    with pytest.raises(InputError) as caught:
        prepare(done, "--config.stages.reft.epochs=4")
    said = str(caught.value)
    assert said.startswith(
        "config.stages.reft.epochs: there 2.0, now 4.0; its learning rate was planned over 2.0 epochs"
    )
    assert said.endswith(f"go on in a new folder, with --config.stages.reft.init_from={done / 'reft'}")


@pytest.mark.slow
def test_a_stage_that_is_trained_anew_is_what_the_table_shows(done):
    """The whole command: reft with another reward in the same folder."""
    before, shown = results(done), {label: runs.contents(done / label) for label in ("base", "warmup", "sft")}
    shutil.rmtree(done / "reft")
    runs.run(done, OTHER)
    said = runs.log(done)
    assert "evaluate: reft is measured again" in said and "evaluate: 3 of 4" not in said
    now, given = results(done), lineage.facts(done / "reft")["fingerprint"]
    assert now["reft"]["measured"] == {"reft": given} != before["reft"]["measured"]
    assert {label: now[label] for label in shown} == {label: before[label] for label in shown}
    assert shown == {label: runs.contents(done / label) for label in shown}
    report = read.run(done)
    assert report.results == now and not report.notes


@pytest.mark.slow
def test_a_stage_that_goes_on_to_more_epochs_ends_as_one_that_had_them_from_the_start(done, tmp_path):
    shutil.rmtree(done / "reft")
    constant, longer = "--config.stages.reft.optim.schedule.final=1.0", "--config.stages.reft.epochs=4"
    other = runs.run(shutil.copytree(done, tmp_path / "other"), constant, longer)
    for more in ((), (longer,)):
        runs.run(done, constant, *more)
    assert [lineage.facts(folder / "reft")["last_step"] for folder in (done, other)] == [8, 8]
    runs.assert_same_params(done / "reft", other / "reft")
    assert results(done)["reft"]["measured"] == {"reft": lineage.facts(done / "reft")["fingerprint"]}
