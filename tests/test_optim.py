"""Optimizers: settings and flags, matrices layer by layer, the state on a mesh, and stochastic rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reft_jax import models, recipe, tables
from reft_jax.config import choices, renamed
from reft_jax.config.settings import Arch, Lora
from reft_jax.configs.models import PRESETS
from reft_jax.errors import InputError
from reft_jax.optim import matrices, rounding
from reft_jax.training.state import init_state, state_shardings
from tests import reference, runs, tiny

LR = 3e-7
# Its matrices have fewer rows and columns than are worth factoring by default.
SMALL = dict(adafactor=dict(min_size=4))
NAMES = choices.names("optim")


def optimizer(use, **changes):
    return tiny.optim(use=use, **(SMALL.get(use, {}) | changes))


def gradients(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape).astype(np.float32)).astype(p.dtype), params)


def after(tx, params, grads):
    """(the last updates, the state, the parameters) of so many gradients."""

    @jax.jit
    def step(params, state, grad):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grad, state, params)
            return updates, state, optax.apply_updates(params, updates)

    state = tx.init(params)
    for grad in grads:
        updates, state, params = step(params, state, grad)
    return updates, state, params


# ------------------------------------------------------------------ settings


def loaded(*flags):
    pairs = [tuple(flag.split("=", 1)) for flag in flags]
    return recipe.load(f"{runs.ROOT}/configs/demo.py:smoke", pairs)


def refused(*flags):
    with pytest.raises(InputError) as caught:
        loaded(*flags)
    return str(caught.value)


def sft_of(config):
    return dict(config.stages)["sft"].optim


def test_another_optimizer_keeps_what_all_have_and_begins_with_its_own_defaults():
    before = sft_of(loaded()[0])
    flags = ("stages.sft.optim.b1=0.5", "stages.sft.optim=muon", "stages.sft.optim.newton_schulz=3")
    changed = sft_of(loaded(*flags, "stages.warmup.optim=muon")[0])
    assert type(changed) is choices.load("optim", "muon") and (changed.b1, changed.newton_schulz) == (0.9, 3)
    for key in ("lr", "schedule", "schedule_epochs", "weight_decay", "max_grad_norm", "rounding"):
        assert getattr(changed, key) == getattr(before, key), key
    assert before.weight_decay == 0.1 and before.schedule.final == 0.0
    assert sft_of(loaded("stages.sft.optim.use=adafactor", "stages.sft.continue_run=False")[0]).lr == before.lr
    # its record shares nothing with that of linear
    cosine = sft_of(loaded("stages.sft.optim.schedule=cosine", "stages.sft.optim.schedule.warmup=0.2")[0]).schedule
    assert cosine == choices.load("optim/schedules", "cosine")(warmup=0.2)


@pytest.mark.parametrize(
    "flags, told",
    [
        (["optim=adam"], "config.stages.sft.optim: got 'adam'; did you mean 'adamw'? legal are adafactor, adamw, muon"),
        (["optim.warmup=0.1"], "config.stages.sft.optim.warmup: it is now config.stages.sft.optim.schedule.warmup"),
        (["optim=adafactor", "optim.b1=0.9"], "config.stages.sft.optim.b1: unknown key"),
        (["optim=muon"], "with continue_run it goes on with the optimizer's state of 'warmup', and this one's has another form"),
        (["optim.max_grad_norm=0"], "with continue_run it goes on with the optimizer's state of 'warmup', and this one's has another form"),
        (["optim.mu_dtype=bfloat16"], "with continue_run it goes on with the optimizer's state of 'warmup', and this one's has another form"),
        (["optim.schedule=wsd", "optim.schedule.decay=1.0"], "config.stages.sft.optim.schedule.decay: got 1.0; warmup ="),
        (["optim.schedule=wsd", "optim.schedule.final=0.0"], "an exponential never arrives at 0"),
        (["optim.schedule=wds"], "did you mean 'wsd'? legal are constant, cosine, linear, wsd"),
        (["optim.rounding=down"], "config.stages.sft.optim.rounding: got 'down'; legal are nearest, stochastic"),
    ],
)  # fmt: skip
def test_wrong_settings(flags, told):
    assert told in refused(*(f"stages.sft.{flag}" for flag in flags))


def test_a_stage_without_a_rate_is_told():
    _, tree = loaded()
    tree["stages"]["sft"]["optim"] = "muon"
    with pytest.raises(InputError, match=r"^config\.stages\.sft\.optim: missing lr, which has no default$"):
        recipe.build(tree)
    del tree["stages"]["sft"]["optim"]
    with pytest.raises(InputError, match=r"^config\.stages\.sft: missing optim, which has no default$"):
        recipe.build(tree)


def test_an_optimizer_of_one_s_own(tmp_path):
    path = tmp_path / "signs.py"
    path.write_text(
        "import dataclasses\nimport jax\nimport jax.numpy as jnp\nimport optax\n"
        "from reft_jax.config.records import setting\nfrom reft_jax.optim import base\n\n\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Optimizer(base.Settings):\n"
        "    size: float = setting(above=0, default=1.0)\n\n"
        "    def direction(self):\n"
        "        return optax.stateless(lambda g, _: jax.tree.map(lambda x: self.size * jnp.sign(x), g))\n"
    )
    config, tree = loaded(*(f"stages.{name}.optim={path}" for name in ("warmup", "sft")), "stages.sft.optim.size=2.0")
    optim = sft_of(config)
    assert (optim.lr, optim.size) == (sft_of(loaded()[0]).lr, 2.0) and recipe.own_files(tree).keys() == {str(path)}
    grads = {"a": {"scale": jnp.array([3.0, -0.1])}}
    updates, _, _ = after(optim(10), jax.tree.map(jnp.zeros_like, grads), [grads])
    np.testing.assert_allclose(updates["a"]["scale"], -optim.lr * 2 * np.array([1, -1]), rtol=1e-6)


BFLOAT16 = "model.param_dtype=bfloat16"
ALL = [f"stages.{name}.optim.rounding=stochastic" for name in ("warmup", "sft", "reft")]


def test_trained_parameters_of_bfloat16_are_rounded_stochastically_or_refused():
    told = refused(BFLOAT16)
    for part in ("config.stages.warmup.optim.rounding: got 'nearest'", "0.4 %", "'stochastic'", "lora"):
        assert part in told, told
    assert "config.stages.reft.optim.rounding" in refused(BFLOAT16, *ALL[:2])
    assert dict(loaded(BFLOAT16, *ALL)[0].stages)["reft"].optim.rounding == "stochastic"


def test_rounding_that_would_do_nothing_is_refused():
    assert "config.model.param_dtype is 'float32'" in refused(ALL[0])
    _, tree = loaded(BFLOAT16, *ALL)
    tree["model"]["lora"] = dict(rank=2, alpha=4.0)
    with pytest.raises(InputError, match="adapters are float32"):
        recipe.build(tree)
    for stage in ("warmup", "sft", "reft"):
        tree["stages"][stage]["optim"]["rounding"] = "nearest"
    recipe.build(tree)


# ------------------------------------------------------------------ matrices


def leaf(tree, *path):
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


# a leaf, and its matrix of one layer
MATRICES = [
    (("attention", "q", "kernel"), (16, 4 * 6)),
    (("attention", "o", "kernel"), (4 * 6, 16)),
    (("mlp", "up", "kernel"), (16, 24)),
    (("mlp", "down", "kernel"), (24, 16)),
]


def test_which_leaves_are_matrices():
    """Those of a Linear, with its inputs as rows; adapters too."""
    model = tiny.model(None, lora=Lora(rank=2, alpha=4.0))
    shapes = models.shapes(model) | {"value_head": {"kernel": jnp.zeros(16), "bias": jnp.zeros(())}}
    found = {}
    for path, one in jax.tree_util.tree_leaves_with_path(shapes):
        if axes := matrices.axes(path, one.ndim):
            found[".".join(key.key for key in path[1:])] = [tuple(one.shape[i] for i in group) for group in axes]
    heads, groups, out = (4, 6), (2, 6), dict(q=(4, 6), k=(2, 6), v=(2, 6), o=(16,), gate=(24,), up=(24,), down=(16,))
    assert {name.split(".")[1] for name in found} == set(out) and len(found) == 3 * len(out)
    for name, (rows, columns) in found.items():
        of, kind = name.split(".")[1:]
        inputs = dict(o=heads, down=(24,)).get(of, (16,))
        assert (rows, columns) == dict(kernel=(inputs, out[of]), lora_a=(inputs, (2,)), lora_b=((2,), out[of]))[kind], (
            name
        )
    assert groups == out["k"]


@pytest.mark.parametrize("path, shape", MATRICES, ids=lambda x: x[-2] if isinstance(x[0], str) else "")
def test_muon_orthogonalises_each_layer_s_matrix_by_itself(path, shape):
    params, tx, grads = muon_s_updates()
    for layer in (0, 1):
        ours = [leaf(grad["blocks"], *path)[layer].reshape(shape) for grad in grads]
        expected = -0.01 * 0.2 * np.sqrt(max(shape)) * reference.muon_directions(ours, 0.95)
        found = leaf(tx["blocks"], *path)[layer].reshape(shape)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        values = np.linalg.svd(found, compute_uv=False) / (0.01 * 0.2 * np.sqrt(max(shape)))
        assert 0.5 < values.min() < values.max() < 1.3
        np.testing.assert_allclose(np.sqrt((found**2).mean()), 0.01 * 0.2, rtol=0.25)


@functools.cache
def muon_s_updates():
    params = tiny.params(tiny.model(None), value_head=True)
    grads = [gradients(params, seed) for seed in range(3)]
    return params, after(optimizer("muon", max_grad_norm=0.0)(10), params, grads)[0], grads


def test_muon_leaves_the_rest_to_adamw():
    params, updates, grads = muon_s_updates()
    adamw = after(optimizer("adamw", max_grad_norm=0.0)(10), params, grads)[0]
    rest = 0
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(adamw), strict=True):
        if not matrices.axes(path, ours.ndim):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            rest += 1
    assert rest == 6  # embedding, three norms, the value head's two


@pytest.mark.parametrize("path, shape", [*MATRICES, (None, (24, 16))], ids=lambda x: x and x[-2])
def test_adafactor_factors_each_layer_s_matrix_by_itself(path, shape):
    params = tiny.params(tiny.model(None))
    grads = [gradients(params, seed) for seed in range(3)]
    updates, _, _ = after(optimizer("adafactor", max_grad_norm=0.0)(10), params, grads)
    for layer in (0, 1):

        def matrix(tree, layer=layer):
            return leaf(tree, *(("blocks", *path) if path else ("embed", "kernel")))[layer if path else ...].reshape(
                shape
            )

        expected = -0.01 * reference.adafactor_direction(
            [matrix(grad) for grad in grads], matrix(after_two(params, grads))
        )
        np.testing.assert_allclose(matrix(updates), expected, rtol=1e-4, atol=1e-8)


def after_two(params, grads):
    """The parameters that the third update of Adafactor sees."""
    return after(optimizer("adafactor", max_grad_norm=0.0)(10), params, grads[:2])[2]


def size_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_adafactor_keeps_a_thousandth_of_adamw_s_state():
    params = models.shapes(models.Model(Arch(**PRESETS["codellama_7b"])))
    sizes = {name: size_of(jax.eval_shape(tiny.optim(use=name)(10).init, params)) for name in NAMES}
    whole = size_of(params)
    assert abs(sizes["adamw"] / whole - 2) < 1e-6 and 1 < sizes["muon"] / whole < 1.05
    assert sizes["adafactor"] / sizes["adamw"] < 1e-3


# ------------------------------------------------------------------ on a mesh

PROMPTS, RESPONSES = [3, 6, 1, 5, 4, 2, 6, 3], [7, 2, 5, 1, 4, 7, 3, 6]
KINDS = [
    *(pytest.param(name, "float32", marks=[pytest.mark.slow] * (name != "adafactor")) for name in NAMES),
    pytest.param("adamw", "bfloat16", marks=pytest.mark.slow),
]


def updated(where, name, dtype):
    """(shapes and places of the moments and of the parameters, the parameters after two updates) on a layout."""
    model = tiny.model(where, param_dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.params(model))
    tx = optimizer(name, rounding="stochastic" if dtype == "bfloat16" else "nearest", weight_decay=0.1)(10)
    state = init_state(model, tx, params)
    step = tiny.sft_step(model, tx, params)
    batch = model.layout.batch(tiny.sft_batch(np.random.default_rng(0), PROMPTS, RESPONSES))
    for _ in range(2):
        state, metrics = step(state, batch, key=jax.random.key(0))
    assert np.isfinite(metrics["grad/norm"])
    return *([(x.shape, x.sharding) for x in jax.tree.leaves(tree)] for tree in (state.opt_state, params)), state.params


@pytest.mark.parametrize("name, dtype", KINDS)
def test_the_state_lies_with_the_parameters_on_eight_devices(name, dtype):
    moments, places, many = updated("mixed", name, dtype)
    _, _, one = updated("one", name, dtype)
    split = [moment for moment in moments if not moment[1].is_fully_replicated]
    whole = [place for place in places if not place[1].is_fully_replicated]
    assert set(split) <= set(whole) and len(whole) == 8  # the kernels
    assert len(split) == dict(adamw=16, muon=9, adafactor=0)[name]  # muon: one of each matrix, two of the embedding
    # where a gradient is nothing but rounding AdamW's first update has any sign; a neighbour in bfloat16 is 2^-8 to 2^-7 away
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=2**-6, atol=2**-6)
    tiny.assert_trees_close(*(jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (one, many)), **tolerance)


def test_moments_of_the_parameters_shapes_may_lie_on_the_host():
    model = tiny.model("mixed")
    away = dataclasses.replace(model, layout=dataclasses.replace(model.layout, moments="host"))
    params = tiny.params(model)
    for name in NAMES:
        tx = optimizer(name)(10)
        places = jax.tree.leaves(state_shardings(away, tx, params).opt_state)
        shapes = jax.tree.leaves(jax.eval_shape(tx.init, params))
        host = [shape.shape for shape, place in zip(shapes, places, strict=True) if place.memory_kind == "pinned_host"]
        assert len(host) == dict(adamw=22, muon=15, adafactor=3)[name]  # adafactor: of the norms alone


# ------------------------------------------------------------------ rounding


def test_a_number_is_rounded_to_a_neighbour_and_is_itself_on_average():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 1, 64).astype(np.float32))
    draws = jax.vmap(lambda key: rounding.to_bfloat16(x, key))(jax.random.split(jax.random.key(1), 4096))
    assert draws.dtype == jnp.bfloat16
    draws, x = np.asarray(draws, np.float64), np.asarray(x, np.float64)
    low, high = draws.min(0), draws.max(0)
    assert ((low < x) & (x < high)).all() and all(len(np.unique(column)) == 2 for column in draws.T)
    gap = high - low
    assert (gap <= 2.0**-7 * np.abs(x) * 1.01).all()
    share = (x - low) / gap
    error = np.sqrt(share * (1 - share) / len(draws))
    assert (np.abs(draws.mean(0) - x) / gap < 4.5 * error + 2.0**-16).all()


def test_what_needs_no_rounding_stays():
    exact = jnp.asarray([0.0, -0.0, 1.0, -3.5, 2.0**-130, jnp.inf, -jnp.inf], jnp.float32)
    for seed in range(8):
        np.testing.assert_array_equal(rounding.to_bfloat16(exact, jax.random.key(seed)).astype(jnp.float32), exact)
        odd = jax.lax.bitcast_convert_type(jnp.asarray([0x7FFFFFFF, 0xFFFFFFFF], jnp.uint32), jnp.float32)
        assert np.isnan(np.asarray(rounding.to_bfloat16(odd, jax.random.key(seed)), np.float32)).all()


def walk(dtype, how, num=300):
    """How far AdamW at lr 3e-7 takes parameters (normal, 0.02) along the direction of their gradients' mean, on average."""
    size, key = 1 << 16, jax.random.key(3)
    params = {"a": {"kernel": (0.02 * jax.random.normal(key, (size,))).astype(dtype)}}
    towards = jnp.sign(jax.random.normal(jax.random.fold_in(key, 1), (size,)))
    tx = tiny.optim(LR, max_grad_norm=0.0, rounding=how)(num)

    @jax.jit
    def run(params):
        def step(carry, i):
            params, state = carry
            noise = 0.5 * jax.random.normal(jax.random.fold_in(key, 2 + i), (size,))
            grads = {"a": {"kernel": (-(towards + noise)).astype(dtype)}}
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(num))[0]

    moved, state = run(params)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert moved["a"]["kernel"].dtype == dtype
    change = np.asarray(moved["a"]["kernel"], np.float64) - np.asarray(params["a"]["kernel"], np.float64)
    return (change * np.asarray(towards)).mean(), kinds


@pytest.mark.slow
def test_bfloat16_moves_as_float32_does_with_stochastic_rounding_and_hardly_without():
    whole, _ = walk(jnp.float32, "nearest")
    rounded, kinds = walk(jnp.bfloat16, "stochastic")
    lost, _ = walk(jnp.bfloat16, "nearest")
    assert 0.8 < whole / (300 * LR) < 1.0
    assert abs(rounded / whole - 1) < 0.02 and kinds == {"float32"}
    assert abs(lost / whole) < 0.01


def test_the_noise_is_a_function_of_the_update_and_the_leaf():
    params = {name: {"kernel": jnp.full(4096, 0.02, jnp.bfloat16)} for name in ("a", "b")}
    grads, tx = gradients(params), tiny.optim(1e-5, max_grad_norm=0.0, rounding="stochastic")(10)
    same = jax.tree.map(lambda x: grads["a"]["kernel"], grads)
    first, state, once = after(tx, params, [same])
    again, _, _ = after(tx, params, [same])
    tiny.assert_trees_equal(first, again)
    assert state.count == 1 and (first["a"]["kernel"] != first["b"]["kernel"]).any()
    second, _, _ = after(tx, params, [same, same])
    moved = [np.asarray(tree["a"]["kernel"]) != 0 for tree in (first, second)]
    assert all(0.02 < part.mean() < 0.9 for part in moved) and (moved[0] != moved[1]).any()
    # what apply_updates arrives at is the rounded sum itself
    for name in params:
        exact = np.asarray(params[name]["kernel"], np.float32) + np.asarray(first[name]["kernel"])
        np.testing.assert_array_equal(np.asarray(once[name]["kernel"], np.float32), exact)


def test_every_layout_rounds_alike():
    tx, results = tiny.optim(1e-4, max_grad_norm=0.0, rounding="stochastic")(10), []
    for where in ("one", "fsdp", "mixed"):
        whole = tiny.params(tiny.model(where))
        some = {"embed": whole["embed"], "blocks": {"attention": {"q": whole["blocks"]["attention"]["q"]}}}
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), some)
        grads = jax.tree.map(lambda g, p: jax.device_put(g, p.sharding), gradients(params), params)
        results.append(after(tx, params, [grads] * 2)[2])
    tiny.assert_trees_equal(results[0], results[1])
    tiny.assert_trees_equal(results[0], results[2])
    assert not results[1]["embed"]["kernel"].sharding.is_fully_replicated


# ------------------------------------------------------------------ runs from before


def test_finished_runs_with_bfloat16_parameters_rounded_to_the_nearest_are_read():
    _, tree = loaded()
    tree["model"]["param_dtype"] = "bfloat16"
    with pytest.raises(InputError, match="optim.rounding: got 'nearest'; with config.model.param_dtype 'bfloat16'"):
        recipe.build(tree)
    assert tables.as_dict(tree)["model"]["param_dtype"] == "bfloat16"


def test_an_optimizer_of_ones_own_may_have_a_setting_of_an_older_name():
    optim = dict(use="my.py", lr=1e-3, schedule=dict(use="linear"), warmup=3)
    assert not renamed.is_old(dict(verifier={}, stages=dict(sft=dict(optim=optim))))
    assert renamed.is_old(dict(verifier={}, stages=dict(sft=dict(optim=dict(lr=1e-3, warmup=0.1)))))
