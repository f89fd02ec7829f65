"""LoRA: what is trained, what stays, what is merged; in SFT, in PPO, and in a run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.config import settings
from reft_jax.run import checkpoint
from reft_jax.training import scoring
from reft_jax.training.state import init_state
from tests import runs, tiny

LORA = settings.Lora(rank=3, alpha=6.0, targets=r"attention\.[qvo]|mlp\.down")
TX = tiny.optim()(10)
TOKENS = np.random.default_rng(0).integers(0, tiny.VOCAB, (8, 9)).astype(np.int32)


def adapted(where="one", seed=1):
    """(model with adapters, base, random adapters): B is moved off zero, so that they do something."""
    model = dataclasses.replace(tiny.model(where), lora=LORA)
    adapters = models.init_adapters(model, jax.random.key(seed))
    noise = jax.random.key(seed + 1)
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(noise, x.shape), adapters)
    return model, tiny.params(tiny.model(where)), moved


def test_adapters_start_as_nothing_and_stand_where_the_pattern_says():
    model = dataclasses.replace(tiny.model(None), lora=LORA)
    adapters, base = models.init_adapters(model, jax.random.key(0)), tiny.params(tiny.model(None))
    shapes = jax.tree.map(lambda x: x.shape, adapters)
    assert shapes == {
        "blocks": {
            "attention": {
                "q": {"lora_a": (2, 16, 3), "lora_b": (2, 3, 4, 6)},
                "v": {"lora_a": (2, 16, 3), "lora_b": (2, 3, 2, 6)},
                "o": {"lora_a": (2, 4, 6, 3), "lora_b": (2, 3, 16)},
            },
            "mlp": {"down": {"lora_a": (2, 24, 3), "lora_b": (2, 3, 16)}},
        }
    }
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(adapters))
    np.testing.assert_allclose(adapters["blocks"]["mlp"]["down"]["lora_a"].std(), 1 / np.sqrt(24), rtol=0.2)
    np.testing.assert_array_equal(
        models.logits(model, models.join(base, adapters), TOKENS), models.logits(tiny.model(None), base, TOKENS)
    )


def test_merged_weights_are_the_equations_and_give_the_adapters_logits():
    model, base, adapters = adapted(None)
    merged = models.merge_adapters(model, base, adapters)
    a, b = (np.asarray(adapters["blocks"]["attention"]["o"][n], np.float64) for n in ("lora_a", "lora_b"))
    expected = np.asarray(base["blocks"]["attention"]["o"]["kernel"], np.float64)
    for layer in range(2):
        for head in range(4):
            for h in range(6):
                expected[layer, head, h] += 6.0 / 3 * sum(a[layer, head, h, r] * b[layer, r] for r in range(3))
    np.testing.assert_allclose(merged["blocks"]["attention"]["o"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    plain = models.logits(tiny.model(None), merged, TOKENS)
    np.testing.assert_allclose(models.logits(model, models.join(base, adapters), TOKENS), plain, rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(plain) - models.logits(tiny.model(None), base, TOKENS)).max() > 0.1
    tiny.assert_trees_equal(base["blocks"]["attention"]["k"], merged["blocks"]["attention"]["k"])


@pytest.mark.parametrize("where", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("one", "fsdp")), "mixed"])
def test_training_moves_adapters_alone_and_its_loss_is_the_merged_models(where):
    model, base, adapters = adapted(where)
    before = jax.tree.map(np.array, base)
    batch = tiny.sft_batch(np.random.default_rng(3), [6, 2, 4, 5, 6, 1, 3, 4], [7, 3, 5, 1, 2, 6, 7, 4])
    batch = model.layout.batch(batch)
    step = tiny.sft_step(model, TX, adapters, frozen=base, accumulate=2)
    state = init_state(model, TX, adapters)
    moments = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in moments) <= 2 * sum(x.size for x in jax.tree.leaves(adapters)) + 5
    state, metrics = step(state, batch, key=jax.random.key(0))
    tiny.assert_trees_equal(before, jax.tree.map(np.array, base))
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)
    changed = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), state.params, adapters)
    assert all(change > 1e-4 for change in jax.tree.leaves(changed))

    def loss(tree):  # the same loss as a function of the merged weights
        hidden = scoring.outputs(tiny.model(None), tree, batch, needs=("hidden",)).hidden
        logp, _ = models.token_logp(tiny.model(None), tree, hidden, batch.tokens)
        return -jnp.where(batch.mask, logp, 0).sum() / batch.mask.sum().astype(jnp.float32)

    merged = models.merge_adapters(model, base, adapters)
    np.testing.assert_allclose(metrics["sft/loss"], loss(merged), rtol=1e-4)


def test_ppo_with_adapters_scores_the_base_as_reference():
    model, base, adapters = adapted()
    batch = tiny.ppo_batch(np.random.default_rng(0), [6, 3, 4, 5, 2, 6, 1, 4], [7, 3, 5, 1, 2, 6, 7, 4])
    head = {"value_head": {"kernel": jnp.ones(16) / 4, "bias": jnp.zeros(())}}
    policy = models.join(models.join(base, adapters), head)
    score = scoring.make_score(model, tiny.model())
    logp, ref_logp, _, _ = score(policy, base, batch.prompts, batch.tokens, batch.mask)
    alone, same, _, _ = scoring.make_score(tiny.model())(base | head, base, batch.prompts, batch.tokens, batch.mask)
    np.testing.assert_array_equal(np.asarray(ref_logp)[batch.mask], np.asarray(same)[batch.mask])
    assert np.abs(np.asarray(logp) - np.asarray(alone))[batch.mask].max() > 0.01
    trained = adapters | head
    step = tiny.ppo_step(model, TX, trained, tiny.ppo(), frozen=base)
    state, _ = step(init_state(model, TX, trained), batch, np.arange(8, dtype=np.int32))
    assert set(state.params) == {"blocks", "value_head"}


# ------------------------------------------------------------------ a quantized base


@pytest.mark.parametrize("base, error", [("int8", 0.01), ("int4", 0.2), ("nf4", 0.15)])
def test_a_quantized_base_is_near_and_is_what_its_adapters_are_merged_into(base, error):
    pytest.importorskip("qwix")
    plain = tiny.model(None)
    params = tiny.params(plain)
    model = dataclasses.replace(plain, base=base, lora=LORA)
    frozen = models.quantize_base(model, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), frozen) == jax.tree.map(
        lambda x: (x.shape, x.dtype), models.shapes(dataclasses.replace(model, lora=None))
    )
    restored = models.restore_base(model, frozen)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    for name in ("q", "k", "v", "o"):
        before, after = (np.asarray(tree["blocks"]["attention"][name]["kernel"]) for tree in (params, restored))
        assert 0 < np.abs(before - after).max() < error * np.abs(before).max()

    tiny.assert_trees_equal(restored["embed"], params["embed"])
    _, _, adapters = adapted(None)
    exact = models.logits(plain, models.merge_adapters(model, restored, adapters), TOKENS)
    np.testing.assert_allclose(models.logits(model, models.join(frozen, adapters), TOKENS), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base, levels, scales", [("int8", 255, 1), ("int4", 16, 2), ("nf4", 16, 2)])
def test_inputs_that_share_a_scale_take_few_values(base, levels, scales):
    """128 inputs: one scale for all in 8 bits, one for each 64 in 4."""
    pytest.importorskip("qwix")
    arch = dataclasses.replace(tiny.ARCH, dim=128, num_layers=1)
    model = dataclasses.replace(tiny.model(None, arch), base=base, lora=LORA)
    frozen = models.quantize_base(model, tiny.params(tiny.model(None, arch)))
    up = frozen["blocks"]["mlp"]["up"]
    assert up["kernel_scale"].shape == (1, scales, arch.ffn_dim)
    kernel = np.asarray(models.restore_base(model, frozen)["blocks"]["mlp"]["up"]["kernel"])[0, :, 0]
    for block in np.split(kernel, scales):
        assert levels / 8 < len(np.unique(block)) <= min(levels, len(block))


@pytest.mark.parametrize("base", ["int8", "int4", "nf4"])
def test_a_quantized_base_lies_where_the_mesh_wants_it(base):
    pytest.importorskip("qwix")
    model = dataclasses.replace(tiny.model("mixed"), base=base, lora=LORA)
    frozen = models.quantize_base(model, tiny.params(tiny.model("mixed")))
    places = models.param_shardings(model, frozen)
    assert all(
        x.sharding.is_equivalent_to(place, x.ndim)
        for x, place in zip(jax.tree.leaves(frozen), jax.tree.leaves(places), strict=True)
    )
    assert not frozen["blocks"]["mlp"]["up"]["kernel_q"].is_fully_replicated


@pytest.mark.parametrize("where", [pytest.param("one", marks=pytest.mark.slow), "mixed"])
def test_training_over_a_quantized_base_leaves_it_as_it_was(where):
    pytest.importorskip("qwix")
    model, params, adapters = adapted(where)
    model = dataclasses.replace(model, base="nf4")
    frozen = models.quantize_base(model, params)
    before = jax.tree.map(np.array, frozen)
    batch = tiny.sft_batch(np.random.default_rng(3), [6, 2, 4, 5, 6, 1, 3, 4], [7, 3, 5, 1, 2, 6, 7, 4])
    step = tiny.sft_step(model, TX, adapters, frozen=frozen)
    state = init_state(model, TX, adapters)
    losses = []
    for _ in range(5):
        state, metrics = step(state, model.layout.batch(batch), key=jax.random.key(0))
        losses.append(float(metrics["sft/loss"]))
    assert losses[-1] < losses[0] - 0.05
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(frozen), strict=True):
        assert np.array_equal(a, np.array(b))


# ------------------------------------------------------------------ a run


FLAGS = ("--config.model.lora={'rank': 4, 'alpha': 8.0, 'targets': 'attention.*'}", "--config.model.base=int4")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Warm-up, SFT, ReFT and evaluation of the smoke demo, all with adapters over a base in four bits."""
    pytest.importorskip("qwix")
    return runs.run(tmp_path_factory.mktemp("lora") / "run", *FLAGS)


@pytest.mark.slow
def test_a_run_trains_adapters_and_reports_like_any_other(workdir):
    results = json.loads((workdir / "results.json").read_text())["stages"]
    assert set(results) == {"base", "warmup", "sft", "reft"}
    stored = checkpoint.load_params(workdir / "warmup")
    assert set(models.only_adapters(stored)) == {"blocks"} and "embed" not in stored
    reft = checkpoint.load_params(workdir / "reft")
    assert set(reft) == {"blocks", "value_head"} and reft["value_head"]["kernel"].any()
    lines = runs.lines(workdir / "reft" / "metrics.jsonl")
    assert abs(lines[1]["kl/mean"]) < 1e-4 and lines[1]["ppo/first_ratio_error"] < 1e-4


@pytest.mark.slow
def test_reft_begins_as_the_warm_up_ended(workdir):
    """Over a base in few bits the warm-up's adapters are trained on; merged and quantized again they would be lost."""
    reft, warmup = (checkpoint.load_params(workdir / folder)["blocks"]["attention"] for folder in ("reft", "warmup"))
    for name in "qkvo":  # a few small steps away from the warm-up's, not from zero
        moved, before = (
            np.linalg.norm(x) for x in (reft[name]["lora_b"] - warmup[name]["lora_b"], warmup[name]["lora_b"])
        )
        assert 0 < moved < before
    warmup_checks, reft_checks = (
        [
            line["eval/dev_accuracy"]
            for line in runs.lines(workdir / name / "metrics.jsonl")
            if "eval/dev_accuracy" in line
        ]
        for name in ("warmup", "reft")
    )
    assert reft_checks[0] == warmup_checks[-1]


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_where_it_was(workdir, tmp_path):
    """The same command, killed by a full stop after the warm-up, ends with the same adapters."""
    spec = tmp_path / "first.py"
    spec.write_text(
        "from reft_jax.configs import common, demo\n\n\n"
        "def get_config(arg=''):\n"
        "    config = demo.get_config(arg).to_dict()\n"
        "    return common.ordered(config | dict(stages={'warmup': config['stages']['warmup']}))\n"
    )
    again = runs.run(tmp_path / "run", *FLAGS, spec=f"{spec}:smoke")
    runs.run(again, *FLAGS)
    for stage in ("warmup", "sft", "reft"):
        tiny.assert_trees_equal(checkpoint.load_params(again / stage), checkpoint.load_params(workdir / stage))
