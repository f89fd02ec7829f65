"""The decoder against a float64 loop and against transformers; padding, cache, chunks, precision, layouts, and files in and out."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.config import choices
from reft_jax.errors import InputError
from reft_jax.models import rotary, weight_files
from reft_jax.models.products import product
from reft_jax.sampling import generate
from reft_jax.training.scoring import make_score
from reft_jax.types import Prompts
from tests import reference, tiny

VARIANTS = {
    "tied": tiny.ARCH,
    "untied": dataclasses.replace(tiny.ARCH, tie_embeddings=False),
    "all-heads": dataclasses.replace(tiny.ARCH, num_kv_heads=4, head_dim=4),
    "one-kv-head": dataclasses.replace(
        tiny.ARCH, num_kv_heads=1, head_dim=8, num_layers=3, norm_eps=1e-3, rope_theta=10000.0
    ),
}
TOKENS = np.random.default_rng(0).integers(0, tiny.VOCAB, (3, 9)).astype(np.int32)


@pytest.fixture(params=list(VARIANTS))
def variant(request):
    """(model, params) without a layout."""
    model = tiny.model(None, VARIANTS[request.param])
    return model, tiny.params(model)


# ------------------------------------------------------------------ the forward


def test_logits_match_the_float64_loop(variant):
    model, params = variant
    got = models.logits(model, params, TOKENS)
    assert got.shape == (3, 9, tiny.VOCAB) and got.dtype == jnp.float32
    expected = np.array([reference.llama_logits(model.arch, params, row) for row in TOKENS])
    assert expected.std() > 0.5  # else closeness would say nothing
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)


def test_logits_match_transformers(variant, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params = variant
    models.save_hf(tmp_path, model, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(models.logits(model, params, TOKENS), expected, rtol=1e-4, atol=2e-5)


def test_a_directory_written_by_transformers_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=500.0,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model, params = models.load_hf(tmp_path)
    assert model.arch.rope_theta == 500.0 and not model.arch.tie_embeddings
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(models.logits(model, params, TOKENS), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("left", [True, False])
def test_a_padded_batch_equals_each_row_alone(variant, left):
    model, params = variant
    mask = tiny.lengths_mask([9, 5, 1], 9, left=left)
    got = np.asarray(models.logits(model, params, TOKENS, mask))
    assert np.isfinite(got).all()
    for row in range(3):
        alone = models.logits(model, params, TOKENS[row : row + 1, mask[row]])
        np.testing.assert_allclose(got[row, mask[row]], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left", [True, False])
def test_what_stands_in_the_padding_changes_nothing(left):
    model = tiny.model(None)
    params, mask = tiny.params(model), tiny.lengths_mask([9, 5, 1], 9, left=left)
    other = np.where(mask, TOKENS, (TOKENS + 7) % tiny.VOCAB)
    a, b = (np.asarray(models.logits(model, params, tokens, mask))[mask] for tokens in (TOKENS, other))
    np.testing.assert_array_equal(a, b)


def test_positions_count_the_real_tokens_before():
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(models.positions_of(mask), [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 0, 0, 0]])


def test_a_token_sees_nothing_after_itself():
    model = tiny.model(None)
    params, changed = tiny.params(model), TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % tiny.VOCAB
    a, b = (np.asarray(models.logits(model, params, tokens)) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert (np.abs(a[:, 5:] - b[:, 5:]).max(-1) > 1e-3).all()


def cached_logits(model, params, tokens, mask, cuts):
    """Logits of the tokens read in pieces [0, cuts[0]), [cuts[0], cuts[1]), ... through the cache."""
    positions, out = models.positions_of(mask), []
    cache = models.empty_cache(model, tokens.shape[0], tokens.shape[1] + 2)
    slots = jnp.concatenate([mask, jnp.ones((tokens.shape[0], 2), bool)], axis=1)
    for start, stop in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        hidden, cache = models.forward(model, params, tokens[:, start:stop], positions[:, start:stop], slots, cache)
        out.append(models.unembed(model, params, hidden))
    return jnp.concatenate(out, axis=1), cache.length


@pytest.mark.parametrize("cuts", [(4, 5, 6, 7, 8), (1, 3)], ids=["token by token", "in pieces"])
def test_cached_decode_equals_the_full_forward(variant, cuts):
    model, params = variant
    mask = tiny.lengths_mask([9, 5, 8], 9, left=True)
    got, length = jax.jit(functools.partial(cached_logits, model, cuts=cuts))(params, TOKENS, mask)
    assert length == 9
    expected = models.logits(model, params, TOKENS, mask)
    np.testing.assert_allclose(np.asarray(got)[mask], np.asarray(expected)[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 4, 8, 9])
def test_token_logp_in_chunks_equals_unchunked_with_its_gradients(size):
    whole = tiny.model(None)
    params, hidden = tiny.params(whole), jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 16)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 8)), jnp.float32)

    def both(model):
        def total(params, hidden):
            logp, entropy = models.token_logp(model, params, hidden, TOKENS[:, :8])
            return (weights * jnp.stack([logp, entropy])).sum(), (logp, entropy)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, hidden)

    tiny.assert_trees_close(both(dataclasses.replace(whole, logits_chunk=size)), both(whole), rtol=1e-5, atol=1e-5)


def test_token_logp_and_entropy_are_those_of_the_softmax():
    model = tiny.model(None, logits_chunk=3)
    params, hidden = tiny.params(model), np.random.default_rng(1).normal(size=(2, 4, 16)).astype(np.float32)
    logp, entropy = models.token_logp(model, params, hidden, TOKENS[:2, :4])
    table = np.asarray(params["embed"]["kernel"], np.float64)
    for b in range(2):
        for t in range(4):
            expected = reference.log_softmax(table @ hidden[b, t].astype(np.float64))
            np.testing.assert_allclose(logp[b, t], expected[TOKENS[b, t]], rtol=1e-5)
            np.testing.assert_allclose(entropy[b, t], -(np.exp(expected) * expected).sum(), rtol=1e-4, atol=1e-6)


def test_rows_without_a_token_are_never_likely():
    """Sampler, scorer, entropy and KL over the tokenizer's ids alone, against NumPy; the other rows get no gradient and stay in files."""
    whole = tiny.model(
        None, dataclasses.replace(tiny.ARCH, num_layers=1), vocab_multiple=16
    )  # 24 rows of weights, padded to 32
    model, num = dataclasses.replace(whole, num_ids=19), 19
    params, other = tiny.params(whole), tiny.params(whole, 1)
    params, other = (
        {**tree, "embed": {"kernel": jnp.pad(tree["embed"]["kernel"], ((0, 8), (0, 0)))}} for tree in (params, other)
    )
    params["embed"]["kernel"] = params["embed"]["kernel"].at[num:24].mul(20)  # which would be likely
    hidden, tokens = np.random.default_rng(1).normal(size=(2, 4, 16)).astype(np.float32), TOKENS[:2, :4] % num
    temperature = 0.7
    out = models.token_outputs(model, params, hidden, tokens, temperature=temperature, reference=(model, other, hidden))
    for b, t in np.ndindex(tokens.shape):
        own, ref = (
            reference.log_softmax(np.asarray(tree["embed"]["kernel"], np.float64)[:num] @ hidden[b, t] / temperature)
            for tree in (params, other)
        )
        expected = dict(logp=own[tokens[b, t]], ref_logp=ref[tokens[b, t]], entropy=-(np.exp(own) * own).sum())
        expected["ref_kl"] = (np.exp(own) * (own - ref)).sum()
        for name, value in expected.items():
            np.testing.assert_allclose(out[name][b, t], value, rtol=2e-5, atol=2e-6, err_msg=name)
    logits = models.logits(model, params, TOKENS % num)
    assert logits.shape[-1] == 24 and (logits[..., num:] < -1e29).all() and (logits[..., :num] > -1e3).all()
    grad = jax.grad(lambda p: models.token_logp(model, p, jnp.asarray(hidden), tokens)[0].sum())(params)["embed"][
        "kernel"
    ]
    assert (grad[num:] == 0).all() and (grad[:num] != 0).any()

    key, prompts = jax.random.key(0), [row[:5].tolist() for row in TOKENS % num]
    drawn, free = (generate(of, params, prompts, key, max_new=6, eos_id=1, num_samples=8) for of in (model, whole))
    tokens, mask = np.asarray(drawn.tokens), np.asarray(drawn.mask)
    assert tokens[mask].max() < num <= np.asarray(free.tokens).max()
    rows = np.repeat(np.asarray(prompts, np.int32), 8, axis=0)
    asked = Prompts(rows, np.ones(rows.shape, bool), np.arange(len(rows), dtype=np.int32))
    scored = make_score(model)(params, other, asked, tokens, mask)[0]
    np.testing.assert_allclose(np.where(mask, scored, 0), np.where(mask, drawn.logp, 0), rtol=1e-5, atol=1e-5)


def loss_and_grads(model, params, tokens):
    def loss(params):
        hidden, _ = models.forward(model, params, tokens, models.positions_of(tokens >= 0), tokens >= 0)
        return -models.token_logp(model, params, hidden[:, :-1], tokens[:, 1:])[0].mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "inputs, outputs", [((6,), (16,)), ((16,), (6,)), ((6,), (4, 5)), ((4, 5), (6,)), ((5,), (5,))]
)
@pytest.mark.parametrize("rows", [(3, 7), (9,)])
@pytest.mark.parametrize("kind, wide", [("float32", True), ("float32", False), ("bfloat16", True), ("bfloat16", False)])
def test_a_product_s_gradient_is_the_equation_s(inputs, outputs, kind, wide, rows):
    rng, axes = np.random.default_rng(0), len(inputs)
    shapes = ((*rows, *inputs), (*inputs, *outputs), (*rows, *outputs))
    x, kernel, weights = (rng.normal(size=shape) for shape in shapes)
    x, kernel = (jnp.asarray(value, kind) for value in (x, kernel))

    def loss(x, kernel):
        return (weights.astype(np.float32) * product(x, kernel, axes, jnp.float32, wide=wide)).sum()

    value, (dx, dkernel) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)
    x64, kernel64 = (np.asarray(given.astype(jnp.float32), np.float64) for given in (x, kernel))
    out = np.tensordot(x64, kernel64, axes)
    expected = (
        (weights * out).sum(),
        np.tensordot(weights, np.moveaxis(kernel64, range(axes), range(-axes, 0)), len(outputs)),
    )
    expected += (np.tensordot(x64, weights, (range(len(rows)),) * 2),)
    tolerance = dict(float32=1e-5, bfloat16=2e-2)[kind]
    for got, right in zip((value, dx, dkernel), expected, strict=True):
        scale = np.abs(right).max()
        np.testing.assert_allclose(np.asarray(got, np.float64) / scale, right / scale, atol=tolerance)
    assert dx.dtype == x.dtype and dkernel.dtype == kernel.dtype


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_changes_no_number(remat):
    plain, remat = tiny.model(None), tiny.model(None, remat=remat)
    params = tiny.params(plain)
    tiny.assert_trees_close(
        loss_and_grads(plain, params, TOKENS), loss_and_grads(remat, params, TOKENS), rtol=1e-5, atol=1e-6
    )


def test_log_probs_over_a_large_vocabulary_never_hold_all_logits():
    """1 x 1,024 positions over 152,064 tokens: as float32 the logits alone would be 623 MB, in bfloat16 half."""
    vocabulary, length = 152_064, 1024
    arch = dataclasses.replace(tiny.ARCH, vocab_size=vocabulary, dim=32, head_dim=8, ffn_dim=64)
    model = models.Model(arch, compute_dtype="bfloat16", logits_chunk=64)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), jnp.bool_)

    def score(params, tokens, mask):
        hidden, _ = models.forward(model, params, tokens, models.positions_of(mask), mask)
        return models.token_logp(model, params, hidden[:, :-1], tokens[:, 1:])

    def loss(params, tokens, mask):
        return -score(params, tokens, mask)[0].mean()

    whole = length * vocabulary * 4
    for function in (score, jax.grad(loss)):
        memory = jax.jit(function).lower(models.shapes(model), tokens, mask).compile().memory_analysis()
        assert 0 < memory.temp_size_in_bytes < whole / 2, (function, memory.temp_size_in_bytes / 1e6)


@pytest.mark.parametrize("remat, least", [("block", 2.0), ("dots", 1.2)])
def test_remat_saves_memory(remat, least):
    """What a deep model keeps for its backward pass."""
    arch = dataclasses.replace(tiny.ARCH, dim=64, ffn_dim=256, num_layers=16)
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)

    def used(remat):
        model = models.Model(arch, remat=remat)

        def loss(params, tokens):
            mask = jnp.ones(tokens.shape, bool)
            hidden, _ = models.forward(model, params, tokens, models.positions_of(mask), mask)
            return models.token_logp(model, params, hidden, tokens)[0].mean()

        return (
            jax.jit(jax.grad(loss)).lower(models.shapes(model), tokens).compile().memory_analysis().temp_size_in_bytes
        )

    assert used("none") > least * used(remat)


def test_dropout_needs_its_rate_and_scales_what_it_keeps():
    model = tiny.model(None)
    params = tiny.params(model)
    mask = np.ones(TOKENS.shape, bool)

    def hidden(rate, seed):
        return np.asarray(
            models.forward(model, params, TOKENS, models.positions_of(mask), mask, rate=rate, key=jax.random.key(seed))[
                0
            ]
        )

    np.testing.assert_array_equal(hidden(0.0, 0), hidden(0.0, 1))
    np.testing.assert_array_equal(hidden(0.5, 0), hidden(0.5, 0))
    assert np.abs(hidden(0.5, 0) - hidden(0.5, 1)).max() > 0.1
    kept = np.asarray(models.decoder.dropout(jnp.ones((100, 100)), 0.25, jax.random.key(0), 0))
    assert set(np.unique(kept).round(4)) == {0.0, np.float32(1 / 0.75).round(4)} and abs(kept.mean() - 1.0) < 0.02


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_compute_is_near_and_keeps_its_float32_islands(param_dtype):
    exact, model = tiny.model(None), tiny.model(None, param_dtype=param_dtype, compute_dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(param_dtype), tiny.params(exact))
    got = models.logits(model, params, TOKENS)
    assert got.dtype == jnp.float32
    expected = np.asarray(models.logits(exact, tiny.params(exact), TOKENS))
    error = np.abs(np.asarray(got) - expected)
    assert 1e-4 < error.mean() < 0.05 * expected.std() and error.max() < 0.5 * expected.std()
    loss, grads = loss_and_grads(model, params, TOKENS)
    assert loss.dtype == jnp.float32 and all(
        g.dtype == param_dtype and bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads)
    )
    cache = models.empty_cache(model, 2, 4)  # bfloat16's numbers, in float32 on a CPU: see attention.cache_dtype
    assert all(buffer.dtype == jnp.float32 for buffer in cache.k + cache.v)


# ------------------------------------------------------------------ parameters and heads


def test_shapes_axes_and_init_agree():
    model = tiny.model(None, VARIANTS["untied"])
    params, shapes, axes = models.init(model, jax.random.key(0)), models.shapes(model), models.axes(model)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    jax.tree.map(lambda x, names: None if len(names) == x.ndim else pytest.fail(f"{names} for {x.shape}"), params, axes)
    assert axes["blocks"]["attention"]["q"]["kernel"] == ("layers", "embed", "heads", "head_dim")
    assert models.shapes(dataclasses.replace(model, param_dtype="bfloat16"))["norm"]["scale"].dtype == jnp.bfloat16


def test_init_has_the_stated_spread_and_layers_of_their_own():
    arch = dataclasses.replace(tiny.ARCH, dim=64, ffn_dim=128, init_std=0.02)
    params = models.init(models.Model(arch), jax.random.key(0))
    np.testing.assert_allclose(params["blocks"]["mlp"]["up"]["kernel"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(params["blocks"]["mlp"]["down"]["kernel"].std(), 0.02 / 2, rtol=0.05)  # / sqrt(2 layers)
    first, second = params["blocks"]["attention"]["q"]["kernel"]
    assert not np.allclose(first, second)
    assert (params["norm"]["scale"] == 1).all()


def test_init_on_eight_devices_equals_init_on_one():
    one = models.init(tiny.model("one"), jax.random.key(3))
    for where, shard in {"fsdp": (2, 2, 24), "mixed": (2, 8, 12)}.items():
        many = models.init(tiny.model(where), jax.random.key(3))
        tiny.assert_trees_equal(one, many)
        kernel = many["blocks"]["mlp"]["up"]["kernel"]  # ("layers", "embed", "mlp") of shape (2, 16, 24)
        assert kernel.addressable_shards[0].data.shape == shard and len(kernel.sharding.device_set) == 8


@pytest.mark.parametrize("where", ["data", "fsdp", "mixed"])
def test_logits_on_eight_devices_equal_those_on_one(where):
    tokens = np.tile(TOKENS, (3, 1))[:8]
    a, b = (models.logits(tiny.model(name), tiny.params(tiny.model(name)), tokens) for name in ("one", where))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_size_that_the_mesh_does_not_divide_is_replicated():
    layout = tiny.layout("fsdp")
    assert layout.sharding(("embed",), (12,)).shard_shape((12,)) == (12,)
    assert layout.sharding(("embed",), (16,)).shard_shape((16,)) == (2,)
    assert layout.sharding(("embed", "embed"), (16, 16)).shard_shape((16, 16)) == (2, 16)  # a mesh axis is used once


@pytest.mark.parametrize("bias", [True, False])
def test_value_head_is_a_float32_line_through_the_state(bias):
    model = tiny.model(None, compute_dtype="bfloat16")
    head = models.init_value_head(model, jax.random.key(0), how="normal", bias=bias)
    assert (
        set(head) == ({"kernel", "bias"} if bias else {"kernel"})
        and head["kernel"].shape == (16,)
        and head["kernel"].dtype == jnp.float32
    )
    assert 0.1 < float(head["kernel"].std()) < 0.6  # init_std is 0.3
    if bias:
        head["bias"] = head["bias"] + 0.5
    hidden = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    got = models.values({"value_head": head}, jnp.asarray(hidden, jnp.bfloat16))
    expected = (
        np.asarray(jnp.asarray(hidden, jnp.bfloat16), np.float64) @ np.asarray(head["kernel"], np.float64) + 0.5 * bias
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_value_head_of_zeros_is_zero_and_the_decoder_ignores_heads():
    model = tiny.model(None)
    params = tiny.params(model)
    headed = params | {"value_head": models.init_value_head(model, jax.random.key(0), how="zeros", bias=True)}
    assert not jnp.any(models.values(headed, jnp.ones((1, 2, 16))))
    np.testing.assert_array_equal(models.logits(model, params, TOKENS), models.logits(model, headed, TOKENS))


# ------------------------------------------------------------------ Hugging Face directories


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_and_load_give_back_every_bit(variant, dtype, tmp_path):
    model, params = variant
    model = dataclasses.replace(model, param_dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    models.save_hf(tmp_path / "new" / "folder", model, params)
    loaded_model, loaded = models.load_hf(tmp_path / "new" / "folder", param_dtype=dtype)
    assert loaded_model.arch == model.arch and loaded_model.param_dtype == dtype
    tiny.assert_trees_equal(loaded, params)


def test_load_places_weights_where_it_is_told(tmp_path):
    model = tiny.model("mixed")
    params = tiny.params(model)
    models.save_hf(tmp_path, model, params)
    shardings = models.param_shardings(model, models.shapes(model))
    _, loaded = models.load_hf(tmp_path, shardings=shardings)
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
    tiny.assert_trees_equal(loaded, params)


def test_a_value_head_goes_into_a_file_of_its_own(tmp_path):
    model = tiny.model(None)
    params = tiny.params(model, value_head=True)
    models.save_hf(tmp_path, model, params)
    tiny.assert_trees_equal(models.load_hf(tmp_path)[1], params)
    (tmp_path / "heads.safetensors").unlink()
    tiny.assert_trees_equal(models.load_hf(tmp_path)[1], tiny.params(model))


def test_a_heads_file_with_something_else_is_refused(saved):
    folder, _, write = saved
    write({"other.kernel": np.zeros(3, np.float32)}, "heads.safetensors")
    refused(folder, "heads.safetensors", "other.kernel")


@pytest.fixture
def saved(tmp_path):
    """A good directory to spoil: (folder, tensors by name, write(tensors))."""
    from safetensors.numpy import load_file, save_file

    model = tiny.model(None)
    models.save_hf(tmp_path, model, tiny.params(model))
    file = tmp_path / "model.safetensors"
    return tmp_path, load_file(file), lambda tensors, name="model.safetensors": save_file(tensors, tmp_path / name)


def refused(folder, *parts):
    with pytest.raises(InputError) as caught:
        models.load_hf(folder)
    for part in (str(folder), *parts):
        assert part in str(caught.value)


def test_wrong_weights_are_all_named(saved):
    folder, tensors, write = saved
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].T.copy()
    tensors["model.layers.7.extra.weight"] = np.zeros(3, np.float32)
    write(tensors)
    refused(
        folder,
        "missing model.norm.weight",
        "model.layers.1.mlp.up_proj.weight has shape (16, 24), not (24, 16)",
        "unmapped model.layers.7.extra.weight",
    )


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model.", "model."])
def test_the_names_of_wrappers_are_taken_off(saved, wrapper):
    folder, tensors, write = saved
    write({wrapper + name: tensor for name, tensor in tensors.items()})
    tiny.assert_trees_equal(models.load_hf(folder)[1], tiny.params(tiny.model(None)))


def test_parts_that_were_compiled_alone_have_their_names(saved):
    folder, tensors, write = saved
    write({name.replace(".mlp.", "._orig_mod.mlp."): tensor for name, tensor in tensors.items()})
    tiny.assert_trees_equal(models.load_hf(folder)[1], tiny.params(tiny.model(None)))


def test_a_wrapper_of_some_names_is_none(saved):
    folder, tensors, write = saved
    first, *rest = sorted(tensors)
    write({first: tensors[first]} | {f"module.{name}": tensors[name] for name in rest})
    with pytest.raises(InputError) as caught:
        models.load_hf(folder)
    said = str(caught.value)
    assert said.count("model.layers") < 10 and f"and {len(rest) - 3} more" in said and "did you mean" in said


@pytest.mark.parametrize(
    "buffer",
    [
        "model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.layers.1.self_attn.rotary_emb.sin_cached", "model.layers.0.self_attn.masked_bias", "model.layers.0.self_attn.bias",
        "model.rotary_emb_local.original_inv_freq", "model.embeddings.position_ids",
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_buffers_of_older_files_are_no_weights(saved, buffer, wrapper):
    folder, tensors, write = saved
    write({wrapper + name: tensor for name, tensor in (tensors | {buffer: np.zeros(3, np.float32)}).items()})
    models.check_hf(folder)


UNGATED = ("codegen", "gpt2", "opt")


@pytest.mark.parametrize("family", choices.names("models/families"))
def test_no_weight_of_a_family_is_taken_for_a_buffer(family):
    from reft_jax.models.families import weights

    arch, table = dataclasses.replace(tiny.ARCH, parallel=family == "codegen", gated=family not in UNGATED), None
    for part in (None, "qkv_bias", "out_bias", "mlp_bias", "qk_norm", "post_norms"):
        more = dataclasses.replace(arch, **{part: True}) if part else arch
        try:
            table = choices.module("models/families", family).table(more)
        except InputError:  # the family has no such parameters
            assert part
            continue
        arch = more
    names = {weight.name.format(0) for weight in table.values()}
    assert names and not [name for name in names if weights.BUFFERS.fullmatch(name) or weights.ADAPTERS.search(name)]


def test_a_parameter_that_a_family_has_no_place_for_is_named():
    with pytest.raises(InputError, match="family 'llama' has no place for attention_post_norm"):
        choices.module("models/families", "llama").table(dataclasses.replace(tiny.ARCH, post_norms=True))


def test_adapters_of_peft_are_said_to_be_unmerged(saved):
    folder, tensors, write = saved
    part = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write({part: np.zeros((2, 16), np.float32)}, "adapter_model.safetensors")
    refused(folder, "holds adapter_model.safetensors", "merge_and_unload")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match="adapter_config.json, adapter_model.safetensors: PEFT's adapters must be merged"
    ):
        models.resolve(str(folder))
    for path in folder.glob("adapter*"):
        path.unlink()
    write(tensors | {part: np.zeros((2, 16), np.float32)})
    refused(folder, f"1 weights of adapters, as {part}", "merge_and_unload")


@pytest.mark.parametrize(
    "key, same",
    [
        *((key, True) for key in ("rope_scaling", "head_dim", "sliding_window", "attention_bias", "mlp_bias", "initializer_range")),
        *((key, True) for key in ("rope_theta", "eos_token_id", "layer_types", "use_cache", "something_of_ones_own")),
        *((key, False) for key in ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")),
        *((key, False) for key in ("hidden_act", "max_position_embeddings", "intermediate_size")),
    ],
)  # fmt: skip
def test_null_in_a_config_is_as_if_absent_or_named(saved, key, same):
    folder, path = saved[0], saved[0] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {key: None}))
    if not same:
        refused(folder, f"{path}: {key} is null")
        return
    found = models.read_config(folder)
    path.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
    assert found == models.read_config(folder)


def test_null_keeps_what_transformers_says_of_it(saved):
    folder, path = saved[0], saved[0] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | dict(num_key_value_heads=None)))
    assert models.read_config(folder).num_kv_heads == config["num_attention_heads"]
    path.write_text(json.dumps(config | dict(model_type="mistral", sliding_window=None)))
    assert models.read_config(folder).windows == ()
    absent = {name: value for name, value in config.items() if name != "sliding_window"}
    path.write_text(json.dumps(absent | dict(model_type="mistral")))
    assert models.read_config(folder).windows != ()


def test_null_in_rope_scaling(saved):
    folder, path = saved[0], saved[0] / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("rope")}
    path.write_text(json.dumps(config | dict(rope_parameters=dict(rope_type="default", rope_theta=None))))
    assert models.read_config(folder).rope_theta == 10000.0
    path.write_text(json.dumps(config | dict(rope_scaling=dict(rope_type="linear", factor=None))))
    refused(folder, "config.json", "factor")


def test_a_key_of_a_config_that_stands_twice_is_refused(saved):
    folder, path = saved[0], saved[0] / "config.json"
    path.write_text(path.read_text().rstrip()[:-1] + ', "vocab_size": 3}')
    refused(folder, f"{path}: the key 'vocab_size' stands twice in one object")


def test_weights_in_several_files_are_put_together(saved):
    folder, tensors, write = saved
    names = sorted(tensors)
    write({name: tensors[name] for name in names[:5]}, "model-00001-of-00002.safetensors")
    write({name: tensors[name] for name in names[5:]}, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    tiny.assert_trees_equal(models.load_hf(folder)[1], tiny.params(tiny.model(None)))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "missing")


def test_a_weight_in_two_files_is_refused(saved):
    folder, tensors, write = saved
    write({"model.norm.weight": 2 * tensors["model.norm.weight"]}, "another.safetensors")
    refused(folder, "model.norm.weight is in another.safetensors and again in model.safetensors")


SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "more, said",
    [
        ([*SHARDS, INDEX], [f"{SHARDS[0]} and {SHARDS[1]}; model.safetensors.", f"remove {SHARDS[0]} and 2 more, or model.safetensors"]),
        (SHARDS, [f"{SHARDS[0]} and {SHARDS[1]}; model.safetensors."]),
        ([INDEX], [f"{SHARDS[0]} and {SHARDS[1]}; model.safetensors."]),  # its shards are gone
        (["adapter_model.safetensors"], ["holds adapter_model.safetensors"]),
        (["adapter_config.json"], ["holds adapter_config.json"]),
        (["another.safetensors"], ["model.norm.weight is in another.safetensors and again in model.safetensors"]),
        (["model-00001-of-00001.safetensors"], ["model-00001-of-00001.safetensors; model.safetensors."]),
        (["pytorch_model.bin", "pytorch_model.bin.index.json", "heads.txt"], None),
    ],
)  # fmt: skip
def test_several_sets_of_weights_are_refused_by_their_files(saved, more, said):
    folder, tensors, write = saved
    for name in more:
        if name == INDEX:
            weight_map = {weight: SHARDS[i % 2] for i, weight in enumerate(sorted(tensors))}
            (folder / name).write_text(json.dumps(dict(weight_map=weight_map)))
        elif name.endswith(".safetensors"):
            write({"model.norm.weight": tensors["model.norm.weight"]}, name)
        else:
            (folder / name).write_text("{}")
    refused(folder, *said) if said else tiny.assert_trees_equal(
        models.load_hf(folder)[1], tiny.params(tiny.model(None))
    )


def test_an_index_leaves_out_other_programs_files_but_no_other_shards(saved):
    folder, tensors, write = saved
    names, model = sorted(tensors), tiny.model(None)
    models.save_hf(folder, model, tiny.params(model), max_shard_bytes=6000)
    assert not (folder / "model.safetensors").exists() and len(list(folder.glob("model-*"))) == 4
    write({names[0]: 2 * tensors[names[0]]}, "consolidated.safetensors")
    tiny.assert_trees_equal(models.load_hf(folder)[1], tiny.params(model))
    write({names[0]: 2 * tensors[names[0]]}, SHARDS[0])
    refused(folder, f"model-00001-of-00004.safetensors and 3 more; {SHARDS[0]}.", f", or {SHARDS[0]}")


OLD = [*SHARDS, INDEX, "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "heads.safetensors"]
OLD += ["model-00007-of-00009.safetensors", "pytorch_model-00001-of-00002.bin"]


@pytest.mark.parametrize("shard_bytes", [10**9, 6000])
def test_a_save_leaves_no_old_weights(tmp_path, shard_bytes):
    model, others = tiny.model(None), ["tokenizer.json", "training_args.bin", "README.md"]
    for name in OLD + others:
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "elsewhere").write_text("a blob of a cache")
    (tmp_path / "model.safetensors").symlink_to("elsewhere")
    for seed in (1, 0):
        models.save_hf(tmp_path, model, tiny.params(model, seed), max_shard_bytes=shard_bytes)
        tiny.assert_trees_equal(models.load_hf(tmp_path)[1], tiny.params(model, seed))
    whole = (
        ["model.safetensors"]
        if shard_bytes > 6000
        else [INDEX, *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4))]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, *whole, "config.json", "elsewhere"])
    assert (tmp_path / "elsewhere").read_text() == "a blob of a cache"


@pytest.mark.parametrize("name", ["another.safetensors", "adapter_model.safetensors", "adapter_config.json"])
def test_a_save_beside_weights_that_it_does_not_know_is_refused(saved, name):
    folder, _, write = saved
    write({"x": np.zeros(3, np.float32)}, name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=f"holds {name}"):
        models.save_hf(folder, tiny.model(None), tiny.params(tiny.model(None), 1))
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("sizes", [(6000, 6000), (6000, 10**9), (10**9, 6000)], ids=["shards", "to one", "from one"])
def test_a_save_that_is_killed_anywhere_loses_nothing(tmp_path, monkeypatch, sizes):
    model, seen = tiny.model(None), set()
    old, new = (tiny.params(model, seed) for seed in (1, 2))

    def changes():
        """Kills at the n-th change of the folder."""
        for name in ("mkdir", "rename", "unlink", "replace", "rmdir", "write_text"):
            whole = getattr(weight_files.pathlib.Path, name)

            def counted(self, *args, whole=whole, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return whole(self, *args, **kwargs)

            monkeypatch.setattr(weight_files.pathlib.Path, name, counted)

    for count in range(40):
        folder, left = tmp_path / str(count), [10**6]
        models.save_hf(folder, model, old, max_shard_bytes=sizes[0])
        with monkeypatch.context() as monkeypatch:
            left = [count]
            changes()
            try:
                models.save_hf(folder, model, new, max_shard_bytes=sizes[1])
            except KeyboardInterrupt:
                pass
        killed, mark = left[0] < 0, folder / weight_files.MADE
        if mark.is_dir():
            refused(folder, f"mv {mark}/* {folder}/ && rmdir {mark}")
            stopped = shutil.copytree(folder, tmp_path / "stopped")
            models.save_hf(stopped, model, old, max_shard_bytes=sizes[1])  # saved again
            tiny.assert_trees_equal(models.load_hf(stopped)[1], old)
            shutil.rmtree(stopped)
            for path in mark.iterdir():  # as is said
                path.rename(folder / path.name)
            mark.rmdir()
        found = "refused"
        try:
            norm = models.load_hf(folder)[1]["norm"]["scale"]
            found = "old" if np.array_equal(norm, old["norm"]["scale"]) else "new"
        except InputError as error:
            assert "more than one set of weights" in str(error)  # by name, where only old ones were still to be removed
        seen.add(found)
        if not killed:
            break
    assert not killed and found == "new" and "old" in seen


@pytest.mark.parametrize(
    "dtype", [jnp.float32, np.float32, np.dtype("float32"), "float32", jnp.bfloat16, jnp.dtype("bfloat16")]
)
def test_a_dtype_is_a_name_a_type_or_an_object(saved, dtype):
    folder = saved[0]
    model, params = models.load_hf(folder, param_dtype=dtype, compute_dtype=dtype)
    named, same = models.load_hf(folder, param_dtype=jnp.dtype(dtype).name, compute_dtype=jnp.dtype(dtype).name)
    assert (
        model == named
        and hash(model) == hash(named)
        and model.param_dtype == model.compute_dtype == jnp.dtype(dtype).name
    )
    models.save_hf(folder, model, params)
    assert json.loads((folder / "config.json").read_text())["dtype"] == model.param_dtype
    tiny.assert_trees_equal(params, same)


@pytest.mark.parametrize("dtype", ["float33", "int8", jnp.int32, None, float, "torch.float32", 3.0])
def test_what_is_no_dtype_of_weights_is_refused(saved, dtype):
    for key in ("param_dtype", "compute_dtype"):
        with pytest.raises(InputError, match=f"{key}: got .*; legal are float32, bfloat16, float16"):
            models.load_hf(saved[0], **{key: dtype})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "name, value, dtype, said",
    [
        ("model.norm.weight", NAN, "float32", "holds 1 NaN of 16 numbers; it is damaged"),
        ("model.layers.1.mlp.up_proj.weight", -INF, "float32", "holds 1 infinite of 384 numbers"),
        ("model.embed_tokens.weight", NAN, "bfloat16", "holds 1 NaN of 384 numbers"),
        (
            "model.norm.weight",
            1e6,
            "float16",
            "holds numbers up to 1e+06, and float16 ends at 6.55e+04; read it in another",
        ),
        ("model.norm.weight", -1e30, "bfloat16", "holds numbers up to 1e+30, of which float32 does not hold the norm"),
        ("model.norm.weight", 6e4, "float16", None),
        ("model.norm.weight", 1e6, "bfloat16", None),
    ],
)
@pytest.mark.parametrize("stored", ["float32", "float64"])
def test_weights_that_are_no_numbers_are_refused(saved, name, value, dtype, said, stored):
    folder, tensors, write = saved
    tensors[name] = tensors[name].astype(stored)
    tensors[name].flat[7] = value
    write(tensors)
    models.check_hf(folder)
    if said is None:
        assert np.isfinite(np.asarray(models.load_hf(folder, param_dtype=dtype)[1]["norm"]["scale"], np.float32)).all()
        return
    with pytest.raises(InputError) as caught:
        models.load_hf(folder, param_dtype=dtype)
    assert str(caught.value).startswith(f"{folder / 'model.safetensors'}: {name} {said}")


def test_a_value_head_of_no_numbers_is_refused(saved):
    write = saved[2]
    write({"value_head.kernel": np.full(16, NAN, np.float32)}, "heads.safetensors")
    refused(saved[0], "heads.safetensors: value_head.kernel holds 16 NaN of 16 numbers")


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "half a length", "half a header", "one byte short"])
def test_a_truncated_file_is_refused(saved, keep):
    folder, _, _ = saved
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "safetensors")


def test_a_directory_without_weights_or_config_is_refused(saved):
    folder, _, _ = saved
    (folder / "model.safetensors").unlink()
    refused(folder, "no *.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "no config.json")
    refused(folder / "absent", "no config.json")


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("model_type", "bloom", "'bloom' is not supported; supported are codegen"),
        ("hidden_act", "tanh", "'tanh' is not supported"),
        ("attention_bias", True, "missing model.layers.0.self_attn.q_proj.bias"),
        ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1e4}, "longrope"),
    ],
)
def test_a_model_that_the_decoder_is_not_is_refused(saved, key, value, said):
    folder, _, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    refused(folder, said)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_a_config_that_is_none_is_refused(saved, text):
    folder, _, _ = saved
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_resolve_finds_directories_only(saved, tmp_path):
    folder, _, _ = saved
    assert models.resolve(str(folder)) == folder
    assert (
        models.resolve("") is None
        and models.resolve("random") is None
        and models.resolve(str(folder / "absent")) is None
    )
    (folder / "results.json").write_text("{}")
    assert models.resolve(str(folder)) == folder
    (folder / "config.json").write_text('{"config": {}}')
    assert models.resolve(str(folder)) is None  # a workdir's config.json is no model's


# ------------------------------------------------------------------ rotary positions


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_angles_that_are_looked_up_and_heads_turned_first_change_no_number(interleaved):
    rng, heads = np.random.default_rng(0), tiny.ARCH.num_heads
    positions = jnp.asarray(rng.integers(0, 40, (2, 7)), jnp.int32)
    x = jnp.asarray(rng.normal(size=(2, 7, heads, tiny.ARCH.head_dim + 2)), jnp.float32)
    computed = rotary.rotary_tables(tiny.ARCH, positions, local=False)
    known = rotary.rotary_tables(tiny.ARCH, positions, local=False, most=40)
    tiny.assert_trees_close(computed, known, rtol=1e-6, atol=1e-6)
    expected = rotary.rotate(x, *computed, interleaved=interleaved)
    got = rotary.rotate(x, *computed, interleaved=interleaved, heads_first=True)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(got[..., :-2], x[..., :-2])


def test_a_rotary_angle_beyond_those_that_are_known_is_no_number():
    positions = jnp.asarray([[0, 39, 40]], jnp.int32)
    for table in rotary.rotary_tables(tiny.ARCH, positions, local=False, most=40):
        np.testing.assert_array_equal(np.isnan(table[0]).all(-1), [False, False, True])
