"""configs/pretrain_text.py and configs/paper_text.py, and the table svamp_small: legal, frozen, filled by its own runs, and run at toy size."""

import json
import pathlib

import pytest

from reft_jax import main, recipe, tasks
from reft_jax.configs import paper_small, paper_text
from reft_jax.errors import InputError
from reft_jax.tasks import stories
from reft_jax.training.loop import num_steps
from tests.test_tables import make_run, printed, script  # noqa: F401  (script is a fixture)

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT, PRETRAIN = "configs/paper_text.py", "configs/pretrain_text.py"


def load(arg: str, *overrides, config=TEXT):
    return recipe.load(f"{ROOT}/{config}:{arg}", overrides)[0]


# ------------------------------------------------------------------ the configs


@pytest.mark.parametrize("arg", ["base=B", "smoke", "base=B,smoke"])
@pytest.mark.parametrize("cot", paper_text.COTS)
def test_every_run_is_legal_and_holds_all_methods(cot, arg):
    config = load(f"cot={cot},seed=2,{arg}")
    stages = dict(config.stages)
    assert (config.data.cot, config.seed, config.data.docstring) == (cot, 2, False) and isinstance(hash(config), int)
    assert [label for label, _ in stages["evaluate"].checkpoints] == list(paper_small.METHODS)
    assert [name for name in stages if name not in ("reranker", "evaluate")] == list(paper_small.METHODS)[1:]
    if arg == "smoke":
        assert (config.data.task, stages["warmup"].init_from) == ("arithmetic", "arithmetic_base")
    else:
        assert (config.data.task, config.model.directory, stages["warmup"].init_from) == ("svamp", "B", "B")


def test_what_is_online_has_as_many_samples_updates_and_sequences_an_update():
    config = load("base=B,steps=10")
    stages, sizes = dict(config.stages), set()
    for name in paper_small.PPO:
        stage = stages[name]
        steps = num_steps(stage.epochs, stage.batch_size, config.data.num_train)
        sizes.add((steps, stage.batch_size * stage.num_samples, stage.ppo.minibatch_size, stage.ppo.epochs))
    assert sizes == {(10, 64, 32, 2)}
    online = stages["online"]
    steps = num_steps(online.epochs, online.batch_size, config.data.num_train)
    assert steps == 10 * 2 * 64 // 32 and steps * online.batch_size * online.num_samples == 10 * 64


def test_steps_and_epochs_are_arguments():
    stages = dict(load("base=B,steps=4,epochs=9").stages)
    assert (stages["warmup"].epochs, stages["sft"].epochs) == (3.0, 9.0)
    assert num_steps(stages["reft"].epochs, stages["reft"].batch_size, 2800) == 4


@pytest.mark.parametrize("arg, said", [("", "argument base: got ''"), ("base=B,style=diverse", "got 'diverse'; legal are svamp"),
                                       ("base=B,methods=ppo", "got 'ppo'"), ("base=B,cot=both", "argument cot: got 'both'")])  # fmt: skip
def test_wrong_arguments(arg, said):
    with pytest.raises(InputError, match=said):
        load(arg)


def test_files_must_be_named_to_run():
    with pytest.raises(InputError, match="config.data.train_file: got ''"):
        tasks.load(load("base=B").data)


@pytest.mark.parametrize("smoke", ["", ",smoke"])
@pytest.mark.parametrize(
    "cot, asks, annotations",
    [("both", "program", "corpus"), ("program", "program", "diverse"), ("nl", "nl", "diverse")],
)
def test_pretraining_is_legal(cot, asks, annotations, smoke):
    config = load(f"cot={cot},seed=1,questions_file=F{smoke}", config=PRETRAIN)
    assert (config.data.cot, config.data.annotations, config.data.questions_file) == (asks, annotations, "F")
    assert [name for name, _ in config.stages] == ["pretrain", "export", "evaluate"] and not config.data.docstring


def test_pretraining_goes_on_from_what_was_exported():
    config = load("base=B,seed=1", config=PRETRAIN)
    assert (config.model.directory, config.model.arch, dict(config.stages)["pretrain"].init_from) == ("B", None, "B")
    config = load("seed=1", config=PRETRAIN)
    assert (config.model.directory, dict(config.stages)["pretrain"].init_from) == ("", "random")


@pytest.mark.parametrize(
    "arg, said", [("model=codellama_7b", "got 'codellama_7b'"), ("cot=text", "argument cot: got 'text'")]
)
def test_wrong_arguments_of_pretraining(arg, said):
    with pytest.raises(InputError, match=said):
        load(arg, config=PRETRAIN)


def test_a_file_of_questions_is_for_stories():
    tree = recipe.load(f"{ROOT}/{TEXT}:base=B")[1]
    tree["data"]["questions_file"] = "F"
    with pytest.raises(InputError, match="questions_file: got 'F'; it is for stories, and the task is 'svamp'"):
        recipe.build(tree)


# ------------------------------------------------------------------ the table


def test_its_runs_fill_the_table(tmp_path, capsys):
    for seed in (0, 1):
        spec = f"{TEXT}:seed={seed},base=/b/words,train_file=/d/t.json,test_file=/d/e.json"
        make_run(tmp_path / f"r{seed}", spec, dict(base=50, sft=300, reft=330 + 10 * seed), num=1000, maj_4=0.4)
    out, err = printed(capsys, tmp_path)
    assert not err and out.startswith("svamp_small: ") and "arithmetic" not in out and "other runs" not in out
    line = next(line for line in out.splitlines() if line.startswith("program/svamp/reft "))
    assert "33.5 ± 0.7" in line and "+3.5" in line and "40.0 ± 0.0" in line
    assert "base=$MODELS/words,train_file=$DATA/svamp_nl.json,test_file=$DATA/svamp_test_set.json" in out
    out, _ = printed(capsys, tmp_path, "--table=arithmetic")
    assert out.startswith("arithmetic: ") and "33.5" not in out


def test_a_run_with_other_settings_is_told_apart(tmp_path, capsys):
    make_run(
        tmp_path / "r",
        f"{TEXT}:base=/b/words",
        dict(sft=300, reft=330),
        num=1000,
        overrides=[("stages.reft.advantage.kl.coef", "0.1")],
    )
    out, _ = printed(capsys, tmp_path, "--table=svamp_small")
    assert "is not svamp_small/program/svamp/reft: policy.stage.advantage.kl.coef is 0.1, there 0.02" in out


def test_the_plan_and_table_sh(script, tmp_path, capsys):  # noqa: F811
    out, _ = printed(capsys, "R", "--table=svamp_small", "--plan")
    assert len(out.splitlines()) == 6 and out.splitlines()[0].endswith('"--workdir=R/program_svamp_0"')
    out, _ = printed(capsys, "R", "--table=svamp_small", "--plan", "--seed=5", "--smoke")
    assert len(out.splitlines()) == 2 and "seed=5,smoke" in out and "$" not in out
    process = script("svamp_small", "R", DATA="", MODELS="")
    process.communicate(timeout=60)
    assert process.returncode == 2


# ------------------------------------------------------------------ all of it


@pytest.mark.slow
def test_pretraining_and_a_row_run_at_toy_size(tmp_path):
    """A base this small solves nothing, so the answers are ones that can be guessed: 2 or 3."""
    questions = [record.question for record in stories.generate("train", 128, seed=7, cot="nl")]
    answers = ["3" if i % 4 == 0 else "2" for i in range(len(questions))]
    rows = [
        dict(
            item_id=f"svamp_{i}",
            question=question,
            answer_cot=f"Therefore, the answer is <{answer}>.",
            answer_value=answer,
        )
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    for name, part in dict(train=rows[:96], test=rows[96:]).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    pretrain = f"{PRETRAIN}:smoke,cot=nl,questions_file={tmp_path}/train.json"
    assert main.main([f"--config={ROOT}/{pretrain}", f"--workdir={tmp_path}/words"]) == 0
    base = tmp_path / "words" / "export" / "hf"
    spec = f"{TEXT}:smoke,cot=nl,methods=base+sft,base={base},train_file={tmp_path}/train.json,test_file={tmp_path}/test.json"
    assert main.main([f"--config={ROOT}/{spec}", f"--workdir={tmp_path}/row"]) == 0
    results = json.loads((tmp_path / "row" / "results.json").read_text())["stages"]
    assert list(results) == ["base", "sft"] and results["sft"]["accuracy"] > results["base"]["accuracy"]
    assert all({"accuracy", "maj@2", "rerank@2"} <= result.keys() for result in results.values())
