"""How much a device needs: the estimate against the compiler's count, slices of an update, and what is said before a run begins."""

import dataclasses

import jax
import numpy as np
import pytest

from reft_jax import models, prepare, recipe
from reft_jax.compile import measure
from reft_jax.compile.programs import Lowering
from reft_jax.config.setting import num_parts
from reft_jax.errors import InputError
from reft_jax.mesh import sharding
from reft_jax.training import loop, memory, scoring
from reft_jax.training.state import init_state
from tests import runs, tiny
from tests.test_packing import KEY, ROWS, TX, batches, packed

SPEC = str(runs.ROOT / "configs/reft.py") + ":data=arithmetic,cot=program,model=tiny"
SIZES = [("model.arch.num_layers", "12"), ("model.arch.vocab_size", "5000"), ("stages.warmup.batch_size", "32")]


def made(*changes):
    """(config, model) of a decoder large enough for its activations to count."""
    config, _ = recipe.load(SPEC, [*SIZES, *changes])
    return config, prepare.build_model(config, config.model.arch, sharding.make_layout(config.mesh))


def compiled(config, model, name: str) -> tuple[int, int]:
    """(held, all bytes) of a stage's update by the compiler."""
    at = Lowering(config, model)
    dict(config.stages)[name].programs(name, at)
    [update] = [program for program in at.found.values() if program.name.endswith("_step")]
    line = measure.measure(update, "cpu", 1, 0)
    return line["argument_bytes"] + line["resident_bytes"], line["total_bytes"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model.slice_tokens": "0"},
        pytest.param({"model.slice_tokens": "500"}, marks=pytest.mark.slow),
        {"model.slice_tokens": "0", "model.remat": "dots"},
        pytest.param({"model.slice_tokens": "0", "model.remat": "block"}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: ",".join(changes.values()),
)
def test_the_estimate_is_near_the_compilers_count(changes):
    config, model = made(*changes.items())
    found = memory.needs(config, model, dict(config.stages)["warmup"])
    held, all_bytes = compiled(config, model, "warmup")
    assert found.update == pytest.approx(all_bytes, rel=0.25)
    assert found.held <= all_bytes and found.held == pytest.approx(held, rel=0.5)


@pytest.mark.parametrize(
    "given, parts",
    [
        (dict(num=16, length=416, most=1024), 8),
        (dict(num=16, length=416, most=0), 1),
        (dict(num=16, length=416, most=0, least=4), 4),
        (dict(num=16, length=10, most=1024, least=4), 4),
        (dict(num=16, length=4000, most=1024), 16),
        (dict(num=16, length=416, most=1024, multiple=8), 1),
        (dict(num=16, length=2000, most=1024, multiple=8), 2),
        (dict(num=48, length=700, most=1024, multiple=3), 16),
        (dict(num=7, length=300, most=1024), 7),
        (dict(num=12, length=416, most=1300, least=3), 4),
    ],
)
def test_an_update_has_as_few_parts_as_its_slice_allows(given, parts):
    assert num_parts(**given) == parts


@pytest.mark.parametrize("together", [False, True])
def test_slices_change_nothing(together):
    """Of an update and of scoring, with a slice of four rows and without."""
    model, (_, ppo) = tiny.model("one"), batches()
    sliced = dataclasses.replace(model, slice_tokens=4 * (ppo.prompts.tokens.shape[1] + ppo.tokens.shape[1]))
    params, stage = tiny.params(model, value_head=True), tiny.ppo()
    out = []
    for of in (model, sliced):
        parts = 1 if of is model else 2
        given = dict(packing=packed(of, ppo, ROWS, parts) if together else None)
        updated = tiny.ppo_step(of, TX, params, stage)(init_state(of, TX, params), ppo, rows=ROWS, **given)
        every = packed(of, ppo, np.arange(8)) if together else None
        scored = scoring.make_score(of, most=8)(params, params, ppo.prompts, ppo.tokens, ppo.mask, every)
        out.append((updated, [np.where(ppo.mask, x, 0) for x in scored]))
    tiny.assert_trees_close(*out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reason", ["dropout", "together"])
def test_what_rows_must_not_be_split_for_is_not_sliced(reason):
    model, (sft, _) = tiny.model("one"), batches()
    params = tiny.params(model)
    losses = tiny.NLL
    if reason == "together":

        @dataclasses.dataclass(frozen=True)
        class Whole(type(losses[0])):
            together = "batch"

        losses = (Whole(**dataclasses.asdict(losses[0])),)
    how = dict(dropout=0.3) if reason == "dropout" else {}
    out = [
        tiny.sft_step(of, TX, params, losses=losses, **how)(init_state(of, TX, params), sft, key=KEY)
        for of in (model, dataclasses.replace(model, slice_tokens=1))
    ]
    tiny.assert_trees_equal(*out)


def test_a_run_that_cannot_fit_is_refused_and_one_that_may_not_is_told(monkeypatch):
    config, model = made()
    names = [name for name, _ in config.stages]
    found = memory.check(config, model, names)
    assert list(found) == ["warmup", "sft", "reft"]
    whole = models.shapes(model)
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(whole))
    assert found["warmup"].held == pytest.approx(4 * size, rel=1e-3)  # parameters, two moments, gradients
    assert found["reft"].held == pytest.approx(5 * size, rel=1e-3)  # and the reference
    [line] = memory.told(found, model.layout)
    assert line.startswith("about ") and " of reft, of " in line

    monkeypatch.setattr(memory, "available", lambda layout: found["reft"].held - 1)
    with pytest.raises(
        InputError, match=r"config\.stages\.reft: its parameters, gradients and moments alone take .*optim=adafactor"
    ):
        memory.check(config, model, names)
    assert memory.check(config, model, ["evaluate"]) == found  # what is done needs no more
    monkeypatch.setattr(memory, "available", lambda layout: found["reft"].held + 1)
    first, second = memory.told(memory.check(config, model, names), model.layout)
    assert "of " in first and "model.slice_tokens" in second


def test_a_state_that_gives_way_to_a_checkpoint_is_freed():
    model = tiny.model("one")
    state = init_state(model, TX, tiny.params(model))
    like = loop.forgotten(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    for ours, theirs in zip(jax.tree.leaves(like), jax.tree.leaves(state), strict=True):
        assert (ours.shape, ours.dtype, ours.sharding) == (theirs.shape, theirs.dtype, theirs.sharding)


def test_devices_of_a_cpu_share_its_memory():
    [one, eight] = [memory.available(sharding.make_layout(made()[0].mesh, jax.devices()[:n])) for n in (1, 8)]
    assert one // 8 == eight > 0
