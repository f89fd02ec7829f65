"""configs/reft.py: every method with one argument, beside ReFT in numbers of responses and steps."""

import dataclasses
import itertools
import json

import pytest

from reft_jax import recipe
from reft_jax.advantages import dr_grpo, gae, grpo, reinforce_pp, rloo
from reft_jax.errors import InputError
from reft_jax.losses.kl import KL
from tests import runs

METHODS = ("reft", "grpo", "dr_grpo", "rloo", "reinforce_pp", "online", "offline")
GRID = dict(
    data=("gsm8k", "mathqa-numeric"),
    cot=("program", "nl"),
    model=("tiny", "some/directory"),
    smoke=(False, True),
    method=METHODS,
)


def load(**arguments):
    text = ",".join(f"{key}={value}" for key, value in arguments.items())
    return recipe.load(f"{runs.ROOT}/configs/reft.py:{text},train_file=train.json")


def test_every_method_builds():
    for values in itertools.product(*GRID.values()):
        config, tree = load(**dict(zip(GRID, values, strict=True)))
        assert config == recipe.build(tree)
        assert [name for name, _ in config.stages] == ["warmup", "sft", values[-1], "evaluate"]
        assert [label for label, _ in config.stages[-1][1].checkpoints] == ["warmup", "sft", values[-1]]


@pytest.mark.parametrize("model", ["some/directory", "tiny"])
def test_methods_draw_as_many_responses_in_as_many_steps_as_reft(model):
    about = dict(data="gsm8k", cot="nl", model=model)
    ours = {method: dict(load(**about, method=method)[0].stages)[method] for method in METHODS}
    reft = ours["reft"]
    assert load(**about) == load(**about, method="reft")
    in_reward, in_loss = (
        KL(coef=reft.advantage.kl.coef),
        KL(where="loss", coef=reft.advantage.kl.coef, estimator="k3"),
    )
    assert reft.advantage == gae.Advantage(kl=in_reward) and reft.critic is not None
    expected = dict(
        grpo=(8, dict(advantage=grpo.Advantage(kl=in_loss))),
        dr_grpo=(8, dict(advantage=dr_grpo.Advantage(kl=in_loss), reduce="constant")),
        rloo=(8, dict(advantage=rloo.Advantage(kl=in_reward))),
        reinforce_pp=(1, dict(advantage=reinforce_pp.Advantage(kl=in_reward))),
    )
    for method, (k, changes) in expected.items():
        stage = ours[method]
        sizes = {key: getattr(stage, key) for key in ("num_samples", "batch_size", "epochs", "eval_every")}
        assert stage == dataclasses.replace(reft, **changes, **sizes) and stage.critic is None
        assert stage.ppo == reft.ppo and stage.losses == reft.losses and stage.rewards == reft.rewards
        assert (stage.num_samples, stage.batch_size * k) == (k, reft.batch_size)
        # steps are epochs x questions / batch_size
        assert (stage.epochs * k, stage.eval_every * k) == (reft.epochs, reft.eval_every)
        assert (stage.optim, stage.init_from) == (reft.optim, "warmup")
    online, offline = ours["online"], ours["offline"]
    assert (online.mode, online.init_from, online.num_samples) == ("online", "warmup", 1)
    assert (online.batch_size, online.epochs, online.optim) == (reft.batch_size, reft.epochs, reft.optim)
    assert (offline.mode, offline.sample_from) == ("offline", "warmup")
    if model == "tiny":
        assert offline.init_from == "random" and offline.epochs == dict(load(**about)[0].stages)["sft"].epochs
    else:  # the paper's
        assert offline.init_from == model
        assert (offline.epochs, offline.batch_size, offline.num_samples, offline.max_per_question) == (20, 48, 100, 10)


def test_an_unknown_method_is_told_the_known():
    with pytest.raises(InputError) as caught:
        load(data="svamp", method="gpro")
    assert f"argument method: got 'gpro'; legal are {', '.join(METHODS)}" in str(caught.value)


@pytest.mark.slow
def test_a_method_runs_from_its_argument(tmp_path):
    """GRPO by the real command, at toy size: four questions x four responses a step."""
    spec = "configs/reft.py:data=arithmetic,model=arithmetic_base,smoke,method=grpo"
    workdir = runs.run(tmp_path / "run", spec=spec)
    _, *lines = runs.lines(workdir / "grpo" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]  # of 64 questions a quarter is asked
    assert all("ppo/kl_loss" in line and "ppo/value_loss" not in line for line in lines)
    assert len(runs.lines(workdir / "grpo" / "samples.jsonl")) == 4 * 16
    assert json.loads((workdir / "results.json").read_text())["stages"]["grpo"]["num_questions"] == 32
