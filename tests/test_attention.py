"""Every way to attend against the plain one: kernels interpreted on the CPU, and compiled for a TPU where its compiler is."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from reft_jax import models
from reft_jax.config import settings as settings_lib
from reft_jax.mesh import sharding
from reft_jax.models import attention
from reft_jax.sampling import engine
from tests import tiny


def arch(**changes):
    return dataclasses.replace(tiny.ARCH, **changes)


def drawn(rng, *shape, dtype="float32"):
    return jnp.asarray(rng.normal(size=shape), dtype)


TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


# ------------------------------------------------------------------ decoding: lengths of their own

WIDTH = 80


def one_token(model, lengths, window, dtype, rng, width=WIDTH):
    """(out, k, v) of the plain way and of the kernel for one new token a slot, over random caches."""
    a = model.arch
    num, k, h = len(lengths), a.num_kv_heads, a.head_dim
    q, *new = (drawn(rng, num, 1, heads, h, dtype=dtype) for heads in (a.num_heads, k, k))
    caches = tuple(drawn(rng, num, k, width, h, dtype=dtype) for _ in range(2))
    length = jnp.asarray(lengths, jnp.int32)
    age = length[:, None, None] - jnp.arange(width)[None, None]
    visible = (age >= 0) & ((age < window) if window else True)
    settings = dict(visible=visible, real=None, layer=0, scale=h**-0.5)
    plain, kernel = (dataclasses.replace(model, attention=way) for way in ("xla", "kernel"))
    assert attention.slot_axes(plain) == (3, 2) and attention.cache_dtype(plain) == "float32"
    wide = [x.astype("float32") for x in (caches[0].swapaxes(2, 3), caches[1])]
    for model, buffers in ((plain, wide), (kernel, caches)):
        out, (k, v) = attention.attend(model, q, *new, cache=(*buffers, length), **settings)
        k = k.swapaxes(2, 3) if model is plain else k
        yield np.asarray(out, np.float32), *(np.asarray(x, np.float32) for x in (k, v))


@pytest.mark.parametrize(
    "dtype, head_dim, group, window, cap",
    [
        ("float32", 64, 1, 0, 0.0),
        ("float32", 128, 4, 0, 0.0),
        ("float32", 128, 1, 20, 0.0),
        ("float32", 64, 4, 33, 5.0),
        ("bfloat16", 128, 4, 0, 0.0),
        ("bfloat16", 64, 1, 20, 5.0),
    ],
)
def test_a_slot_s_token_sees_what_the_plain_way_shows_it(dtype, head_dim, group, window, cap, monkeypatch):
    monkeypatch.setattr(attention, "_ragged", functools.partial(attention._ragged, block=32))
    changes = dict(num_heads=2 * group, num_kv_heads=2, head_dim=head_dim, num_layers=1, attention_softcap=cap)
    model = models.Model(arch(windows=(window,), **changes), compute_dtype=dtype)
    lengths = [0, 1, 15, 16, 31, 32, 33, 64, WIDTH - 1]
    plain, kernel = one_token(model, lengths, window, dtype, np.random.default_rng(0))
    np.testing.assert_allclose(kernel[0], plain[0], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    for ours, theirs in zip(kernel[1:], plain[1:], strict=True):
        for row, length in enumerate(lengths):  # behind the new token nobody looks
            np.testing.assert_array_equal(ours[row, :, : length + 1], theirs[row, :, : length + 1])
            assert np.isfinite(ours[row]).all()


@pytest.mark.parametrize("where", [pytest.param("one", marks=pytest.mark.slow), "mixed"])
def test_slots_sample_the_same_with_the_kernel(where):
    model = tiny.model(where, arch(windows=(0, 7)))
    drawn = []
    for way in ("xla", "kernel"):
        machine = engine.Engine(
            dataclasses.replace(model, attention=way),
            max_prompt=11,
            max_new=9,
            num_slots=8,
            eos_ids=(1, 2, 3),
            pad_id=0,
            num_samples=2,
        )
        assert machine.widths == ((20,) if way == "xla" else (32,))
        prompts = tiny.random_prompts(np.random.default_rng(0), [11, 1, 7, 4, 9, 2, 3, 5, 6], 11)
        drawn.append(machine(tiny.params(model), prompts, jax.random.key(0)))
    np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)
    np.testing.assert_allclose(drawn[0].logp, drawn[1].logp, atol=2e-5)


# ------------------------------------------------------------------ training and scoring


def attended(model, q, k, v, real, window, function):
    """((out where real, gradients of q, k, v) of a random function of the real rows of `function`'s result."""
    weights = drawn(np.random.default_rng(1), *q.shape)

    def loss(q, k, v):
        out = jnp.where(real[:, :, None, None], function(q, k, v, real, window).astype(jnp.float32), 0.0)
        return (weights * out).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *grads)]


def by(model):
    """attention.attend of the model's one or second layer, as `attended` calls it."""

    def function(q, k, v, real, window):
        length = real.shape[1]
        age = jnp.arange(length)[:, None] - jnp.arange(length)[None]
        visible = real[:, None] & ((age >= 0) & ((age < window) if window else True))[None]
        layer = jnp.asarray(model.arch.num_layers - 1)
        scale = jnp.float32(q.shape[-1] ** -0.5)
        return attention.attend(model, q, k, v, visible=visible, real=real, layer=layer, scale=scale)[0]

    return function


def inputs(model, batch, length, *, left, dtype):
    rng, a = np.random.default_rng(0), model.arch
    q, k, v = (
        drawn(rng, batch, length, heads, a.head_dim, dtype=dtype) for heads in (a.num_heads, *(a.num_kv_heads,) * 2)
    )
    lengths = [1, length, *rng.integers(1, length, batch - 2)]
    return q, k, v, jnp.asarray(tiny.lengths_mask(lengths, length, left=left))


@pytest.mark.parametrize(
    "where, length, left, windows, cap, dtype",
    [
        (None, 100, True, (), 0.0, "float32"),
        (None, 600, False, (), 0.0, "float32"),  # blocks of their own beside and below the diagonal
        ("mixed", 130, True, (0, 30), 5.0, "float32"),  # layers that differ, heads over two devices
        ("one", 140, False, (50, 50), 0.0, "bfloat16"),
    ],
)
def test_splash_attention_is_the_plain_one_with_its_gradients(where, length, left, windows, cap, dtype):
    a = arch(windows=windows, attention_softcap=cap, num_heads=4, num_kv_heads=2, head_dim=16)
    model = tiny.model(where, a, compute_dtype=dtype)
    window = windows[-1] if windows else 0
    given = (*inputs(model, 4, length, left=left, dtype=dtype), window)
    plain, kernel = (
        attended(way, *given, by(way)) for way in (dataclasses.replace(model, attention=x) for x in ("xla", "kernel"))
    )
    for ours, theirs in zip(kernel, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[dtype] * np.abs(theirs).max())


@pytest.mark.slow
def test_a_model_trains_the_same_with_the_kernel():
    """Layers that differ in window and scale, in one loop over layers that keeps only products, over eight devices."""
    model = tiny.model("mixed", arch(windows=(0, 5), scale_by_layer=True), remat="dots")
    rng, params = np.random.default_rng(0), tiny.params(model)
    tokens = rng.integers(0, tiny.VOCAB, (8, 20)).astype(np.int32)
    mask = tiny.lengths_mask([20, 3, 1, 7, 12, 19, 5, 9], 20, left=True)
    weights = (rng.normal(size=mask.shape) * mask).astype(np.float32)

    def trained(way):
        changed = dataclasses.replace(model, attention=way)

        def loss(params):
            hidden, _ = models.forward(changed, params, tokens, models.positions_of(mask), mask)
            return (weights * models.token_logp(changed, params, hidden, tokens)[0]).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    tiny.assert_trees_close(trained("kernel"), trained("xla"), rtol=1e-4, atol=1e-4)


def test_key_heads_that_the_mesh_does_not_divide_are_repeated():
    model = tiny.model("mixed", arch(num_heads=4, num_kv_heads=1, head_dim=16))
    given = (*inputs(model, 4, 64, left=True, dtype="float32"), 0)
    plain, kernel = (
        attended(way, *given, by(way)) for way in (dataclasses.replace(model, attention=x) for x in ("xla", "kernel"))
    )
    for ours, theirs in zip(kernel, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("length, left, window", [(21, True, 0), (20, False, 7)])
def test_what_cudnn_is_asked_for_is_the_plain_attention(length, left, window):
    model = tiny.model("mixed", arch(windows=(window,) * 2, head_dim=16))
    q, k, v, real = inputs(model, 4, length, left=left, dtype="float32")

    def asked(q, k, v, real, window):
        return attention._cudnn(model, q * q.shape[-1] ** -0.5, k, v, real, window=window, implementation="xla")

    for ours, theirs in zip(
        attended(model, q, k, v, real, window, asked), attended(model, q, k, v, real, window, by(model)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("cap, kv_heads", [(0.0, 4), (3.0, 2)])
def test_the_gradient_of_attention_is_the_equation_s(cap, kv_heads):
    """Over several blocks of queries, the last a short one, with rows that see nothing; against JAX's own gradient in float64."""
    length, size = 2 * attention.QUERIES + 10, 8
    model = models.Model(arch(attention_softcap=cap, num_heads=4, num_kv_heads=kv_heads, head_dim=size))
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, heads, size)) for heads in (4, kv_heads, kv_heads))
    segment = np.sort(rng.integers(0, 4, (2, length)), axis=1)
    segment[1, :5] = -1  # sees nothing at all, below
    visible = np.tril(segment[:, :, None] == segment[:, None]) & (segment >= 0)[:, None]
    weights = rng.normal(size=q.shape) * (segment >= 0)[..., None, None]

    def equation(q, k, v):
        k, v = (jnp.repeat(x, 4 // kv_heads, axis=2) for x in (k, v))
        logits = attention.soft_cap(jnp.einsum("btnh,bsnh->bnts", q, k) * size**-0.5, cap)
        logits = jnp.where(visible[:, None], logits, -1e30)
        return (weights * jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v)).sum()

    def ours(q, k, v):
        return (weights.astype(np.float32) * attention._trained(model, q, k, v, visible, size**-0.5)).sum()

    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(equation, argnums=(0, 1, 2)))(q, k, v)
    got = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*(x.astype(np.float32) for x in (q, k, v)))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_cudnn_s_attention_lowers_for_a_gpu(monkeypatch):
    """Without cuDNN here: its version is made up. Forward and backward become its two calls."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(attention, "platform", lambda model: "gpu")
    model = tiny.model(None, arch(head_dim=64), compute_dtype="bfloat16", attention="kernel")
    assert attention.path(model) == ("cudnn", "")
    shape = jax.ShapeDtypeStruct((2, 700, 4, 64), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((2, 700, 2, 64), jnp.bfloat16)

    def loss(q, k, v):
        return by(model)(q, k, v, jnp.ones((2, 700), bool), 0).astype(jnp.float32).sum()

    text = (
        jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        .trace(shape, keys, keys)
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    assert "__cudnn$fmha" in text and "Backward" in text


# ------------------------------------------------------------------ which way


@pytest.mark.parametrize(
    "where, asked, changes, slots, way",
    [
        ("cpu", "auto", {}, False, "xla"),
        ("cpu", "auto", {}, True, "xla"),
        ("cpu", "kernel", {}, False, "splash"),
        ("cpu", "kernel", {}, True, "ragged"),
        ("tpu", "auto", {}, False, "splash"),
        ("tpu", "auto", dict(head_dim=128), True, "ragged"),
        ("tpu", "auto", dict(head_dim=64), True, "xla"),
        ("tpu", "xla", {}, False, "xla"),
        ("gpu", "auto", {}, False, "xla"),
        ("gpu", "kernel", {}, True, "xla"),
        ("gpu", "kernel", dict(head_dim=64), False, "cudnn"),
        ("gpu", "kernel", dict(head_dim=256), False, "xla"),
        ("gpu", "kernel", dict(head_dim=64, attention_softcap=30.0), False, "xla"),
    ],
)
def test_the_way_is_decided_before_anything_is_traced_and_says_why(where, asked, changes, slots, way, monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda model: where)
    got, why = attention.path(tiny.model(None, arch(**changes), attention=asked, compute_dtype="bfloat16"), slots=slots)
    assert got == way and bool(why) == (way == "xla")


# ------------------------------------------------------------------ what compilers make of it


@pytest.fixture
def chips():
    """Eight TPU v5e chips that are not here: their compiler is. It cannot read programs back that were kept."""
    pytest.importorskip("libtpu")
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def on(chips, fsdp, tensor) -> sharding.Layout:
    return sharding.make_layout(settings_lib.Mesh(1, fsdp, tensor, tiny.RULES), chips)


def decoding(model, num_slots, width):
    """The compiled program that takes the slots on."""
    params = jax.eval_shape(functools.partial(models.for_decoding, model), models.shapes(model))
    slots = jax.eval_shape(
        lambda: engine._empty(model, settings_lib.WHOLE, num=num_slots, width=width, max_new=64, pad_id=0)
    )
    slots = jax.tree.map(
        lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p), slots, engine._places(model)[0]
    )
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return engine._decoding(model, (1,), settings_lib.WHOLE).lower(params, slots, number, number).compile()


def moves(compiled, *shape):
    """Lines of the optimised program that copy an array of that shape or turn it around."""
    name = "[" + ",".join(map(str, shape)) + "]"
    lines = compiled.as_text().splitlines()
    assert any(name in line and " while(" in line for line in lines)
    return [line for line in lines if name in line and re.search(r" (copy|copy-start|transpose)\(", line)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_updates_the_cache_in_place_on_a_cpu(dtype):
    compiled = decoding(tiny.model("one", compute_dtype=dtype), 8, 50)
    for shape in ((8, 2, 6, 50), (8, 2, 50, 6)):  # keys, values
        assert not moves(compiled, *shape)
    assert not re.search(r"= bf16\[8,2,(50,6|6,50)\]", compiled.as_text())  # nor are they converted


def test_the_check_for_copies_sees_one():
    def turned(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.flip(x.swapaxes(0, 1), 0) * 2, x).T

    assert moves(jax.jit(turned).lower(jax.ShapeDtypeStruct((4, 4), jnp.float32)).compile(), 4, 4)


@pytest.mark.parametrize("way", ["xla", "kernel"])
@pytest.mark.parametrize("kv_heads, parts", [(32, 4), (8, 1)])
def test_decoding_updates_the_cache_in_place_on_a_tpu(way, kv_heads, parts, chips):
    """At the attention of CodeLlama 7B and Llama 3 8B, heads over eight chips: nothing as large as a layer's keys beside them.

    The buffers are larger than a chip's fast memory, which the compiler would else keep them in.
    """
    heads = dict(num_heads=32, num_kv_heads=kv_heads, head_dim=128, dim=256)
    model = models.Model(arch(**heads), "bfloat16", "bfloat16", layout=on(chips, 1, 8), attention=way)
    assert attention.path(model, slots=True)[0] == {"xla": "xla", "kernel": "ragged"}[way]
    shape = (512 // parts, parts, 1280, 128)
    compiled = decoding(model, shape[0], shape[2])
    assert ("ragged_decode" in compiled.as_text()) == (way == "kernel")
    assert not moves(compiled, *shape)
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * math.prod(shape)


def trained(model, rows, dtype):
    """Compiled gradients of the second layer's attention over 700 tokens."""

    def loss(q, k, v, real):
        return by(model)(q, k, v, real, 200).astype(jnp.float32).sum()

    def shape(names, *sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=model.layout.sharding(names, sizes))

    a, names = model.arch, ("batch", None, "heads", None)
    q, k = (shape(names, rows, 700, heads, a.head_dim) for heads in (a.num_heads, a.num_kv_heads))
    real = shape(("batch", None), rows, 700, dtype=bool)
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, real).compile()


@pytest.mark.parametrize(
    "changes, dtype",
    [
        (dict(num_heads=4, num_kv_heads=2, head_dim=64, windows=(0, 200), attention_softcap=50.0), "bfloat16"),
        (dict(num_heads=4, num_kv_heads=1, head_dim=80), "float32"),
    ],
)
def test_splash_attention_compiles_for_a_tpu(changes, dtype, chips):
    model = models.Model(arch(**changes), dtype, dtype, layout=on(chips, 4, 2))
    assert attention.path(model) == ("splash", "")
    assert "splash_mha_dkv" in trained(model, 8, dtype).as_text()


@pytest.mark.slow
def test_splash_attention_takes_less_of_a_tpu_s_memory(chips):
    """CodeLlama 7B's heads over four chips: 8 rows of 700 tokens, 8 heads a chip."""
    changes = dict(num_heads=32, num_kv_heads=32, head_dim=128)
    model = models.Model(arch(**changes), "bfloat16", "bfloat16", layout=on(chips, 2, 4))
    kernel, plain = (
        trained(dataclasses.replace(model, attention=way), 16, "bfloat16").memory_analysis().temp_size_in_bytes
        for way in ("kernel", "xla")
    )
    assert 2 * kernel < plain


@pytest.mark.slow
def test_the_benchmark_runs_without_an_accelerator():
    script = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "attention.py"
    out = subprocess.run([sys.executable, script, "--toy"], check=True, capture_output=True, text=True).stdout
    assert [json.loads(line)["way"] for line in out.splitlines()] == ["xla", "splash", "xla", "ragged"]
