"""Every row of the paper's tables is legal, can be built, and has exactly the hyper-parameters of tests/golden/paper.

There a file holds the settings of one record, loss, advantage, reward term or kind of stage: of each place that has them
those that most rows have, in full, and of every other row what it has instead. So a new method changes no file of another's,
and a new setting that of its record alone. After a change that is meant, write them anew and read the difference:

    python -m tests.test_paper
"""

import collections
import functools
import json
import pathlib
import shutil

import jax
import pytest

from reft_jax import models, prepare, recipe
from reft_jax.config import choices, records
from reft_jax.configs import common, paper
from reft_jax.errors import InputError
from reft_jax.models import init_classifier
from reft_jax.training.state import eval_state

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "paper"
JOBS = {variant: list(dict.fromkeys(paper.job(name, variant) for name in paper.ROWS)) for variant in paper.VARIANTS}
BOTH = [(job, variant) for variant, jobs in JOBS.items() for job in jobs]
REFT = "main/codellama_7b/gsm8k/program/reft"


@functools.cache
def load(row: str, extra: str = ""):
    """(checked config, filled tree) of a row; extra: ",argument=value"."""
    return recipe.load(f"{ROOT}/configs/paper.py:row={row}{extra}")


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


def trained(model, kind, stage, params, key) -> dict:
    """All parameters that a stage trains."""
    if kind == "reft":
        return models.with_critic(model, params, key, stage.critic)
    return params | ({"classifier": init_classifier(model, key)} if kind == "reranker" else {})


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
            kind = config.kind(name)
            if kind == "evaluate":
                continue
            critic = stage.critic.trunk if kind == "reft" else kind == "reranker"
            if (critic, stage.optim) in built:
                continue
            params = jax.eval_shape(functools.partial(trained, whole, kind, stage), models.shapes(whole), key)
            state = eval_state(stage.optim(1000), params)
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
    assert (optim.lr, optim.schedule_epochs, optim.weight_decay) == (1e-5, 40, 0)
    assert (optim.schedule.warmup, optim.schedule.final) == (0.1, 0.0)
    assert (reft.epochs, reft.batch_size, reft.optim.lr, reft.optim.schedule.final) == (300, 32, 3e-7, 1.0)
    ppo, gae, policy = reft.ppo, reft.advantage, dict(reft.losses)["policy"]
    assert (gae.kl.where, gae.kl.coef, gae.kl.estimator) == ("reward", 0.01, "unbiased")  # which is k1 there
    assert (gae.critic.coef, gae.critic.clip, policy.clip, policy.clip_high) == (5.0, 0.2, 0.2, 0.0)
    assert (gae.gamma, gae.lam, ppo.epochs, policy.coef) == (1.0, 0.95, 2, 1.0)
    assert (ppo.minibatch_size, gae.whiten, reft.reduce, gae.critic.trunk) == (32, True, "sequence", "shared")
    assert {label: term.weight for label, term in reft.rewards} == dict(right=1.0, partial=0.1)
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
    [(label, loss)] = online.losses
    assert (online.num_samples, label, loss.own, loss.gold, online.optim.lr) == (1, "own_gold", 0.5, 0.5, 3e-7)
    for method in ("sft", "reft"):
        named = stages(f"rerank/codellama_7b/gsm8k/program/{method}")
        ranker = named["reranker"]
        assert list(named) == ["warmup", method, "reranker", "evaluate"]
        assert (ranker.init_from, ranker.sample_from, ranker.epochs, ranker.num_samples) == (method, "warmup", 3, 100)
        assert (ranker.optim.lr, ranker.optim.schedule.warmup, ranker.optim.schedule.final) == (1e-6, 0.1, 0.0)
        assert named["evaluate"].rerankers == ((method, "reranker"),)


def test_small_models():
    named = stages("small/galactica_125m/mathqa/program/reft")
    assert (named["warmup"].epochs, named["warmup"].optim.schedule_epochs, named["warmup"].optim.lr) == (40, 100, 2e-5)
    assert (named["reft"].epochs, named["reft"].batch_size, named["reft"].optim.lr) == (700, 256, 3e-6)
    assert stages("small/galactica_125m/svamp/program/sft")["sft"].epochs == 40
    codegen = "small/codegen_350m/gsm8k/program/reft"
    for extra, size, value_coef in (("", 256, 5.0), (",variant=script", 128, 0.1)):
        reft = stages(codegen, extra)["reft"]
        assert (reft.batch_size, reft.ppo.minibatch_size, reft.critic.coef) == (size, size, value_coef)


def flat(row: str) -> dict:
    return records.flatten(load(row)[1]["stages"]["reft"], "reft")


def test_ablations_change_one_thing_each():
    base = flat(REFT)
    for method, key in (
        ("no_partial_reward", "rewards.partial.weight"),
        ("no_kl", "advantage.kl.coef"),
        ("separate_critic", "advantage.critic.trunk"),
    ):
        ours = flat(f"ablation/codellama_7b/gsm8k/program/{method}")
        assert ours.keys() == base.keys() and [k for k in ours if ours[k] != base[k]] == [f"reft.{key}"]
    for k in range(1, 6):
        named = stages(f"ablation/codellama_7b/gsm8k/program/warmup_{k}")
        assert named["warmup"].epochs == k and named["warmup"].optim.schedule_epochs == 40
        assert named["reft"] == stages(REFT)["reft"]


@pytest.mark.parametrize(
    "row, stage, path, of_paper, of_script",
    [
        ("main/codellama_7b/mathqa/program/reft", "reft", "rewards.partial.on", "numeric", "all"),
        ("numeric/codellama_7b/mathqa-numeric/nl/reft", "reft", "advantage.kl.coef", 0.05, 0.01),
        ("main/codellama_7b/gsm8k/nl/reft", "reft", "advantage.kl.coef", 0.05, 0.05),
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
    assert (paper_data.append_prefix, script_data.append_prefix) == ("everywhere", "rollouts")


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
    assert (config.data.task, config.data.cot) == ("arithmetic", "program")
    assert config.model.name == "arithmetic_base" and config.data.num_train == 64
    names = [name for name, _ in load(job)[0].stages]
    assert [name for name, _ in config.stages] == names
    assert max(stage.epochs for name, stage in config.stages if name != "evaluate") <= 2


def test_toy_size_with_files_is_from_scratch():
    config, _ = load(REFT, ",smoke,train_file=t.json,test_file=t.json")
    assert (config.model.name, config.data.task, config.data.num_train) == ("tiny", "gsm8k", 64)


# ------------------------------------------------------------------ the golden files


def groups(cls, node: dict, place: str):
    """(file, place, settings) of a record's values with the names of its choices, and of the records and choices in it."""
    own = collections.defaultdict(dict)
    for field in records.fields(cls):
        value, here = node[field.key], f"{place}.{field.key}"
        if here == "model.arch":
            continue  # tests/test_presets.py pins it
        if field.kind in ("record", "optional") and isinstance(value, dict):
            yield from groups(field.record, value, here)
            continue
        room = field.about.get("room")
        if field.kind == "choice":
            yield from groups(choices.load(room, value["use"]), value, here)
            value = {"use": value["use"]}
        elif field.kind == "choices":
            for label, one in value.items():
                yield from groups(choices.load(room, one["use"]), one, f"{here}.{label}")
            value = {label: {"use": one["use"]} for label, one in value.items()}
        own[home(cls, field.name)][field.key] = value
    for file, values in own.items():
        yield file, place, values


def home(cls, name: str) -> str:
    """The file of a setting: after the record, or the file of a room, that defines it."""
    owner = next(base for base in reversed(cls.__mro__) if name in vars(base).get("__annotations__", {}))
    module = owner.__module__.removeprefix("reft_jax.").replace(".", "/")
    if module == "config/settings":
        return owner.__name__.lower()
    return module if owner.__name__ in choices.ROOMS.values() else f"{module}_{owner.__name__.lower()}"


def resolved(job: str, variant: str):
    """`groups` of a whole row but how it is watched."""
    tree = json.loads(json.dumps(load(job, f",variant={variant}")[1]))
    for key, cls in recipe.GROUPS.items():
        if key != "logging":
            yield from groups(cls, tree[key], key)
    for name, stage in tree["stages"].items():
        yield from groups(choices.load("stages", stage["kind"]), stage, f"stages.{name}")
    kinds = {name: {"kind": stage["kind"]} for name, stage in tree["stages"].items()}
    yield "recipe", "", {"seed": tree["seed"], "stages": kinds}


@functools.cache
def golden() -> dict[str, str]:
    """{file: its text}: of every place the settings that most rows have there, and of the others what differs."""
    files = collections.defaultdict(lambda: collections.defaultdict(dict))
    for job, variant in BOTH:
        for file, place, ours in resolved(job, variant):
            files[file][place][f"{job} ({variant})"] = ours
    return {file: text_of({place: apart(rows) for place, rows in places.items()}) for file, places in files.items()}


def apart(rows: dict) -> dict:
    """{"base": settings, row: what it has instead}."""
    most, _ = collections.Counter(map(json.dumps, rows.values())).most_common(1)[0]
    base = json.loads(most)
    assert all(ours.keys() == base.keys() for ours in rows.values())
    unlike = {row: {key: value for key, value in ours.items() if value != base[key]} for row, ours in rows.items()}
    return {"base": base} | {row: settings for row, settings in unlike.items() if settings}


def text_of(places: dict) -> str:
    """A setting of the base a line, and a line for each row that differs."""

    def lines(group, indent):
        return ",\n".join(f"{indent}{json.dumps(key)}: {json.dumps(value)}" for key, value in group.items())

    out = []
    for place, rows in places.items():
        base, others = rows["base"], {key: value for key, value in rows.items() if key != "base"}
        more = f",\n{lines(others, '  ')}" if others else ""
        out.append(f'"{place}": {{\n  "base": {{\n{lines(base, "    ")}\n  }}{more}\n}}')
    return "{\n" + ",\n".join(out) + "\n}\n"


def stored() -> dict[str, str]:
    return {str(path.relative_to(GOLDEN).with_suffix("")): path.read_text() for path in sorted(GOLDEN.rglob("*.json"))}


def test_every_hyper_parameter_is_as_it_was():
    now, before = golden(), stored()
    assert sorted(now) == sorted(before), "if meant: python -m tests.test_paper"
    for file, text in now.items():
        ours, theirs = json.loads(text), json.loads(before[file])
        assert ours.keys() == theirs.keys(), f"{file}; if meant: python -m tests.test_paper"
        for place in ours:
            keys = ours[place].keys() | theirs[place].keys()
            changed = {key for key in keys if ours[place].get(key) != theirs[place].get(key)}
            assert not changed, f"{file}, {place}: {sorted(changed)} changed; if meant: python -m tests.test_paper"
        assert text == before[file], file


def test_the_golden_files_hold_every_setting():
    """Of each row they give its whole config again, but for the architecture and how it is watched."""
    files = {file: json.loads(text) for file, text in stored().items()}
    for job, variant in BOTH:
        found = {}
        for file, place, _ in resolved(job, variant):
            rows = files[file][place]
            own = rows["base"] | rows.get(f"{job} ({variant})", {})
            found |= records.flatten(own, f"config.{place}".rstrip("."))
        whole = records.flatten(load(job, f",variant={variant}")[1])
        left_out = ("config.model.arch.", "config.logging.")
        assert found == {key: value for key, value in whole.items() if not key.startswith(left_out)}, (job, variant)


def test_common_is_what_the_rows_are_made_of():
    """The files hold the fragments' settings, so that a change in configs/common.py is seen here."""
    rows = json.loads(stored()["advantages/gae"])["stages.reft.advantage"]
    owned = dict(kl="losses/kl_kl", critic="losses/value_critic")
    kl, critic = (json.loads(stored()[file])[f"stages.reft.advantage.{name}"] for name, file in owned.items())
    ours = f"{REFT} (paper)"
    fragment = common.reft(
        "warmup", 1, common.optim(1.0), batch_size=32, minibatch_size=32, **common.method(kl_coef=0.01)
    )
    filled = records.fill(choices.load("stages", "reft"), {k: v for k, v in fragment.items() if k != "kind"}, "stage")
    together = dict(use="gae", kl=kl["base"] | kl.get(ours, {}), critic=critic["base"] | critic.get(ours, {}))
    assert filled["advantage"] == together | rows["base"] | rows.get(ours, {})
    ppo = json.loads(stored()["training/reinforce_ppo"])["stages.reft.ppo"]
    assert filled["ppo"] == ppo["base"] | ppo.get(ours, {})


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for file, text in golden().items():
        path = GOLDEN / f"{file}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(f"wrote {len(golden())} files to {GOLDEN}")
