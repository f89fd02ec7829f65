"""What it takes to add something: one file in its room, in a temporary copy of the package, and everything knows it.

One smoke run there uses six new files: a loss, an advantage, a reward term, a task, a matcher and a stage kind.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests import runs

FILES = {
    "losses/likely": '''"""Dynamic fine-tuning (arXiv 2508.05629): a token's loss weighs as much as the model believes the token."""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    coef: float = setting(0, default=1.0)
    power: float = setting(0, default=1.0)

    needs = ("logp",)
    reads = ()
    together = "token"

    def __call__(self, out, batch, mean):
        logp = jnp.where(batch.mask, out.logp, 0.0)
        loss = mean(-jax.lax.stop_gradient(jnp.exp(self.power * logp)) * logp)
        return loss, {"likely/loss": loss}
''',
    "advantages/signs": '''"""The sign of GRPO's advantage (arXiv 2402.03300), times a scale: to see that a file is enough."""

import dataclasses

import jax.numpy as jnp

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage:
    scale: float = setting(above=0, default=1.0)

    compares = True

    def __call__(self, rollout):
        groups = rollout.scores.reshape(-1, rollout.group_size)
        signs = jnp.sign(groups - groups.mean(1, keepdims=True)).reshape(-1, 1)
        return jnp.where(rollout.mask, self.scale * signs, 0.0), None, {"signs/share": jnp.abs(signs).mean()}
''',
    "rewards/terms/short": '''"""A bonus for short responses: 1 at one token, 0 at `most`."""

import dataclasses

import numpy as np

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    weight: float = setting(default=0.01)
    most: int = setting(1, default=24)

    needs = ("entropy",)

    def __call__(self, responses, scored):
        assert scored["entropy"].shape[0] == len(responses.texts)
        return np.maximum(1 - np.asarray(responses.lengths) / self.most, 0)
''',
    "tasks/digits": '''"""Sums of two digits."""

from reft_jax.data.records import Record, Splits


class Task:
    kind = "number"
    sources = ("generated",)

    def check(self, data):
        if data.cot != "nl":
            yield "cot", "digits are explained in words: 'nl'"

    def splits(self, data):
        def make(split, num):
            return tuple(
                Record(f"{split}_{i}", f"{i % 7} plus {i % 5}?", f"#### {i % 7 + i % 5}", str(i % 7 + i % 5), "text")
                for i in range(num)
            )

        return Splits(make("train", data.num_train), make("dev", data.dev_size), make("test", data.num_test))
''',
    "rewards/matchers/hashes": '''"""The number after the last hashes."""

import re

from reft_jax.rewards.matchers.base import NOTHING, Matcher, found


def find(text, kind):
    last = [*re.finditer(r"#### *(\\d+)", text)][-1:]
    return found(last[0][1], *last[0].span(1)) if last else NOTHING


def bare(answer, kind):
    return answer.strip() if answer.strip().isdigit() else None


def agree(key, gold, kind):
    return key == bare(gold, kind)


MATCHER = Matcher("the number after ####", ("number",), find, bare, bare, agree)
''',
    "stages/census": '''"""Counts the training questions by their answers."""

import collections
import dataclasses

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    most: int = setting(1, default=3)

    def sources(self):
        return ()

    def programs(self, name, at):
        pass


def run(name, stage, run):
    counts = collections.Counter(record.answer for record in run.splits.train)
    run.finish(name, counts=dict(counts.most_common(stage.most)))
''',
}
ORACLES = {
    "losses/likely": """import numpy as np

from tests import reference


def loss(record, batch, out, reduce):
    logp = np.where(batch.mask, out["logp"], 0).astype(np.float64)
    return reference.reduce(-np.exp(record.power * logp) * logp, batch.mask, reduce)
""",
    "advantages/signs": """import numpy as np

from tests.oracles import advantages


def advantage(record, rollout):
    def of(scores):
        return [record.scale * np.sign(s - np.float32(np.mean(np.float32(scores)))) for s in scores]

    return advantages.of_responses(rollout, of), None
""",
}

CONFIG = """from reft_jax.configs import common


def get_config(arg=""):
    small = dict(batch_size=8, eval_batch_size=8, eval_every=1, log_every=1)
    stages = dict(
        count=dict(kind="census"),
        warm=common.sft("random", 1, common.optim(1e-3), losses=dict(nll=0.5, likely=dict(power=0.5)), **small),
        signed=common.reft(
            "warm", 1, common.optim(1e-3), minibatch_size=8, num_samples=2, advantage=dict(use="signs", scale=2.0),
            rewards=dict(right={}, brevity=dict(use="short", weight=0.25)), **(small | dict(batch_size=4)),
        ),
        judge=common.evaluate(dict(warm="warm", signed="signed"), num_samples=0, num_questions=0, batch_size=8),
    )
    data = dict(task="digits", cot="nl", source="generated", num_train=16, dev_size=4, num_test=4, matcher="hashes",
                max_prompt=32, max_response=24, prompt_buckets=(32,), response_buckets=(24,), vocab_size=300, pack=False)
    model = common.model("demo") | dict(arch=common.arch(8, 1, 2, 8))
    return common.config(seed=0, model=model, data=data, stages=stages)
"""


def python(root, *arguments, code=0) -> str:
    """What a command prints that imports the package in `root`."""
    command = [sys.executable, *map(str, arguments)]
    environment = runs.environment() | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=runs.TIMEOUT)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """(a copy of the package with the new files, the workdir of a run that uses them)."""
    root = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", "configs")
    shutil.copytree(runs.ROOT / "reft_jax", root / "reft_jax", ignore=ignore)
    shutil.copytree(runs.ROOT / "configs", root / "reft_jax" / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(runs.ROOT / "tests", root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (root / "reft_jax" / f"{name}.py").write_text(text)
    for name, text in ORACLES.items():
        (root / "tests" / "oracles" / f"{name}.py").write_text(text)
    (root / "adds.py").write_text(CONFIG)
    python(root, "-m", "reft_jax.main", "--config=adds.py", f"--workdir={root / 'w'}")
    return root, root / "w"


def metrics(workdir, stage):
    return runs.lines(workdir / stage / "metrics.jsonl")


@pytest.mark.slow
def test_a_loss_is_one_file(copied):
    root, workdir = copied
    tree = json.loads((workdir / "config.json").read_text())["config"]
    assert tree["stages"]["warm"]["losses"] == {
        "nll": {"use": "nll", "coef": 0.5},
        "likely": {"use": "likely", "coef": 1.0, "power": 0.5},
    }
    for line in metrics(workdir, "warm"):
        assert 0 < line["likely/loss"] < line["sft/loss"]
    flag = "--config.stages.warm.losses.likely.power=-1"
    told = python(root, "-m", "reft_jax.main", "--config=adds.py", f"--workdir={root / 'x'}", flag, code=2)
    assert "config.stages.warm.losses.likely.power: got -1.0; it must be >= 0" in told


@pytest.mark.slow
def test_an_advantage_is_one_file(copied):
    root, workdir = copied
    lines = [line for line in metrics(workdir, "signed") if line["step"]]
    assert lines and all("signs/share" in line and "ppo/value_loss" not in line for line in lines)
    advantages = {
        round(abs(adv), 6) for line in runs.lines(workdir / "signed" / "samples.jsonl") for adv in line["adv"]
    }
    assert advantages <= {0.0, 2.0}
    flag = "--config.stages.signed.advantage=sings"
    told = python(root, "-m", "reft_jax.main", "--config=adds.py", f"--workdir={root / 'x'}", flag, code=2)
    assert "got 'sings'; did you mean 'signs'?" in told


@pytest.mark.slow
def test_a_reward_term_is_one_file(copied):
    _, workdir = copied
    for line in metrics(workdir, "signed"):
        if line["step"]:
            expected = line["reward/right"] + 0.25 * line["reward/brevity"]
            np.testing.assert_allclose(line["reward/mean"], expected, rtol=1e-5)
    sampled = runs.lines(workdir / "signed" / "samples.jsonl")
    assert {round(line["score"] - 0.25 * max(1 - len(line["tokens"]) / 24, 0), 4) for line in sampled} <= {0.0, 1.0}


@pytest.mark.slow
def test_a_task_and_a_matcher_are_one_file_each(copied):
    root, workdir = copied
    results = json.loads((workdir / "results.json").read_text())
    assert results["data"] == "digits" and results["stages"]["warm"]["matcher"] == "hashes"
    golds = {line["item_id"]: line["gold"] for line in runs.lines(workdir / "warm" / "predictions.jsonl")}
    assert golds["test_3"] == "6"
    told = python(root, "-m", "reft_jax.rescore", workdir, "--all-matchers")
    assert "hashes" in told and "gsm8k_strict" in told
    flag = "--config.data.cot=program"
    told = python(root, "-m", "reft_jax.main", "--config=adds.py", f"--workdir={root / 'x'}", flag, code=2)
    assert "config.data.cot: got 'program'; digits are explained in words" in told


@pytest.mark.slow
def test_a_stage_kind_is_one_file(copied):
    root, workdir = copied
    counts = json.loads((workdir / "count" / "DONE").read_text())["counts"]
    assert len(counts) == 3 and max(counts.values()) == 3
    assert "count: done before" in python(root, "-m", "reft_jax.main", "--config=adds.py", f"--workdir={workdir}")
    compiled = python(root, "-m", "reft_jax.compile", "--config=adds.py", "--topology=cpu:1")
    assert "signed/ppo_step" in compiled and "warm/sft_step" in compiled
    path = root / "reft_jax" / "stages" / "census.py"
    text = path.read_text()
    path.write_text(text.replace("def programs", "def unsaid"))
    told = python(root, "-m", "reft_jax.compile", "--config=adds.py", "--topology=cpu:1", code=2)
    path.write_text(text)
    assert "config.stages.count: a stage of kind 'census' does not say what it compiles" in told


@pytest.mark.slow
def test_the_report_and_the_suite_know_them(copied):
    root, workdir = copied
    page = (workdir / "report.html").read_text()
    assert "likely/loss" in page and "signs/share" in page and "reward/brevity" in page
    assert (workdir / "plots" / "signed.png").exists()
    found = python(root, "-m", "pytest", "tests/test_rooms.py", "-q", "-n0", "-p", "no:cacheprovider", "-k",
                   "likely or signs or short or digits or hashes or census", "--rootdir", root, "-c", "/dev/null")  # fmt: skip
    assert "passed" in found and "failed" not in found
    assert int(found.split(" passed")[0].split()[-1]) >= 12
