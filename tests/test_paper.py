"""Every row of the paper's tables is legal, can be built, and has exactly the hyper-parameters of tests/golden/paper.json.

The golden file holds, for each method, all settings of one row, and of every other row what differs from it. After a change that
is meant, write it anew and read the difference:

    python -m tests.test_paper
"""

import dataclasses
import functools
import json
import pathlib

import jax
import pytest

from configs import common, paper
from reft_jax import models, prepare, recipe
from reft_jax.errors import InputError
from reft_jax.models import init_classifier
from reft_jax.run import workdirs
from reft_jax.training import steps
from reft_jax.training.optim import make_optimizer

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "paper.json"
JOBS = {variant: list(dict.fromkeys(paper.job(name, variant) for name in paper.ROWS)) for variant in paper.VARIANTS}
BOTH = [(job, variant) for variant, jobs in JOBS.items() for job in jobs]
REFT = "main/codellama_7b/gsm8k/program/reft"


@functools.cache
def load(row: str, extra: str = ""):
    """(checked config, plain dict) of a row; extra: ",argument=value"."""
    return recipe.load(f"{ROOT}/configs/paper.py:row={row}{extra}", reads_data=False)


def stages(row: str, extra: str = "") -> dict:
    return dict(load(row, extra)[0].stages)


# ------------------------------------------------------------------ every row


@pytest.mark.parametrize("variant", paper.VARIANTS)
def test_every_row_is_legal_and_its_batches_divide_over_its_devices(variant):
    for name in paper.ROWS:
        config, _ = load(name, f",variant={variant}")
        assert config.model.name == paper.ROWS[name].model and config.model.compute_dtype == "bfloat16"
        for _, stage in config.stages:
            ways = max(config.mesh.fsdp, 8)  # the authors' 8 devices
            sizes = [getattr(stage, key) for key in ("batch_size", "eval_batch_size") if hasattr(stage, key)]
            assert not any(size % ways for size in sizes), (name, sizes)


def trained(model, stage, params, key) -> dict:
    """All parameters that a stage trains."""
    if stage.kind == "reft":
        ppo = stage.ppo
        return models.with_critic(model, params, key, critic=ppo.critic, how=ppo.value_init, bias=ppo.value_bias)
    return params | ({"classifier": init_classifier(model, key)} if stage.kind == "reranker" else {})


@pytest.mark.parametrize("model", paper.MODELS)
def test_every_row_of_a_model_is_built(model):
    """Shapes of parameters and optimizer state alone: nothing of 7B is allocated."""
    key, built = jax.eval_shape(lambda: jax.random.key(0)), {}
    for job, variant in BOTH:
        if paper.ROWS[job].model != model:
            continue
        config, _ = load(job, f",variant={variant}")
        whole = prepare.build_model(config, config.model.arch, None)
        for name, stage in config.stages:
            if stage.kind == "evaluate":
                continue
            critic = stage.ppo.critic if stage.kind == "reft" else stage.kind == "reranker"
            if (critic, stage.optim) in built:
                continue
            params = jax.eval_shape(functools.partial(trained, whole, stage), models.shapes(whole), key)
            state = steps.eval_state(make_optimizer(stage.optim, 1000), params)
            built[critic, stage.optim] = sum(x.size for x in jax.tree.leaves(state.opt_state))
            assert built[critic, stage.optim] >= 2 * sum(x.size for x in jax.tree.leaves(params)), (job, name)
    assert len(built) >= 2  # SFT's and ReFT's
    if model == "codellama_7b":
        moments = {critic: size for (critic, _), size in built.items()}
        assert moments["separate"] > 1.9 * moments["shared"]


def test_all_cells_of_the_paper_are_here():
    counts = {table: sum(row.table == table for row in paper.ROWS.values()) for table in paper.TABLES}
    assert counts == dict(main=48, v1=48, vote=8, rerank=8, numeric=4, small=12, ablation=9)
    assert {row.data for row in paper.ROWS.values()} == set(paper.TEST_SIZES)
    published = {name: row.published for name, row in paper.ROWS.items()}
    assert published[REFT] == 75.28 and published["v1/galactica_6_7b/mathqa/nl/online"] == 59.7
    assert published["rerank/codellama_7b/gsm8k/nl/reft"] == 65.7
    marked = {
        (row.table, row.method if row.table == "main" else row.model) for row in paper.ROWS.values() if row.unverified
    }
    assert marked == {("main", "offline"), ("main", "online"), ("small", "codegen_350m")}


@pytest.mark.parametrize("variant", paper.VARIANTS)
def test_rows_share_a_run_just_where_their_settings_are_the_same(variant):
    seen = {}
    for job in JOBS[variant]:
        text = json.dumps(load(job, f",variant={variant}")[1], sort_keys=True, default=list)
        assert seen.setdefault(text, job) == job
    for name in paper.ROWS:
        assert load(name, f",variant={variant}")[1] == load(paper.job(name, variant), f",variant={variant}")[1]


# ------------------------------------------------------------------ what the paper and the scripts say


def test_reft_has_the_papers_settings():
    config, _ = load(REFT)
    named = dict(config.stages)
    assert list(named) == ["warmup", "reft", "evaluate"] and config.seed == 42
    warmup, reft = named["warmup"], named["reft"]
    assert (warmup.epochs, warmup.batch_size, warmup.dropout) == (2, 48, 0.0)
    optim = warmup.optim
    assert (optim.lr, optim.warmup, optim.final, optim.schedule_epochs, optim.weight_decay) == (1e-5, 0.1, 0.0, 40, 0)
    assert (reft.epochs, reft.batch_size, reft.optim.lr, reft.optim.final) == (300, 32, 3e-7, 1.0)
    ppo = reft.ppo
    assert (ppo.kl_coef, ppo.value_coef, ppo.clip, ppo.gamma, ppo.lam, ppo.epochs) == (0.01, 5.0, 0.2, 1.0, 0.95, 2)
    assert (ppo.minibatch_size, ppo.whiten, ppo.reduce, ppo.critic) == (32, True, "sequence", "shared")
    assert (config.data.max_prompt, config.data.max_response) == (300, 400)
    assert named["evaluate"].num_samples == 100 and named["evaluate"].num_questions == 0


def test_offline_and_online_self_training_and_the_re_ranker():
    config, _ = load("main/galactica_6_7b/svamp/nl/offline")
    offline = dict(config.stages)["offline"]
    assert (offline.mode, offline.init_from, offline.sample_from) == ("offline", "random", "warmup")
    assert (offline.epochs, offline.batch_size, offline.num_samples, offline.max_per_question) == (20, 48, 100, 10)
    assert offline.optim.lr == 1e-5 and config.data.max_prompt + config.data.max_response == 1024
    online = stages("main/galactica_6_7b/svamp/nl/online")["online"]
    assert (online.mode, online.init_from, online.epochs, online.batch_size) == ("online", "warmup", 300, 32)
    assert (online.num_samples, online.own_weight, online.gold_weight, online.optim.lr) == (1, 0.5, 0.5, 3e-7)
    for method in ("sft", "reft"):
        named = stages(f"rerank/codellama_7b/gsm8k/program/{method}")
        ranker = named["reranker"]
        assert list(named) == ["warmup", method, "reranker", "evaluate"]
        assert (ranker.init_from, ranker.sample_from, ranker.epochs, ranker.num_samples) == (method, "warmup", 3, 100)
        assert (ranker.optim.lr, ranker.optim.warmup, ranker.optim.final) == (1e-6, 0.1, 0.0)
        assert named["evaluate"].rerankers == ((method, "reranker"),)


def test_small_models():
    named = stages("small/galactica_125m/mathqa/program/reft")
    assert (named["warmup"].epochs, named["warmup"].optim.schedule_epochs, named["warmup"].optim.lr) == (40, 100, 2e-5)
    assert (named["reft"].epochs, named["reft"].batch_size, named["reft"].optim.lr) == (700, 256, 3e-6)
    assert stages("small/galactica_125m/svamp/program/sft")["sft"].epochs == 40
    codegen = "small/codegen_350m/gsm8k/program/reft"
    for extra, size, value_coef in (("", 256, 5.0), (",variant=script", 128, 0.1)):
        reft = stages(codegen, extra)["reft"]
        assert (reft.batch_size, reft.ppo.minibatch_size, reft.ppo.value_coef) == (size, size, value_coef)


def test_ablations_change_one_thing_each():
    base = stages(REFT)["reft"]
    for method, change in (
        ("no_partial_reward", lambda s: (s.partial_reward, base.partial_reward)),
        ("no_kl", lambda s: (s.ppo.kl_coef, base.ppo.kl_coef)),
        ("separate_critic", lambda s: (s.ppo.critic, base.ppo.critic)),
    ):
        stage = stages(f"ablation/codellama_7b/gsm8k/program/{method}")["reft"]
        flat, before = (workdirs.flatten(dataclasses.asdict(s)) for s in (stage, base))
        assert sum(flat[key] != before[key] for key in flat) == 1 and len(set(change(stage))) == 2
    for k in range(1, 6):
        named = stages(f"ablation/codellama_7b/gsm8k/program/warmup_{k}")
        assert named["warmup"].epochs == k and named["warmup"].optim.schedule_epochs == 40 and named["reft"] == base


@pytest.mark.parametrize(
    "row, stage, path, of_paper, of_script",
    [
        ("main/codellama_7b/mathqa/program/reft", "reft", "partial_on", "numeric", "all"),
        ("numeric/codellama_7b/mathqa-numeric/nl/reft", "reft", "ppo.kl_coef", 0.05, 0.01),
        ("main/codellama_7b/gsm8k/nl/reft", "reft", "ppo.kl_coef", 0.05, 0.05),
        ("main/codellama_7b/svamp/program/reft", "warmup", "epochs", 1.0, 2.0),
        ("main/galactica_6_7b/svamp/program/reft", "warmup", "epochs", 2.0, 2.0),
        ("main/codellama_7b/mathqa/nl/reft", "warmup", "epochs", 5.0, 5.0),
        ("numeric/galactica_6_7b/mathqa-numeric/nl/sft", "warmup", "epochs", 10.0, 10.0),
        (REFT, "reft", "select_on", "dev", "test"),
        ("main/codellama_7b/gsm8k/program/sft", "sft", "select_on", "dev", "test"),
        ("main/codellama_7b/gsm8k/program/online", "online", "select_on", "dev", "test"),
        ("main/codellama_7b/gsm8k/program/offline", "offline", "sampling.top_k", 0, 50),
        ("main/codellama_7b/gsm8k/program/online", "online", "sampling.top_k", 0, 0),
        (REFT, "reft", "sampling.top_k", 0, 0),
        (REFT, "evaluate", "sampling.top_k", 0, 50),
        ("rerank/codellama_7b/gsm8k/nl/sft", "reranker", "sampling.top_k", 0, 50),
        ("rerank/codellama_7b/gsm8k/nl/sft", "reranker", "batch_size", 48, 24),
    ],
)
def test_where_paper_and_scripts_disagree(row, stage, path, of_paper, of_script):
    for variant, value in (("paper", of_paper), ("script", of_script)):
        node = load(row, f",variant={variant}")[1]["stages"][stage]
        for key in path.split("."):
            node = node[key]
        assert node == value, variant


def test_the_scripts_hold_nothing_out_and_begin_programs_in_reft_alone():
    paper_data, script_data = (load(REFT, f",variant={v}")[0].data for v in paper.VARIANTS)
    assert (paper_data.dev_size, script_data.dev_size) == (200, 0)
    assert (paper_data.append_prefix, script_data.append_prefix) == ("everywhere", "reft")


# ------------------------------------------------------------------ arguments


def test_a_row_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(InputError) as error:
        load("main/codelama_7b/gsm8k/program/reft")
    assert "did" not in str(error.value) and f"The nearest are {REFT}" in str(error.value)
    for bad in ("", "main", "nonsense"):
        with pytest.raises(InputError, match="argument row: got"):
            load(bad)
    with pytest.raises(InputError, match="argument variant: got 'scripts'; legal are paper, script"):
        load(REFT, ",variant=scripts")


def test_model_dir_is_where_weights_and_tokenizer_come_from():
    config, _ = load(REFT, ",model_dir=/models/c,train_file=a.json,test_file=b.json,seed=7")
    assert (config.model.directory, config.model.arch, config.model.name) == ("/models/c", None, "codellama_7b")
    assert dict(config.stages)["warmup"].init_from == "/models/c" and config.seed == 7
    assert (config.data.train_file, config.data.test_file) == ("a.json", "b.json")
    assert stages(REFT)["warmup"].init_from == "random"


def test_with_runs_a_row_begins_with_what_other_rows_left():
    sft = REFT.replace("reft", "sft")
    assert list(stages(sft, ",runs=R")) == list(stages(sft)) == ["warmup", "sft", "evaluate"]
    for name in (REFT, REFT.replace("reft", "online"), "ablation/codellama_7b/gsm8k/program/no_kl"):
        alone, shared = stages(name), stages(name, ",runs=R")
        assert list(shared) == list(alone)[1:]
        first = shared[next(iter(shared))]
        assert first.init_from == f"R/{sft}/warmup" and paper.needs(name) == [sft]
    ranker = stages("rerank/codellama_7b/gsm8k/program/reft", ",runs=R")
    assert list(ranker) == ["warmup", "reranker", "evaluate"]  # it samples from a warm-up of its own
    assert ranker["reranker"].init_from == f"R/{REFT}/reft" and ranker["evaluate"].checkpoints == (
        ("reft", f"R/{REFT}/reft"),
    )
    assert paper.needs("rerank/codellama_7b/gsm8k/program/reft") == [REFT]


@pytest.mark.parametrize("job", JOBS["paper"])
def test_every_job_has_a_toy_size(job):
    config, _ = load(job, ",smoke")
    assert (config.data.name, config.data.cot) == ("arithmetic", "program")
    assert config.model.name == "arithmetic_base" and config.data.num_train == 64
    names = [name for name, _ in load(job)[0].stages]
    assert [name for name, _ in config.stages] == names
    assert max(stage.epochs for name, stage in config.stages if name != "evaluate") <= 2


def test_toy_size_with_files_is_from_scratch():
    config, _ = load(REFT, ",smoke,train_file=t.json,test_file=t.json")
    assert (config.model.name, config.data.name, config.data.num_train) == ("tiny", "gsm8k", 64)


# ------------------------------------------------------------------ the golden file


def resolved(job: str, variant: str) -> dict:
    """Every setting of a job but its architecture, which tests/test_presets.py pins, and how it is watched."""
    flat = workdirs.flatten(json.loads(json.dumps(load(job, f",variant={variant}")[1])))
    return {
        key.removeprefix("config."): v
        for key, v in flat.items()
        if not key.startswith(("config.model.arch.", "config.logging."))
    }


def family(job: str) -> str:
    """The job whose settings stand in full for those like it."""
    row = paper.ROWS[job]
    if row.table == "rerank":
        return f"rerank/codellama_7b/gsm8k/program/{row.method}"
    method = "reft" if row.table == "ablation" else row.method
    return f"main/codellama_7b/gsm8k/program/{method}"


def golden() -> str:
    """The golden file's text: a line for each base setting and for each job."""
    bases = {name: resolved(name, "paper") for name in sorted({family(job) for job, _ in BOTH})}
    rows = {}
    for job, variant in BOTH:
        base, ours = bases[family(job)], resolved(job, variant)
        assert base.keys() == ours.keys()
        rows[f"{job} ({variant})"] = {key: value for key, value in ours.items() if value != base[key]}

    def lines(group):
        return ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in group.items())

    parts = [f'"base {name}": {{\n{lines(base)}\n}}' for name, base in bases.items()]
    parts.append(f'"rows": {{\n{lines(rows)}\n}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def test_every_hyper_parameter_is_as_it_was():
    now, before = json.loads(golden()), json.loads(GOLDEN.read_text())
    assert now.keys() == before.keys()
    for part in now:
        changed = {key for key in now[part].keys() | before[part].keys() if now[part].get(key) != before[part].get(key)}
        assert not changed, f"{part}: {sorted(changed)} changed; if meant: python -m tests.test_paper"
    assert GOLDEN.read_text() == golden()


def test_common_is_what_the_rows_are_made_of():
    """The bases hold the fragments' settings, so that a change in configs/common.py is seen here."""
    stage = json.loads(GOLDEN.read_text())[f"base {REFT}"]
    ppo = common.ppo(kl_coef=0.01, minibatch_size=32)
    assert {key: stage[f"stages.reft.ppo.{key}"] for key in ppo} == ppo


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden())
    print(f"wrote {GOLDEN}")
