"""The reft stage with each kind of critic: files, metrics, later stages, and a resumed run that equals an unbroken one."""

import dataclasses
import gc
import json
import zlib

import numpy as np
import pytest

from reft_jax import prepare, recipe
from reft_jax.compile import __main__ as compiler
from reft_jax.compile import measure
from reft_jax.compile import programs as programs_lib
from reft_jax.configs import common as fragments
from reft_jax.errors import Preempted
from reft_jax.rewards import score as rewards
from reft_jax.run import checkpoint
from reft_jax.stages import evaluate, export, reft
from tests import runs, tiny
from tests.test_defects import GRADES, make_run, run_stage

CRITIC = fragments.method(kl_coef=0.1, trunk="separate", init="zeros")
# Everything that differs from the default at once: what the loss, the batch and the files have to agree on.
FREE = fragments.method("grpo", kl_coef=0.1) | dict(losses=dict(policy=dict(clip_high=0.28)), reduce="constant")
LORA = fragments.lora(2, targets=r"attention\..*")
KINDS = {
    "separate": (CRITIC, {}, None),
    "none": (FREE, dict(correction="importance"), LORA),
    "separate, adapters": (CRITIC | dict(reduce="token"), {}, LORA),
}


def config_of(kind):
    """Two steps of eight responses in packed rows and parts, a second reft stage on top, evaluation and export of both."""
    settings, changes, lora = KINDS[kind]
    stage = dict(batch_size=2, minibatch_size=4, num_samples=4, eval_every=0.0, eval_batch_size=2)
    first = fragments.reft("random", 0.5, fragments.optim(1e-2), **stage, **settings)
    first["ppo"] |= dict(accumulate=2) | changes
    stages = dict(
        reft=first,
        again=fragments.reft("reft", 0.25, fragments.optim(1e-3), **stage, **fragments.method(kl_coef=0.1)),
        evaluate=fragments.evaluate(dict(reft="reft"), num_samples=0, num_questions=0, batch_size=2),
        export=dict(kind="export", init_from="reft"),
    )
    data = fragments.arithmetic(num_train=8, dev_size=2, num_test=2) | dict(pack=True)
    model = fragments.model("demo", lora=lora) | dict(arch=fragments.arch(8, 1, 2, 8))
    return recipe.build(fragments.config(seed=0, model=model, data=data, stages=stages).to_dict())


@pytest.fixture(autouse=True)
def grades(monkeypatch):
    """Grades that differ within a question, and are a function of the response alone."""

    def grade(task, cot, texts, golds, **_):
        return [GRADES[zlib.crc32(text.encode()) % 4] for text in texts]

    monkeypatch.setattr(rewards, "grade", grade)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # a stop ends the process
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("none", "separate", "separate, adapters")]
)
def test_a_run_with_any_critic_is_whole_and_resumes_exactly(kind, tmp_path):
    config = config_of(kind)
    stage = dict(config.stages)["reft"]
    unbroken, broken = (make_run(config, tmp_path / name) for name in ("unbroken", "broken"))
    for run in (unbroken, broken):
        run.workdir.mkdir()
    run_stage(unbroken, "reft")
    stopped = dataclasses.replace(broken, stop=type("Stop", (), dict(requested=True)))
    (broken.workdir / "reft").mkdir()
    with pytest.raises(Preempted):  # after its first step
        reft.run("reft", stage, stopped)
    gc.collect()
    reft.run("reft", stage, broken)
    a, b = (run.workdir / "reft" for run in (unbroken, broken))
    runs.assert_same_params(a, b)
    assert runs.timeless(runs.lines(a / "metrics.jsonl")) == runs.timeless(runs.lines(b / "metrics.jsonl"))
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()

    # the files have what applies, and nothing else
    critic = stage.critic is not None
    assert critic == (kind != "none")
    _, *lines = runs.lines(a / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["ppo/first_ratio_error"] < 1e-4 and line["grad/norm"] > 0.01
        for key in ("ppo/value_loss", "value/mean", "ppo/explained_variance"):
            assert (key in line) == critic
        assert ("ppo/kl_loss" in line) == (kind == "none") != ("reward/with_kl" in line)
        assert all(isinstance(value, int | float) for value in line.values())
    samples = runs.lines(a / "samples.jsonl")
    assert len(samples) == 16 and all(("value" in line) == critic for line in samples)
    assert not critic or np.any([any(line["value"]) for line in samples if line["step"] == 2])  # it began with zeros

    # later stages see the policy alone
    stored = checkpoint.load_params(a)
    assert not {"critic", "value_head"} & stored.keys()
    run_stage(unbroken, "evaluate", evaluate)
    run_stage(unbroken, "export", export)
    files = {path.name for path in (unbroken.workdir / "export" / "hf").iterdir()}
    assert "model.safetensors" in files and "heads.safetensors" not in files
    assert json.loads((unbroken.workdir / "results.json").read_text())["stages"]["reft"]["num_questions"] == 2
    run_stage(unbroken, "again")
    assert "value_head" in checkpoint.load_params(unbroken.workdir / "again")


OWN = """
import dataclasses

import jax.numpy as jnp
import numpy as np

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    weight: float = setting(default=1.0)
    needs = ("logp",)

    def __call__(self, responses, scored):
        width = responses.lengths.max() + 3  # wider than the longest response, and than the arrays
        real = np.arange(width) < responses.lengths[:, None]
        paid = np.array([grade.correct for grade in responses.grades])[:, None] / responses.lengths[:, None]
        assert scored.keys() == {"logp"} and scored["logp"].shape[0] == len(real)
        return np.where(real, paid, np.inf).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage:
    scale: float = setting(above=0, default=1.0)
    compares = False

    def __call__(self, rollout):
        adv = jnp.where(rollout.mask, self.scale * rollout.scores, 0.0)
        return adv, None, {"mine/paid": adv.sum(1).mean()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    coef: float = setting(0, default=1.0)
    needs, reads, together = ("logp",), ("adv",), "token"

    def __call__(self, out, batch, mean):
        loss = mean(-batch.adv * jnp.where(batch.mask, out.logp, 0.0))
        return loss, {"mine/loss": loss}
"""


def test_files_of_ones_own_are_a_stage_s_loss_advantage_and_reward(tmp_path):
    """REINFORCE with rewards of tokens, all of a file outside the package; no critic, no KL, no clipped ratio."""
    path = tmp_path / "my.py"
    path.write_text(OWN)
    sizes = dict(batch_size=4, minibatch_size=4, num_samples=4, eval_batch_size=2)
    own = dict(advantage={"use": str(path), "scale": 2.0}, losses={"mine": {"use": f"{path}:Loss", "coef": 0.5}})
    own |= dict(rewards={"tokens": {"use": str(path), "weight": 0.5}})
    stages = dict(reft=fragments.reft("random", 1, fragments.optim(1e-2), **sizes, **own))
    data = fragments.arithmetic(num_train=8, dev_size=2, num_test=2)
    model = fragments.model("demo") | dict(arch=fragments.arch(8, 1, 2, 8))
    tree = fragments.config(seed=0, model=model, data=data, stages=stages).to_dict()
    run = make_run(recipe.build(tree), tmp_path / "run")
    run.workdir.mkdir()
    run_stage(run, "reft")
    samples = runs.lines(run.workdir / "reft" / "samples.jsonl")
    _, *lines = runs.lines(run.workdir / "reft" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        paid = [0.5 * (one["status"] == "correct") for one in samples if one["step"] == line["step"]]
        assert 0 < np.mean(paid) < 0.5
        np.testing.assert_allclose(
            [line["reward/mean"], line["reward/tokens"]], np.mean(paid) * np.array([1, 2]), rtol=1e-5
        )
        np.testing.assert_allclose(line["mine/paid"], 2 * np.mean(paid), rtol=1e-5)
        np.testing.assert_allclose(line["ppo/loss"], 0.5 * line["mine/loss"], rtol=1e-5)
        assert not {"ppo/first_ratio_error", "ppo/policy_loss", "reward/with_kl", "value/mean"} & line.keys()
        assert line["grad/norm"] > 0
    for one in samples:
        assert one["score"] == pytest.approx(0.5 * (one["status"] == "correct"))
        np.testing.assert_allclose(one["adv"], 2 * one["score"] / len(one["tokens"]), rtol=1e-5)


def test_scores_of_tokens_are_as_wide_as_the_arrays():
    score = np.float32([[1, 2, 0, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(reft.as_wide(score, 3), score[:, :3])
    np.testing.assert_array_equal(reft.as_wide(score, 6), np.pad(score, ((0, 0), (0, 2))))
    np.testing.assert_array_equal(reft.as_wide(score[:, 0], 6), score[:, 0])


def test_compiling_ahead_covers_every_critic():
    layout = tiny.layout("one")
    found = {}
    for kind in ("none", "separate"):
        tree = config_of(kind)
        config = dataclasses.replace(tree, stages=tree.stages[:1], model=dataclasses.replace(tree.model, lora=None))
        model = prepare.build_model(config, compiler.architecture(config), layout)
        programs = {program.name: program for program in programs_lib.programs(config, model)}
        found[kind] = programs["reft/score"], programs["reft/advantages"], programs["reft/ppo_step"]
    params = [programs[2].arguments[0].params for programs in found.values()]
    assert "critic" not in params[0] and set(params[1]) == set(params[0]) | {"critic"}
    for none, separate, forwards in zip(found["none"], found["separate"], (2, None, 1), strict=True):
        assert measure.device_bytes(separate.resident) >= measure.device_bytes(none.resident)
        if forwards:  # the critic reads as many tokens as the policy, and has no logits
            assert none.flops < separate.flops < none.flops * (forwards + 1) / forwards
    arguments = [measure.device_bytes(programs[2].arguments) for programs in found.values()]
    assert arguments[1] > 1.9 * arguments[0] - measure.device_bytes(found["none"][2].arguments[1:])
