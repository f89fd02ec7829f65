"""Runs that were begun before settings had today's names: everything reads them, and going on with one is refused with the commit that can.

tests/fixtures/older_run.tar.gz is a run of commit 6ae9784 (a decoder of a few thousand parameters on 16 generated problems; stages warmup, reft,
grpo, online and evaluate), without the optimizer's state and the checkpoints of two stages.
"""

import json
import tarfile

import jax
import numpy as np
import pytest

from reft_jax import checkpoint, convert, main, models, recipe, rescore, tables
from reft_jax.config import renamed
from reft_jax.errors import InputError, Stop
from reft_jax.report import __main__ as report
from tests import runs, tiny

COMMIT = "6ae9784"


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older") / "run"
    with tarfile.open(runs.ROOT / "tests/fixtures/older_run.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["config"]


def test_its_settings_have_todays_names(older):
    tree = config_of(older)
    assert renamed.is_old(tree) and "ppo" in tree["stages"]["reft"] and "name" in tree["data"]
    stages = dict(recipe.build(renamed.modern(tree)).stages)
    reft, grpo, online = stages["reft"], stages["grpo"], stages["online"]
    assert (reft.advantage.kl.where, reft.advantage.kl.coef, reft.advantage.critic.coef) == ("reward", 0.05, 1.0)
    assert (grpo.advantage.kl.where, grpo.critic, grpo.num_samples) == ("loss", None, 2)
    assert (reft.advantage.kl.estimator, grpo.advantage.kl.estimator) == ("unbiased", "k3")  # as it was
    assert dict(online.losses)["own_gold"].own == 0.5 and dict(reft.rewards)["partial"].weight == 0.1
    assert not renamed.is_old(renamed.modern(tree)) and renamed.modern(renamed.modern(tree)) == renamed.modern(tree)


def test_going_on_with_it_is_refused_with_the_commit_that_can(older, tmp_path, capsys):
    before = runs.contents(older)
    assert main.main([f"--config={runs.ROOT}/configs/demo.py:smoke", f"--workdir={older}"]) == 2
    told = capsys.readouterr().err
    assert "begun by an older version" in told and f"git checkout {COMMIT}" in told and str(older) in told
    assert runs.contents(older) == before


@pytest.mark.parametrize("where, meant", [("reward", "unbiased"), ("loss", "k3")])
def test_a_run_begun_when_the_estimator_was_auto_goes_on_with_what_it_was(tmp_path, where, meant):
    flags = [f"--config={runs.ROOT}/configs/demo.py:smoke", f"--workdir={tmp_path}"]
    flags += [f"--config.stages.reft.advantage.kl.in={where}", f"--config.stages.reft.advantage.kl.estimator={meant}"]
    about = main.prepare(flags, Stop())[1]
    about["config"]["stages"]["reft"]["advantage"]["kl"]["estimator"] = "auto"
    (tmp_path / "reft").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert main.prepare(flags, Stop())
    with pytest.raises(InputError, match=f"advantage.kl.estimator: there '{meant}', now 'k2'"):
        main.prepare([*flags[:-1], "--config.stages.reft.advantage.kl.estimator=k2"], Stop())


def test_report_and_samples_read_it(older, tmp_path, capsys):
    assert report.main([str(older), f"--output={tmp_path / 'report.html'}"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert all(stage in page for stage in ("warmup", "grpo", "online")) and (older / "plots" / "accuracy.png").exists()
    assert report.main(["samples", str(older), "--stage=reft"]) == 0
    printed, lines = capsys.readouterr().out, runs.lines(older / "reft" / "samples.jsonl")
    assert lines and all(line["item_id"] in printed for line in lines)


def test_tables_and_rescore_read_it(older, capsys):
    found, warnings = tables.find_runs(older.parent)
    assert [run.path for run in found] == [older] and warnings == []
    assert set(found[0].labels) == {"warmup", "reft", "grpo"} and found[0].commit.startswith(COMMIT)
    assert found[0].stages["reft"]["advantage"]["kl"] == {"in": "reward", "coef": 0.05, "estimator": "unbiased"}
    assert rescore.main([str(older)]) == 0
    assert "vote@2" in capsys.readouterr().out


def test_its_parameters_are_read_and_converted(older, tmp_path):
    params = checkpoint.load_params(older / "reft")
    assert "value_head" in params and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert convert.main([f"--from={older / 'reft'}", f"--to={tmp_path / 'hf'}"]) == 0
    _, written = models.load_hf(tmp_path / "hf")
    tiny.assert_trees_equal({key: params[key] for key in written if key != "value_head"},
                            {key: node for key, node in written.items() if key != "value_head"})  # fmt: skip


@pytest.mark.slow
def test_a_stage_begins_with_it(older, tmp_path):
    config = tmp_path / "on.py"
    config.write_text(
        "from reft_jax.configs import common\n\n\ndef get_config(arg=''):\n"
        "    data = common.arithmetic(num_train=16, dev_size=4, num_test=4)\n"
        "    model = common.model('demo') | dict(arch=common.arch(8, 1, 2, 8))\n"
        f"    stages = dict(sft=common.sft({str(older / 'reft')!r}, 0.5, common.optim(1e-3), batch_size=8, eval_batch_size=8))\n"
        "    return common.config(seed=0, model=model, data=data, stages=stages)\n"
    )
    runs.run(tmp_path / "on", spec=str(config))
    assert (tmp_path / "on" / "sft" / "DONE").exists()
