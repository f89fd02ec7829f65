"""configs/paper_small.py and its table: what every run holds, how seeds are summed up, and which commands make what is missing."""

import csv
import dataclasses
import io
import json
import math
import pathlib
import re
import statistics

import numpy as np
import pytest

from reft_jax import main, recipe
from reft_jax.config.records import flatten
from reft_jax.configs import paper_small
from reft_jax.errors import InputError
from reft_jax.report import plots
from reft_jax.tables import curves, small
from reft_jax.training.loop import num_steps
from tests.test_tables import make_run, printed, script  # noqa: F401  (script is a fixture)

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = "configs/paper_small.py"
CELLS = [(cot, style) for cot in paper_small.COTS for style in paper_small.STYLES]


def load(arg: str = ""):
    return recipe.load(f"{ROOT}/{CONFIG}:{arg}")[0]


def flat(name: str) -> dict:
    """Every setting of a stage by its dotted key."""
    stage = recipe.load(f"{ROOT}/{CONFIG}")[1]["stages"][name]
    return {key.removeprefix("stage."): value for key, value in flatten(stage, "stage").items()}


# ------------------------------------------------------------------ the config


@pytest.mark.parametrize("smoke", ["", ",smoke"])
@pytest.mark.parametrize("cot, style", CELLS)
def test_every_run_is_legal_and_holds_all_methods(cot, style, smoke):
    config = load(f"cot={cot},style={style},seed=2{smoke}")
    evaluation = dict(config.stages)["evaluate"]
    assert (config.data.cot, config.data.annotations, config.data.seed, config.seed) == (cot, style, 2, 2)
    assert [label for label, _ in evaluation.checkpoints] == list(paper_small.METHODS)
    assert {ranker for _, ranker in evaluation.rerankers} == {"reranker"}
    trained = [name for name, _ in config.stages if name not in ("reranker", "evaluate")]
    assert trained == list(paper_small.METHODS)[1:]


def test_what_is_online_has_as_many_samples_updates_and_sequences_an_update():
    config = load()
    stages = dict(config.stages)
    for name in paper_small.PPO:
        stage = stages[name]
        steps = num_steps(stage.epochs, stage.batch_size, config.data.num_train)
        rows = stage.batch_size * stage.num_samples
        assert (steps, rows, stage.ppo.minibatch_size, stage.ppo.epochs) == (20, 256, 64, 2), name
        assert stage.num_samples == (1 if flat(name)["advantage.use"] == "gae" else 4)
    online = stages["online"]
    steps = num_steps(online.epochs, online.batch_size, config.data.num_train)
    assert steps == 20 * 2 * 256 // 64 and steps * online.batch_size * online.num_samples == 20 * 256


def test_settings_are_the_demos_but_for_the_length_of_reft():
    ours, demo = dict(load().stages), dict(recipe.load(f"{ROOT}/configs/demo.py")[0].stages)
    watched = dict(eval_every=0.0, save_every=1)
    for name in ("warmup", "sft"):
        assert dataclasses.replace(ours[name], **watched) == dataclasses.replace(demo[name], **watched)
    for key in ("ppo", "advantage", "losses", "rewards", "reduce", "sampling", "optim", "batch_size"):
        assert getattr(ours["reft"], key) == getattr(demo["reft"], key)
    assert load().data == recipe.load(f"{ROOT}/configs/demo.py")[0].data


def test_each_variant_changes_what_its_name_says():
    base, changed, gone = flat("reft"), {}, {}
    for name in paper_small.PPO:
        ours = flat(name)
        assert ours.keys() <= base.keys()
        changed[name] = {key: value for key, value in ours.items() if value != base[key]}
        gone[name] = base.keys() - ours.keys()
    group = {"epochs", "batch_size", "num_samples", "eval_every", "advantage.use"}
    assert changed.pop("reft") == {} and changed.pop("no_kl") == {"advantage.kl.coef": 0.0}
    assert changed.pop("no_partial_reward") == {"rewards.partial.weight": 0.0}
    assert changed.pop("separate_critic") == {"advantage.critic.trunk": "separate"}
    in_loss = {"advantage.kl.in", "advantage.kl.estimator"}
    more = dict(grpo=in_loss, dr_grpo=in_loss | {"reduce"}, rloo=set(), reinforce_pp=set())
    of_gae = {f"advantage.{key}" for key in ("gamma", "lam", "whiten")}
    of_gae |= {f"advantage.critic.{key}" for key in ("trunk", "init", "bias", "coef", "clip")}
    for name, change in changed.items():
        assert change.keys() == group | more[name] and change["advantage.use"] == name
        assert change["batch_size"] * change["num_samples"] == 256
    assert {name for name, keys in gone.items() if keys} == changed.keys()
    assert all(gone[name] == of_gae for name in changed)


def test_some_methods_alone():
    config = load("methods=reft+grpo")
    assert [name for name, _ in config.stages] == ["warmup", "sft", "reft", "grpo", "reranker", "evaluate"]
    assert dict(config.stages)["evaluate"].checkpoints == (("reft", "reft"), ("grpo", "grpo"))


@pytest.mark.parametrize("arg, said", [("methods=reft+ppo", "got 'ppo'; legal are base, warmup"), ("style=worked", "got 'worked'"),
                                       ("cot=both", "argument cot: got 'both'"), ("seed=x", "argument seed: got 'x'")])  # fmt: skip
def test_wrong_arguments(arg, said):
    with pytest.raises(InputError, match=said):
        load(arg)


# ------------------------------------------------------------------ the table


def spec(seed, cot="program", style="diverse", *more):
    return f"{CONFIG}:cot={cot},style={style},seed={seed}" + "".join(f",{each}" for each in more)


def finished(root, seeds=(0, 1, 2), sft=(780, 770, 800), reft=(850, 860, 840), **kwargs):
    for i, seed in enumerate(seeds):
        right = dict(base=600, sft=sft[i], reft=reft[i])
        make_run(root / f"r{seed}", spec(seed), right, num=1000, maj_8=0.9, rerank_8=0.88 + 0.01 * i, **kwargs)


def cells(capsys, root, *flags) -> dict:
    """name -> the table's line as {column: text}."""
    out, err = printed(capsys, root, "--format=markdown", *flags)
    assert not err
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in out.splitlines()]
    return {line[0]: dict(zip(small.COLUMNS, line, strict=True)) for line in lines if line[0].count("/") == 2}


def test_a_line_has_mean_spread_gain_and_each_seed(tmp_path, capsys):
    finished(tmp_path)
    line = cells(capsys, tmp_path)["program/diverse/reft"]
    assert line["greedy"] == "85.0 ± 1.0" and line["re-ranked"] == "89.0 ± 1.0" and line["vote"] == "90.0 ± 0.0"
    gains = [7.0, 9.0, 4.0]
    half = 4.302653 * statistics.stdev(gains) / math.sqrt(3)  # Student's quantile at 0.975 of two degrees of freedom
    mean = statistics.fmean(gains)
    assert line["over SFT"] == f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
    assert line["each seed, greedy"] == "0: 85.0 (82.7–87.1); 1: 86.0 (83.7–88.0); 2: 84.0 (81.6–86.1)"
    assert line["average"] == "-" and line["commit"] == "012345678"


def test_the_table_is_alone_in_a_folder_of_its_own_and_beside_the_papers_else(tmp_path, capsys):
    finished(tmp_path)
    out, _ = printed(capsys, tmp_path)
    assert out.startswith("arithmetic: ") and "codellama" not in out and "other runs" not in out
    make_run(tmp_path / "demo", "configs/demo.py:smoke", dict(reft=20), num=32)
    out, _ = printed(capsys, tmp_path)
    assert out.startswith("arithmetic: ") and "\nmain: " in out and "other runs" in out
    out, _ = printed(capsys, tmp_path, "--table=arithmetic")
    assert "codellama" not in out and "other runs" in out
    assert not any(line.startswith("arithmetic") for line in printed(capsys, tmp_path, "--table=main")[0].splitlines()
                   if not line.startswith("arithmetic_base"))  # fmt: skip


def test_missing_seeds_say_which_command_makes_them(tmp_path, capsys):
    finished(tmp_path, seeds=(0, 2))
    out, _ = printed(capsys, tmp_path)
    line = next(line for line in out.splitlines() if line.startswith("program/diverse/reft"))
    number = line.split("1: [")[1].split("]")[0]
    made = out.split(f"# [{number}]\n")[1].splitlines()[0]
    assert made == small.command_of("arithmetic", "program", "diverse", 1, str(tmp_path))
    assert (
        f'"--config={CONFIG}:cot=program,style=diverse,seed=1"' in made
        and f'--workdir={tmp_path}/program_diverse_1"' in made
    )
    assert "± 0.7" in line  # of two seeds
    assert (
        out.count("python -m reft_jax.main") == 12
    )  # seeds 0 and 2 lack the other methods; seed 1 and three cells all
    finished(tmp_path / "more", seeds=(7,))
    assert "7: 85.0 (82.7–87.1)" in printed(capsys, tmp_path / "more", "--seed=7")[0]


def test_a_run_with_other_settings_is_told_apart(tmp_path, capsys):
    finished(tmp_path, seeds=(0,), overrides=[("stages.reft.advantage.kl.coef", "0.1")])
    out, _ = printed(capsys, tmp_path, "--table=arithmetic")
    assert "program/diverse/sft  " in out and "78.0" in out.split("program/diverse/sft ")[1].splitlines()[0]
    assert re.search(r"^program/diverse/reft  .* 0: \[\d+\];", out, re.M)
    assert "is not arithmetic/program/diverse/reft: policy.stage.advantage.kl.coef is 0.1, there 0.02" in out


def test_the_demo_fills_what_it_shares(tmp_path, capsys):
    """Its base, warm-up and SFT are the table's; its ReFT is longer."""
    make_run(tmp_path / "demo", "configs/demo.py", dict(base=600, warmup=700, sft=750, reft=900), num=1000)
    found = cells(capsys, tmp_path, "--table=arithmetic")
    assert [found[f"program/diverse/{name}"]["greedy"] for name in ("base", "warmup", "sft", "reft")] == ["60.0", "70.0", "75.0", "-"]  # fmt: skip
    assert found["nl/diverse/base"]["greedy"] == "-"


def test_csv_has_a_line_for_every_figure_of_every_seed(tmp_path, capsys):
    finished(tmp_path)
    out, _ = printed(capsys, tmp_path, "--format=csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert len(lines) == 3 * 3 * 3
    [line] = [x for x in lines if (x["row"], x["metric"], x["seed"]) == ("program/diverse/reft", "rerank@8", "2")]
    assert float(line["accuracy"]) == 0.9 and float(line["low"]) == pytest.approx(0.88) and line["selected on"] == "dev"


def test_the_plan_and_table_sh(script, tmp_path, capsys):  # noqa: F811
    out, _ = printed(capsys, "R", "--table=arithmetic", "--plan")
    assert len(out.splitlines()) == 12 and out.splitlines()[3].endswith('"--workdir=R/program_canonical_0"')
    out, _ = printed(capsys, "R", "--table=arithmetic", "--plan", "--seed=5", "--smoke")
    assert len(out.splitlines()) == 4 and ",seed=5,smoke" in out and "R/smoke_nl_canonical_5" in out
    process = script("arithmetic", "R", DATA="", MODELS="")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(script.log()) == 12 and (tmp_path / "R" / "nl_diverse_2" / "evaluate" / "DONE").exists()
    assert script.glibc().startswith("glibc.malloc.")


# ------------------------------------------------------------------ curves


def with_curves(folder, shift=0.0):
    """What the stages log: warm-up at 63 and 125 updates, SFT on to 250, ReFT at steps 0, 4, 8 (8 updates each)."""
    points = dict(
        warmup=[(63, 0.70), (125, 0.75)], sft=[(188, 0.76), (250, 0.77)], reft=[(0, 0.75), (4, 0.78), (8, 0.81)]
    )
    for name, rows in points.items():
        (folder / name).mkdir()
        lines = [{"step": step, "eval/dev_accuracy": value + shift} for step, value in rows]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves_count_updates_since_the_base(tmp_path, capsys):
    finished(tmp_path, seeds=(0, 1))
    with_curves(tmp_path / "r0")
    with_curves(tmp_path / "r1", 0.02)
    out, _ = printed(capsys, tmp_path, "--curves")
    assert out.split() == [str(tmp_path / "curves.csv"), str(tmp_path / "curves.png")]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "curves.csv").read_text())))
    reft = [
        (float(x["update"]), round(float(x["dev_accuracy"]), 6))
        for x in lines
        if x["method"] == "reft" and x["seed"] == "1"
    ]
    assert reft == [(63, 0.72), (125, 0.77), (157, 0.80), (189, 0.83)]
    sft = [float(x["update"]) for x in lines if x["method"] == "sft" and x["seed"] == "0"]
    assert sft == [63, 125, 188, 250]


def test_the_band_is_from_the_lowest_to_the_highest_seed():
    x = np.array([1.0, 2.0, 3.0])
    two = [(x, np.array([0.1, 0.2, 0.3])), (x[:2] + 0.5, np.array([0.3, 0.0]))]
    at, mean, least, most = curves.mean_of(two)
    np.testing.assert_allclose([at, mean, least, most], [[1.25, 2.25], [0.2, 0.1], [0.1, 0.0], [0.3, 0.2]])
    figure = curves.draw({("nl", "diverse", "reft", seed): curve for seed, curve in enumerate(two)})
    assert len(figure.axes) == len(curves.ROWS)
    [line] = figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.1])


def test_every_method_is_drawn_and_no_curves_are_refused(tmp_path, capsys):
    drawn = {method for _, colors in curves.ROWS for method in colors}
    assert drawn == set(paper_small.METHODS) - {"base", "warmup"}
    _, err = printed(capsys, tmp_path, "--curves", code=2)
    assert "holds no run of the table arithmetic" in err and err.count("\n") == 1


# ------------------------------------------------------------------ all of it


@pytest.mark.slow
def test_a_row_runs_at_toy_size(tmp_path, capsys):
    arguments = [
        f"--config={ROOT}/{CONFIG}:smoke,cot=nl,style=canonical,methods=sft+grpo",
        f"--workdir={tmp_path}/a",
    ]
    assert main.main(arguments) == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())["stages"]
    assert list(results) == ["sft", "grpo"]
    assert all({"accuracy", "maj@2", "rerank@2", "oracle@2"} <= result.keys() for result in results.values())
    assert plots.read_metrics(tmp_path / "a" / "grpo" / "metrics.jsonl")[-1]["step"] == 2
    capsys.readouterr()
    assert main.main(arguments) == 0 and "grpo: done before" in capsys.readouterr().out
