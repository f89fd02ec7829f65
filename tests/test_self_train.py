"""Self-training: what is kept of sampled responses, the loss of the online mode, and whole runs that are killed between."""

import functools
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from reft_jax import masked, models, prepare, recipe, tasks
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import InputError
from reft_jax.losses import own_gold
from reft_jax.run import sources
from reft_jax.stages import self_train
from reft_jax.training import scoring
from reft_jax.training.state import init_state
from reft_jax.training.update import make_update
from reft_jax.types import Batch, Outputs
from tests import reference, runs, tiny

SPEC = "tests/stages_config.py"

# ------------------------------------------------------------------ what is kept


def line(status="correct", ended=True):
    return {"status": status, "ended": ended}


def test_wrong_unfinished_and_repeated_responses_are_not_learnt():
    gold = "def solution():\n    return 1 + 2\n"
    texts = [
        "def solution():\n    return 3\n",
        "def solution():\n    return 4\n",
        "def solution():\n\n    # three\n    return  3",  # the first again: a comment, a blank line, a space
        "def solution():\n    return 1+2\n",
        "def solution():\n    return 2 + 1\n",
        "def solution():\n    return '3'\n",
    ]
    lines = [line(), line("wrong"), line(), line(), line(ended=False), line()]
    whys = self_train.without_duplicates(lines, texts, gold, program=True)
    assert whys == ["", "wrong", "duplicate", "gold", "unfinished", ""]


def test_texts_are_the_same_by_their_words_and_programs_by_their_syntax():
    assert self_train.same("a  b\nc", program=False) == self_train.same("a b c ", program=False)
    assert self_train.same("a # b", program=False) != self_train.same("a", program=False)
    assert self_train.same("x = 1 # one", program=True) == self_train.same("x=1", program=True)
    assert self_train.same("x = '#1'", program=True) != self_train.same("x = '#2'", program=True)
    assert self_train.same("if x:\n    y\nz", program=True) != self_train.same("if x:\n    y\n    z", program=True)
    assert self_train.same("x = '\\d'", program=True)  # an odd escape: no warning
    assert self_train.same("no  python at all", program=True) == "no python at all"
    assert self_train.same("(" * 5000, program=True) == "(" * 5000


def test_the_cap_keeps_so_many_and_depends_on_seed_and_item_alone():
    whys = ["", "wrong", *[""] * 8]
    kept = {}
    for seed in range(3):
        for item in "ab":
            out = self_train.capped(whys, 3, seed=seed, item_id=item)
            assert out == self_train.capped(whys, 3, seed=seed, item_id=item)
            assert out.count("") == 3 and out.count("over_cap") == 6 and out[1] == "wrong"
            kept[seed, item] = tuple(k for k, why in enumerate(out) if not why)
    assert len(set(kept.values())) >= 4
    assert self_train.capped(whys, 9, seed=0, item_id="a") == whys


def test_what_the_vocabulary_cannot_spell_is_not_learnt(monkeypatch):
    config, _ = recipe.load(SPEC)
    records = tasks.load(config.data).train[:2]
    run = types.SimpleNamespace(config=config, tokenizer=tokenizers.load(models.SHIPPED / "arithmetic_base"))
    responses = ["    return 1 + 1\n", "    return anddef solution():\n"]
    drawn = [
        [dict(item_id=record.item_id, k=k, response=text, extracted="2", status="correct", ended=True)
         for k, text in enumerate(responses)]
        for record in records
    ]  # fmt: skip
    asked = types.SimpleNamespace(records=records, purpose="ask")
    monkeypatch.setattr(self_train.stored, "collect", lambda *_: (asked, drawn))
    lines = self_train.choose_all(run, "offline", dict(config.stages)["offline"])
    assert [line["why"] for line in lines] == ["", "unknown_token"] * 2


# ------------------------------------------------------------------ the online loss

PROMPTS, OWN_LENGTHS, GOLD_LENGTHS = [3, 6, 2, 5, 4, 6, 1, 2], [5, 0, 7, 0, 1], [4, 6, 2]
OWN = np.arange(8) < len(OWN_LENGTHS)


def oracle(nll, mask, reduce, own_weight, gold_weight):
    """own_weight NLL(own) + gold_weight NLL(gold), by loops in float64."""
    losses_of = []
    for group in (OWN, ~OWN):
        rows = [nll[i][mask[i]].astype(np.float64) for i in np.flatnonzero(group) if mask[i].any()]
        if not rows:
            losses_of.append(0.0)
        elif reduce == "token":
            losses_of.append(sum(row.sum() for row in rows) / sum(len(row) for row in rows))
        else:
            losses_of.append(sum(row.sum() / len(row) for row in rows) / len(rows))
    return own_weight * losses_of[0] + gold_weight * losses_of[1], *losses_of


@pytest.mark.parametrize("reduce", ["token", "sequence"])
@pytest.mark.parametrize("own_lengths", [OWN_LENGTHS, [0] * 5], ids=["some", "none_right"])
@pytest.mark.parametrize("fill", [0.0, np.nan, -np.inf])
def test_the_online_loss_is_the_oracles(reduce, own_lengths, fill):
    rng = np.random.default_rng(0)
    mask = tiny.lengths_mask([*own_lengths, *GOLD_LENGTHS], 7, left=False)
    logp = np.where(mask, rng.normal(-2, 1, mask.shape), fill).astype(np.float32)
    call = own_gold.Loss(own=0.3, gold=0.9)
    batch = call.whole(Batch(None, None, mask, dict(own=OWN)), reduce)
    loss, metrics = call(Outputs(logp=logp), batch, masked.Mean(mask, reduce))
    expected = oracle(-logp, mask, reduce, 0.3, 0.9)
    got = [loss, *(metrics[f"self_train/{name}"] for name in ("own_loss", "gold_loss"))]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (expected[1] == 0) == (not any(own_lengths))


def make_step(model, tx, params, **changes):
    """`make_update` as the online stage with these changes calls it."""
    tree = recipe.load(SPEC)[1]
    tree["stages"]["online"] |= changes
    stage = dict(recipe.build(tree).stages)["online"]
    return make_update(model, tx, params, stage.objective, name="self_train", **stage.how)


@pytest.mark.parametrize(
    "reduce, nll",
    [
        ("token", 0.3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("sequence", None), ("token", None), ("sequence", 0.3))
        ),
    ],
)
def test_an_online_update_is_the_same_for_any_split_and_device_count(reduce, nll):
    """Also with a loss beside its own, which is of all sequences alike."""
    losses = dict(own_gold={}) | ({} if nll is None else dict(nll=nll))
    batch = tiny.sft_batch(np.random.default_rng(1), PROMPTS, [*OWN_LENGTHS, *GOLD_LENGTHS])
    tx = tiny.optim()(10)
    results = []
    for where, parts in (("one", 1), ("mixed", 2)):
        model = tiny.model(where)
        params = tiny.params(model)
        step = make_step(model, tx, params, losses=losses, reduce=reduce, accumulate=parts)
        rows = model.layout.batch(Batch(batch.prompts, batch.tokens, batch.mask, dict(own=OWN)))
        results.append(jax.device_get(step(init_state(model, tx, params), rows, key=jax.random.key(0))))
    logp = scoring.outputs(tiny.model(), tiny.params(tiny.model()), batch, needs=("logp",)).logp
    for state, metrics in results:
        expected = oracle(-np.asarray(logp), batch.mask, reduce, 0.5, 0.5)[0]
        expected += (nll or 0.0) * reference.sft_loss(logp, batch.mask, reduce=reduce)
        assert metrics["self_train/loss"] == pytest.approx(expected, rel=1e-5)
        tiny.assert_trees_close(state, results[0][0], rtol=1e-4, atol=1e-5)


def test_own_and_gold_weights_decide_what_is_learnt():
    """With a weight of 0 the gold rows' tokens do not matter, and the own rows' chance rises."""
    model, tx = tiny.model(), tiny.optim()(10)
    batch = tiny.sft_batch(np.random.default_rng(1), PROMPTS, [*OWN_LENGTHS, *GOLD_LENGTHS])
    step = make_step(model, tx, tiny.params(model), losses=dict(own_gold=dict(gold=0.0)))
    other = batch.replace(tokens=np.where(OWN[:, None], batch.tokens, 2))
    states = []
    for rows in (batch, other):
        state = init_state(model, tx, tiny.params(model))
        for i in range(3):
            mixed = model.layout.batch(Batch(rows.prompts, rows.tokens, rows.mask, dict(own=OWN)))
            state, metrics = step(state, mixed, key=jax.random.key(i))
            if not i:
                before = metrics["self_train/own_loss"]
        assert metrics["self_train/own_loss"] < before
        states.append(state.params)
    tiny.assert_trees_equal(*jax.device_get(states))


# ------------------------------------------------------------------ bad configs


def refused(stage_name, **changes) -> str:
    tree = recipe.load(SPEC)[1]
    tree["stages"][stage_name] |= changes
    with pytest.raises(InputError) as caught:
        recipe.build(tree)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("offline", dict(sample_from=""), "config.stages.offline.sample_from: got ''"),
        ("offline", dict(sample_from="random"), "an earlier stage that trains a policy (here warmup), or a directory"),
        ("offline", dict(sample_from="reranker"), "offline.sample_from: 'reranker' comes no earlier than 'offline'"),
        ("online", dict(sample_from="warmup"), "set ''"),
        ("offline", dict(max_per_question=0), "max_per_question: got 0; it must be >= 1"),
        ("offline", dict(mode="ofline"), "did you mean 'offline'?"),
        ("offline", dict(accumulate=3), "it must divide batch_size = 16"),
        ("online", dict(accumulate=3), "it must divide batch_size x (num_samples + 1) = 80"),
        ("online", dict(losses=dict(own_gold=dict(own=0.0, gold=0.0))), "losses.own_gold.own: got 0.0"),
        ("reranker", dict(sample_from=""), "(here warmup, offline, online)"),
        ("reranker", dict(sampling=dict(temperature=0.0, top_k=0, top_p=1.0)), "must be > 0"),
        ("evaluate", dict(rerankers=dict(wramup="reranker")), "did you mean 'warmup'?"),
        ("evaluate", dict(rerankers=dict(warmup="online")), "got 'online'; it must name an earlier stage of kind reranker"),
        ("evaluate", dict(rerankers=["reranker"]), "a group label -> reranker stage"),
        ("evaluate", dict(num_samples=0), "rerankers choose among samples"),
        ("evaluate", dict(checkpoints=dict(warmup="reranker"), rerankers={}), "'reranker' is a stage of kind reranker, which answers no questions"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_with_what_is_legal(name, changes, said):
    assert said in refused(name, **changes)


def test_a_directory_to_sample_from_must_be_there_and_is_part_of_the_run(tmp_path):
    tree = recipe.load(SPEC)[1]
    tree["stages"]["offline"]["sample_from"] = "wramup"
    with pytest.raises(
        InputError, match="config.stages.offline.sample_from: got 'wramup'; legal are random, an earlier stage"
    ):
        prepare.check_sources(recipe.build(tree))
    folder = tmp_path / "warmup" / "checkpoints" / "3"
    (folder / "params").mkdir(parents=True)
    tree["stages"]["offline"]["sample_from"] = tree["stages"]["reranker"]["sample_from"] = str(tmp_path / "warmup")
    config = recipe.build(tree)
    prepare.check_sources(config)
    # which checkpoint it was is kept, so that a run that goes on samples from no other
    (folder / "params" / "data").write_text("bits")
    files = sources.of_directory(str(tmp_path / "warmup"))
    assert list(files) == ["params/data"]
    tree["stages"]["offline"]["sample_from"] = "arithmetic_base"  # a shipped model
    prepare.check_sources(recipe.build(tree))


# ------------------------------------------------------------------ whole runs


def unbroken():
    """The workdir of the config's run, made once a session; only to be read."""
    return runs.once("stages", functools.partial(runs.run, spec=SPEC))


@pytest.fixture(scope="module")
def workdir():
    return unbroken()


@pytest.mark.slow
def test_what_was_sampled_is_written_with_why_it_is_learnt(workdir):
    lines = runs.lines(workdir / "offline" / "self_train.jsonl")
    assert len(lines) == 48 * 4 and [one["k"] for one in lines] == [0, 1, 2, 3] * 48
    done = json.loads((workdir / "offline" / "DONE").read_text())
    kept = [one for one in lines if one["kept"]]
    assert done["num_own"] == len(kept) > 0 and done["num_gold"] == 48 and done["num_sampled"] == len(lines)
    assert sum(done["not_kept"].values()) + len(kept) == len(lines)
    assert all(one["status"] == "correct" and one["why"] == "" for one in kept)
    assert all(one["why"] for one in lines if not one["kept"])
    by_item: dict = {}
    for one in kept:
        by_item.setdefault(one["item_id"], []).append(
            self_train.same("def solution():\n" + one["response"], program=True)
        )
    assert max(map(len, by_item.values())) <= 2 and all(len(set(row)) == len(row) for row in by_item.values())
    steps_made = -(-(48 + len(kept)) // 16)
    assert done["last_step"] == steps_made and not (workdir / "offline" / "drawn").exists()


@pytest.mark.slow
def test_online_logs_what_reft_logs(workdir):
    first, *lines = runs.lines(workdir / "online" / "metrics.jsonl")
    assert first["step"] == 0 and "eval/dev_accuracy" in first and [one["step"] for one in lines] == [1, 2, 3]
    for one in lines:
        assert {
            "reward/accuracy",
            "reward/mean",
            "sample/length_mean",
            "time/sample_s",
            "self_train/loss",
        } <= one.keys()
        assert {"time/reward_s", "time/update_s", "rate/sample_tokens_per_s", "status/correct"} <= one.keys()
        assert {"monitor/literal_program", "monitor/repeated_ngrams", "monitor/length_ratio"} <= one.keys()
        assert ("monitor/train_dev_gap" in one) == ("eval/dev_accuracy" in one)
        halves = 0.5 * one["self_train/own_loss"] + 0.5 * one["self_train/gold_loss"]
        assert one["self_train/loss"] == pytest.approx(halves, rel=1e-5)
    samples = runs.lines(workdir / "online" / "samples.jsonl")
    assert [one["step"] for one in samples] == [1] * 4 + [2] * 4 + [3] * 4
    assert all(len(one["tokens"]) == len(one["logp"]) and max(one["logp"]) <= 0 for one in samples)
    assert all(one["score"] == (one["status"] == "correct") for one in samples)


def killed(folder, *moments, overrides=()):
    """Starts the run and kills it when the first of these files is there, and so on."""
    for moment in moments:
        process = runs.start(folder, *overrides, spec=SPEC)
        try:
            runs.wait_until(process, (folder / moment).exists, folder)
        finally:
            runs.end(process)


def assert_same(ours, theirs, stage, file):
    runs.assert_same_params(ours / stage, theirs / stage)
    lines = [runs.timeless(runs.lines(folder / stage / "metrics.jsonl")) for folder in (ours, theirs)]
    assert lines[0] == lines[1]
    for name in ("DONE", file):
        assert (ours / stage / name).read_bytes() == (theirs / stage / name).read_bytes(), name


@pytest.mark.slow
def test_killed_stages_end_as_if_they_were_not(workdir, tmp_path):
    """The offline one is killed after two of its drawn parts, which are of other sizes than in the unbroken run, and after its first
    checkpoint, the online one after its first checkpoint, the re-ranker while it draws and after a checkpoint."""
    other, smaller = tmp_path / "run", ["--config.stages.offline.sample_batch_size=8"]
    killed(other, "offline/drawn/00001.jsonl", overrides=smaller)
    assert not (other / "offline" / "self_train.jsonl").exists()
    first = (other / "offline" / "drawn" / "00000.jsonl").stat().st_mtime_ns
    killed(other, "offline/checkpoints/2", overrides=smaller)
    written = (other / "offline" / "self_train.jsonl").stat().st_mtime_ns
    killed(other, "online/checkpoints/0", overrides=smaller)
    assert first < written == (other / "offline" / "self_train.jsonl").stat().st_mtime_ns  # not made a second time
    killed(other, "reranker/drawn/00000.jsonl", "reranker/checkpoints/8", overrides=smaller)
    runs.run(other, *smaller, spec=SPEC)
    assert_same(workdir, other, "warmup", "DONE")
    assert_same(workdir, other, "offline", "self_train.jsonl")
    assert_same(workdir, other, "online", "samples.jsonl")
    assert_same(workdir, other, "reranker", "reranker.jsonl")
    for name in ("results.json", "online/predictions.jsonl"):
        assert (workdir / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slow
def test_a_directory_is_sampled_from_as_its_stage_is(workdir, tmp_path):
    """The same responses from another run's folder of the same warm-up."""
    killed(
        tmp_path / "run",
        "offline/self_train.jsonl",
        overrides=[f"--config.stages.offline.sample_from={workdir / 'warmup'}"],
    )
    ours, theirs = ((folder / "offline" / "self_train.jsonl").read_bytes() for folder in (workdir, tmp_path / "run"))
    assert ours == theirs


@pytest.mark.slow
def test_two_processes_choose_the_same(workdir, tmp_path):
    other = tmp_path / "run"
    command = ["bash", str(runs.ROOT / "launch" / "local.sh"), "--processes", "2", "--devices", "2", "--"]
    environment = runs.environment() | dict(PYTHON=sys.executable, XLA_FLAGS="")
    done = subprocess.run(
        [*command, f"--config={SPEC}", f"--workdir={other}"],
        cwd=runs.ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (runs.lines(folder / "offline" / "self_train.jsonl") for folder in (workdir, other))
    alike = [a["response"] == b["response"] and a["why"] == b["why"] for a, b in zip(ours, theirs, strict=True)]
    assert np.mean(alike) > 0.9  # four devices sum in another order than one, and a response may turn out otherwise
    loss = [runs.lines(folder / "offline" / "metrics.jsonl")[0]["sft/loss"] for folder in (workdir, other)]
    assert loss[0] == pytest.approx(loss[1], rel=0.1)
