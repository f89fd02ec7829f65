"""The paper's tables beside runs that are made up: which run fills which cell, what a line says, and the commands for the rest.

A made-up run is what the row's own config would leave: config.json of that config and results.json with a figure for each label.
"""

import csv
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from reft_jax import recipe, tables
from reft_jax.config import choices, records, renamed
from reft_jax.configs import paper
from reft_jax.rewards import estimates
from reft_jax.tables import __main__ as command
from tests import runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
CELL = "codellama_7b/gsm8k/program/reft"
REFT, SFT = f"main/{CELL}", "main/codellama_7b/gsm8k/program/sft"


def make_run(folder, spec: str, right: dict, *, commit="0123456789abcdef", overrides=(), num=1319, **figures):
    """A finished run of `spec` in `folder`: `right` has the right answers of each label (of `num`), figures more of all labels."""
    config, tree = recipe.load(f"{ROOT}/{spec}", overrides)
    sources = dict(dict(config.stages)["evaluate"].checkpoints)
    stages = dict(config.stages)
    results = {
        label: {
            "source": sources[label],
            "accuracy": correct / num,
            "ci95": list(estimates.wilson(correct, num)),
            "num_questions": num,
            "selected_on": getattr(stages.get(sources[label]), "select_on", None),
            "step": 7 if sources[label] in stages else None,
            **{name: value for at, share in figures.items() for name, value in sampled(at, share).items()},
        }
        for label, correct in right.items()
    }
    folder.mkdir(parents=True)
    tree = tree | {"data": tree["data"] | renamed.DECIDED}  # as a run of a model without BOS decides
    (folder / "config.json").write_text(json.dumps({"config": tree, "git_commit": commit}))
    (folder / "results.json").write_text(json.dumps({"seed": config.seed, "stages": results}))
    return folder


def sampled(at: str, share: float) -> dict:
    name = at.replace("_", "@")
    return {name: share, f"{name}_ci95": [share - 0.02, share + 0.02]}


def row(name: str, *extra: str) -> str:
    return ",".join([f"configs/paper.py:row={name}", "model_dir=/m", *extra])


def printed(capsys, *arguments, code=0):
    """(stdout, stderr) of the command."""
    assert command.main([str(a) for a in arguments]) == code
    return tuple(capsys.readouterr())


def cells(capsys, *arguments) -> dict:
    """{(table, row): line} of the CSV."""
    out, _ = printed(capsys, *arguments, "--format=csv")
    return {(line["table"], line["row"]): line for line in csv.DictReader(io.StringIO(out))}


# ------------------------------------------------------------------ cells


def test_a_cell_shows_ours_beside_the_published_figure(tmp_path, capsys):
    make_run(tmp_path / "a", row(REFT), dict(reft=990), maj_100=0.77)
    make_run(tmp_path / "deep" / "er", row("small/codegen_350m/svamp/program/sft"), dict(sft=350), num=1000)
    found = cells(capsys, tmp_path)
    low, high = (100 * bound for bound in estimates.wilson(990, 1319))
    line = found["main", CELL]
    assert (line["published"], line["ours"], line["difference"]) == ("75.28", f"{99000 / 1319:.2f}", "-0.22")
    assert line["95 % interval"] == f"{low:.2f}-{high:.2f}" and line["seeds"] == "1: 42"
    assert (line["selected on"], line["commit"], line["run"], line["note"]) == ("dev", "012345678", "a", "")
    assert found["v1", CELL]["difference"] == "+2.3" and found["ablation", CELL]["difference"] == "+2.4"
    assert found["ablation", CELL.replace("reft", "warmup_2")]["ours"] == "75.1"
    vote = found["vote", CELL]
    assert (vote["ours"], vote["difference"], vote["95 % interval"]) == ("77.0", "-1.0", "75.0-79.0")
    small = found["small", "codegen_350m/svamp/program/sft"]
    assert (small["published"], small["ours"], small["run"]) == ("34.4 †", "35.0", "deep/er")
    assert small["note"] == paper.UNVERIFIED
    assert not any(table == "other" for table, _ in found)
    filled = {key for key, line in found.items() if line["ours"] != "-"}
    assert len(filled) == 6 and len(found) == len(paper.ROWS)


def test_several_seeds_are_averaged_and_named(tmp_path, capsys):
    for seed, correct in ((1, 980), (2, 990), (7, 1000)):
        make_run(tmp_path / f"s{seed}", row(REFT, f"seed={seed}"), dict(reft=correct), commit=f"{seed}" * 12)
    line = cells(capsys, tmp_path)["main", CELL]
    assert (line["seeds"], line["ours"]) == ("3: 1, 2, 7", f"{99000 / 1319:.2f}")
    half = 4.302653 * (10 / 1319) / 3**0.5  # Student's t with 2 degrees of freedom
    assert line["95 % interval"] == f"{100 * (990 / 1319 - half):.2f}-{100 * (990 / 1319 + half):.2f}"
    assert line["commit"] == "111111111, 222222222, 777777777" and line["run"] == "s1, s2, s7"


def test_of_two_runs_with_the_same_seed_the_later_counts(tmp_path, capsys):
    for i, (name, correct) in enumerate((("b", 900), ("a", 1000))):
        folder = make_run(tmp_path / name, row(REFT), dict(reft=correct))
        os.utime(folder / "results.json", (1e9 + i, 1e9 + i))
    out, err = printed(capsys, tmp_path, "--table=main")
    assert f"{100000 / 1319:.2f}" in out and "68.23" not in out
    assert err.count("warning: ") == 1 and "the same seed, 42; the later one counts" in err


def test_paper_and_script_are_different_runs(tmp_path, capsys):
    make_run(tmp_path / "p", row(REFT), dict(reft=990))
    make_run(tmp_path / "s", row(REFT, "variant=script"), dict(reft=995))
    found = cells(capsys, tmp_path)
    assert found["main", CELL]["selected on"] == "dev"
    assert found["main", f"{CELL} (script)"]["selected on"] == "test"
    make_run(tmp_path / "only" / "s", row(SFT, "variant=script"), dict(sft=800))
    assert [key for key in cells(capsys, tmp_path / "only") if key[1].startswith(SFT[5:])][:1] == [
        ("main", f"{SFT[5:]} (script)")
    ]


def test_runs_that_begin_with_each_other_fill_cells_also_after_a_move(tmp_path, capsys):
    """init_from names folders of another machine; the runs are known by the last parts of their paths."""
    home = "/pod/runs/paper_42"
    ranked = f"rerank/{CELL}"
    for job, extra in ((SFT, ()), (REFT, (f"runs={home}",)), (ranked, (f"runs={home}",))):
        method = job.split("/")[-1]
        figures = dict(rerank_100=0.81) if job == ranked else {}
        make_run(tmp_path / "paper_42" / job, row(job, *extra), {method: 990}, maj_100=0.78, **figures)
    found = cells(capsys, tmp_path, "--table=rerank") | cells(capsys, tmp_path, "--table=main")
    assert found["main", CELL]["ours"] == "75.06" and found["main", SFT[5:]]["ours"] == "75.06"
    assert found["rerank", CELL]["ours"] == "81.0"
    assert found["rerank", CELL]["selected on"] == "dev"  # as the other run says of its checkpoint
    shutil.rmtree(tmp_path / "paper_42" / SFT)  # what the warm-up was can no longer be told
    found = cells(capsys, tmp_path)
    assert found["main", CELL]["ours"] == "-" and found["rerank", CELL]["ours"] == "-"
    assert ("other", CELL) in found


def test_the_recipe_of_configs_reft_fills_cells(tmp_path, capsys):
    """Whatever config made it: the settings count. SFT differs from the paper in its lengths alone, which is said."""
    spec = "configs/reft.py:data=gsm8k,cot=program,model=/hub/CodeLlama-7b-hf,seed=5"
    make_run(tmp_path / "mine", spec, dict(warmup=700, sft=800, reft=990))
    out, _ = printed(capsys, tmp_path, "--table=main")
    line = next(line for line in out.splitlines() if line.startswith(CELL))
    assert "75.06" in line and "1: 5" in line
    assert "codellama_7b/gsm8k/program/sft (" in out and "is not main/codellama_7b/gsm8k/program/sft (paper):" in out
    assert "policy.data.max_response is 400, there 724" in out


@pytest.mark.parametrize(
    "change, said",
    [
        (("stages.reft.advantage.kl.coef", "0.02"), "policy.stage.advantage.kl.coef is 0.02, there 0.01"),
        (("stages.warmup.epochs", "7.0"), "policy.init_from.stage.epochs is 7.0, there 2.0"),
        (("data.matcher", "reft_paper"), "policy.data.matcher is 'reft_paper', there 'reft'"),
        (("stages.evaluate.num_samples", "64"), None),  # greedy accuracy does not depend on it
        (("stages.reft.save_every", "3"), None),
        (("model.compute_dtype", "float32"), None),
    ],
)
def test_a_run_with_other_settings_fills_no_cell(tmp_path, capsys, change, said):
    make_run(tmp_path / "a", row(REFT), dict(reft=990), overrides=[change])
    out, _ = printed(capsys, tmp_path, "--table=main")
    assert ("other runs" in out) == bool(said)
    if said:
        assert f"is not {REFT} (paper): " in out and said in out


def test_fewer_test_questions_and_random_weights_fill_no_cell(tmp_path, capsys):
    make_run(tmp_path / "a", row(REFT), dict(reft=80), num=100)
    make_run(tmp_path / "b", f"configs/paper.py:row={REFT}", dict(reft=990))
    out, _ = printed(capsys, tmp_path, "--table=main")
    assert "num_questions is 100, there 1319" in out and "model.weights is 'random', there 'pretrained'" in out
    assert "75.1" in out.split("other runs")[1] and "75.06" not in out


def test_other_runs_have_the_same_shape(tmp_path, capsys):
    for seed in (0, 1):
        spec = f"configs/demo.py:smoke,seed={seed}"
        make_run(tmp_path / f"d{seed}", spec, dict(base=16, reft=20 + seed), num=32, maj_4=0.5)
    make_run(tmp_path / "c", "configs/demo.py:smoke,annotations=canonical", dict(base=16, reft=30), num=32)
    out, _ = printed(capsys, tmp_path, "--table=numeric")
    other = out.split("other runs")[1]
    lines = [re.split(r"\s{2,}", line) for line in other.splitlines() if line.startswith("arithmetic_base")]
    name = "arithmetic_base/arithmetic/program"
    assert [f"{name}/reft", "-", "64.1", "-"] == [line for line in lines if line[0] == f"{name}/reft"][1][:4]
    assert [line[5] for line in lines if line[0] == f"{name}/base"] == ["1: 0", "2: 0, 1"]  # canonical is another thing
    assert [f"{name}/reft vote@4", "-", "50.0"] in [line[:3] for line in lines]


@pytest.mark.slow
def test_a_real_run_is_listed(capsys):
    out, err = printed(capsys, runs.unbroken(), "--table=numeric")
    assert "arithmetic_base/arithmetic/program/reft " in out and not err
    assert not [line for line in out.splitlines() if line.startswith("note")]


# ------------------------------------------------------------------ folders


def test_an_empty_folder_shows_the_paper_and_what_makes_it(tmp_path, capsys):
    out, err = printed(capsys, tmp_path)
    assert not err and "other runs" not in out
    for name in paper.TABLES:
        assert f"\n{name}: " in f"\n{out}"
    assert out.count(paper.UNVERIFIED) == 2  # under main and small
    assert out.count(" †") == 24 + 6
    jobs = {paper.job(name) for name in paper.ROWS}
    made = re.findall(r"^python -m .*:row=([^,]+),", out, re.M)
    assert len(made) == len(set(made)) and set(made) == jobs
    number = re.search(rf"^{CELL} .*(\[\d+\])$", out, re.M)[1]
    assert f"# {number} {REFT}\n" in out
    assert "collapses" in out


def test_markdown_and_csv(tmp_path, capsys):
    make_run(tmp_path / "a", row(REFT), dict(reft=990))
    out, _ = printed(capsys, tmp_path, "--format=markdown", "--table=main")
    assert "### main: " in out and f"| {CELL} | 75.28 | 75.06 | -0.22 |" in out and "```bash\n# DATA" in out
    assert out.count(paper.UNVERIFIED) == 1
    found = cells(capsys, tmp_path, "--table=main")
    assert len(found) == 48 and found["main", SFT[5:]]["run"].startswith("python -m reft_jax.main ")
    offline = found["main", "codellama_7b/svamp/nl/offline"]
    assert (offline["published"], offline["note"]) == ("60.20 †", paper.UNVERIFIED)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "{",
            "[]",
            '{"stages": []}',
            '{"stages": {"reft": 3}}',
            '{"stages": {"reft": {"accuracy": 75.3}}}',
            '{"seed": 1}',
        ),
        '{"stages": {}, "stages": {}}',
    ],
)
def test_a_corrupt_file_is_named_and_the_others_are_shown(tmp_path, capsys, text):
    make_run(tmp_path / "good", row(REFT), dict(reft=990))
    bad = make_run(tmp_path / "bad", row(SFT), dict(sft=990))
    (bad / "results.json").write_text(text)
    out, err = printed(capsys, tmp_path, "--table=main")
    assert "75.06" in out and err.count("\n") == 1 and err.startswith(f"warning: {bad}/results.json")


def test_unfinished_runs_and_other_folders_are_passed_over(tmp_path, capsys):
    (make_run(tmp_path / "unfinished", row(REFT), dict(reft=990)) / "results.json").unlink()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    out, err = printed(capsys, tmp_path, "--table=main")
    assert not err and "75.06" not in out and "other runs" not in out


def test_wrong_arguments_are_one_line_and_exit_code_2(tmp_path, capsys):
    _, err = printed(capsys, tmp_path / "nowhere", code=2)
    assert err.count("\n") == 1 and "it is no folder" in err
    _, err = printed(capsys, "a,b", "--plan", code=2)
    assert "a comma separates" in err
    _, err = printed(capsys, tmp_path, "--table=nope", code=2)
    assert err.startswith("error: --table: got 'nope'; ") and "numeric" in err


# ------------------------------------------------------------------ the plan


def planned(capsys, *arguments) -> list[dict]:
    """The plan's commands as {argument: value}, with `workdir`."""
    out, _ = printed(capsys, *arguments, "--plan")
    lines = [line for line in out.splitlines() if not line.startswith("#")]
    return [
        dict(pair.partition("=")[::2] for pair in spec.partition(":")[2].split(",")) | dict(workdir=workdir[10:])
        for _, _, _, spec, workdir in map(shlex.split, lines)
    ]


@pytest.mark.parametrize("table", paper.TABLES)
def test_a_plan_makes_every_row_once_after_what_it_needs(table, capsys):
    plan, done = planned(capsys, "R", f"--table={table}"), []
    for step in plan:
        assert set(paper.needs(step["row"])) <= set(done) and step["row"] not in done
        assert step["workdir"] == f"R/paper_42/{step['row']}"
        assert step.get("runs") == ("R/paper_42" if paper.needs(step["row"]) else None)
        done.append(step["row"])
    wanted = {paper.job(row.name) for row in paper.ROWS.values() if row.table == table}
    assert wanted <= set(done)
    extra = set(done) - wanted
    assert extra == {need for job in wanted for need in command.in_order([job], "paper")} - wanted
    sizes = dict(main=48, v1=48, vote=8, rerank=16, numeric=4, small=12, ablation=9)
    assert len(done) == sizes[table]


def test_all_tables_share_their_runs(capsys):
    plan = planned(capsys, "R", "--variant=script", "--seed=3")
    assert len(plan) == len({paper.job(name, "script") for name in paper.ROWS}) == 79
    assert plan[0]["workdir"].startswith("R/script_3/main/") and {step["seed"] for step in plan} == {"3"}
    assert plan[0]["train_file"] == "$DATA/gsm8k_nl.json" and plan[0]["model_dir"] == "$MODELS/galactica_6_7b"


def test_planned_commands_are_legal(capsys):
    for step in planned(capsys, "R", "--table=ablation"):
        workdir = step.pop("workdir")
        spec = ",".join(f"{key}={value}" for key, value in step.items())
        config, _ = recipe.load(f"{ROOT}/configs/paper.py:{spec}")
        for _, stage in config.stages:
            for source in (getattr(stage, "init_from", ""), *dict(getattr(stage, "checkpoints", ())).values()):
                assert not source.startswith(workdir)
                if source.startswith("R/"):
                    assert f"/{source.split('/')[-1]}" in ("/warmup", "/sft", "/reft")


# ------------------------------------------------------------------ launch/table.sh

FAKE = """\
#!/bin/bash
trap 'exit 75' TERM
for word; do case $word in --workdir=*) workdir=${word#--workdir=} ;; esac; done
printf '%s\\n' "$*" >>"$FAKE_LOG"
printf '%s\\n' "$GLIBC_TUNABLES" >"$FAKE_LOG.glibc"
if [ -n "$FAKE_WAITS" ]; then sleep 20 >/dev/null 2>&1 & wait; fi
[ "$FAKE_EXIT" = 0 ] && mkdir -p "$workdir/evaluate" && touch "$workdir/evaluate/DONE"
exit "$FAKE_EXIT"
"""


@pytest.fixture
def script(tmp_path):
    """`begin(*args, **env) -> Popen` of launch/table.sh with a make-believe launcher; `begin.log()`: what that was asked for."""
    (tmp_path / "launcher").write_text(FAKE)
    (tmp_path / "launcher").chmod(0o755)
    (tmp_path / "the data").mkdir()
    log = tmp_path / "log"

    def begin(*args, launcher=True, **env):
        known = dict(PATH=os.environ["PATH"], PYTHON=sys.executable, FAKE_LOG=str(log), FAKE_EXIT="0", DATA="the data")
        known |= dict(MODELS=str(tmp_path))
        words = ["bash", ROOT / "launch" / "table.sh", *args, *([tmp_path / "launcher", "--"] if launcher else [])]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(words, env=known | env, cwd=tmp_path, start_new_session=True, **pipes)

    begin.log = lambda: log.read_text().splitlines() if log.exists() else []
    begin.glibc = lambda: log.with_name("log.glibc").read_text().strip()
    return begin


def ended(process, code=0) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (out, err)
    return out, err


def test_table_sh_runs_what_is_missing(script, tmp_path):
    ended(script("numeric", "my $runs"))
    asked = script.log()
    assert len(asked) == 4 and all(line.startswith("-- --config=configs/paper.py:row=numeric/") for line in asked)
    first = f"{tmp_path}/my $runs/paper_42/numeric/galactica_6_7b/mathqa-numeric/nl/sft"
    assert (
        asked[0].endswith(f"--workdir={first}") and f"train_file={tmp_path}/the data/mathqa-numeric_nl.json" in asked[0]
    )
    assert (pathlib.Path(first) / "evaluate" / "DONE").exists()
    shutil.rmtree(first)
    out, _ = ended(script("numeric", "my $runs"))
    assert len(script.log()) == 5 and out.count("# done: ") == 3 and not script.glibc()
    table = subprocess.run(
        [sys.executable, "-m", "reft_jax.tables", tmp_path / "my $runs", "--table=numeric"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert table.stdout.startswith("numeric: ") and out.endswith(table.stdout)


def test_table_sh_stops_at_a_failure_and_when_a_run_was_stopped(script):
    _, err = ended(script("numeric", "R", FAKE_EXIT="1"), code=1)
    assert len(script.log()) == 1 and "ended with code 1" in err
    _, err = ended(script("numeric", "R", FAKE_EXIT="75"), code=75)
    assert len(script.log()) == 2 and "the same command goes on" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_table_sh_hands_signals_on_and_ends_with_75(script, number):
    process = script("numeric", "R", FAKE_WAITS="1")
    limit = time.monotonic() + 60
    while not script.log():
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(number)
    ended(process, code=75)
    assert len(script.log()) == 1


def test_table_sh_dry_run_and_misuse(script):
    out, _ = ended(
        script("small", "R", "--dry-run", "--variant=script", "--seed=9", launcher=False, DATA="", MODELS="")
    )
    assert len(out.splitlines()) == 12 and "variant=script,seed=9" in out and "$DATA/gsm8k_python_sdp.json" in out
    assert not script.log()
    out, _ = ended(script("small", "R", "--smoke", "--dry-run", DATA="", MODELS=""))
    assert ",smoke" in out and "$DATA" not in out and "/R/smoke_paper_42/small/" in out
    for args, said in ((("small",), "TABLE and ROOT"), (("small", "R", "--what"), "'--what'"), (("none", "R"), "none")):
        _, err = ended(script(*args, launcher=False), code=2)
        assert said in err
    _, err = ended(script("small", "R", DATA="/nowhere"), code=2)
    assert "DATA must be a folder; it is '/nowhere'" in err


def test_table_sh_is_clean():
    name = str(ROOT / "launch" / "table.sh")
    subprocess.run(["bash", "-n", name], check=True, timeout=60)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "-x", name], capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stdout


def test_the_matching_ignores_how_and_nothing_else():
    """Every stage setting is either compared or a way to watch, check and lay out a run."""
    watched = set(tables.HOW["stage"]) | set(tables.HOW["data"])
    rooms = ("sft", "reft", "self_train", "reranker")
    settings = [choices.load("stages", name) for name in rooms]
    ppo = next(field.record for field in records.fields(settings[1]) if field.key == "ppo")
    for cls in (*settings, ppo):
        compared = set(records.keys(cls)) - watched
        assert {"epochs", "batch_size", "optim"} & compared
    assert not {"dropout", "lr", "num_samples", "select", "minibatch_size"} & watched
    chosen = [("advantages", name) for name in choices.names("advantages")]
    chosen += [("losses", name) for name in choices.names("losses")]
    chosen += [("rewards/terms", name) for name in choices.names("rewards/terms")]
    for room, name in chosen:  # what an advantage, a loss or a reward term does always counts
        assert not set(records.keys(choices.load(room, name))) & watched
    assert {"advantage", "losses", "rewards", "reduce", "ppo"} <= set(records.keys(settings[1])) - watched
    kinds = records.keys(
        next(field.record for field in records.fields(choices.load("advantages", "gae")) if field.key == "kl")
    )
    assert {"in", "coef"} <= set(kinds) - watched
