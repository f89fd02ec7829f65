"""Every family against transformers: logits, decoding, gradients, files; and what is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import masked, models, sampling
from reft_jax.config import choices
from reft_jax.errors import InputError
from reft_jax.losses import nll
from reft_jax.training import scoring
from reft_jax.types import Batch, Outputs, Prompts
from tests import families, tiny

pytest.importorskip("torch")

LENGTH = 30
TOKENS = np.random.default_rng(0).integers(0, families.VOCAB, (3, LENGTH)).astype(np.int32)
LENGTHS = [LENGTH, 17, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """case -> a directory that transformers wrote."""

    @functools.cache
    def make(case):
        path = tmp_path_factory.mktemp("hf")
        families.theirs(case).save_pretrained(path)
        return path

    return make


def relative_error(got, expected):
    assert np.std(expected) > 0.3  # else closeness would say nothing
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


def first_wrong_layer(model, params, theirs, tokens):
    """Says after which layer the states part: (layer, relative error) of the first over 2e-5."""
    import torch

    with torch.no_grad():
        out = theirs(torch.tensor(tokens, dtype=torch.long), output_hidden_states=True)
    base = theirs.base_model
    norm = getattr(base, "norm", None) or getattr(base, "ln_f", None) or base.decoder.final_layer_norm
    mask = np.ones(tokens.shape, bool)
    for num in range(1, model.arch.num_layers + 1):
        arch = dataclasses.replace(model.arch, num_layers=num, windows=model.arch.windows[:num])
        cut = params | {"blocks": jax.tree.map(lambda x, num=num: x[:num], params["blocks"])}
        hidden, _ = models.forward(dataclasses.replace(model, arch=arch), cut, tokens, models.positions_of(mask), mask)
        with torch.no_grad():
            states = out.hidden_states[num]
            expected = (states if num == model.arch.num_layers else norm(states)).numpy()
        error = np.abs(np.asarray(hidden) - expected).max() / np.abs(expected).max()
        if error > 2e-5:
            return num, error
    return None


@pytest.mark.parametrize("case", families.CASES)
def test_logits_equal_transformers_on_ragged_batches(case, folder):
    theirs = families.theirs(case)
    model, params = models.load_hf(folder(case))
    assert model.arch.family == case.split()[0]
    for side in ("none", "left", "right"):
        mask = tiny.lengths_mask(LENGTHS if side != "none" else [LENGTH] * 3, LENGTH, left=side == "left")
        expected, got = families.logits(theirs, TOKENS, mask)[mask], models.logits(model, params, TOKENS, mask)
        error = relative_error(np.asarray(got)[mask], expected)
        assert error < 2e-5, (side, error, first_wrong_layer(model, params, theirs, TOKENS))


def test_the_layer_by_layer_comparison_finds_the_wrong_layer(folder):
    model, params = models.load_hf(folder("gemma2"))
    theirs = families.theirs("gemma2")
    assert first_wrong_layer(model, params, theirs, TOKENS) is None
    spoiled = jax.tree.map(jnp.copy, params)
    spoiled["blocks"]["mlp"]["up"]["kernel"] = params["blocks"]["mlp"]["up"]["kernel"].at[1, 0].multiply(1.1)
    assert first_wrong_layer(model, spoiled, theirs, TOKENS)[0] == 2


def cached(model, params, tokens, mask, cut):
    """Logits of a left-padded batch read as a prompt of `cut` tokens and then token by token."""
    positions, cache = models.positions_of(mask), models.empty_cache(model, *tokens.shape)
    hidden, cache = models.forward(model, params, tokens[:, :cut], positions[:, :cut], mask, cache)
    out = [models.unembed(model, params, hidden)]

    def step(cache, at):
        token, position = at
        hidden, cache = models.forward(model, params, token[:, None], position[:, None], mask, cache)
        return cache, models.unembed(model, params, hidden)[:, 0]

    _, rest = jax.lax.scan(step, cache, (tokens[:, cut:].T, positions[:, cut:].T))
    return jnp.concatenate([*out, rest.swapaxes(0, 1)], axis=1)


@pytest.mark.parametrize("case", families.CASES)
def test_cached_decode_equals_the_full_forward(case, folder):
    model, params = models.load_hf(folder(case))
    mask = tiny.lengths_mask([LENGTH, 22, 27], LENGTH, left=True)
    got = jax.jit(functools.partial(cached, model, cut=12))(params, TOKENS, mask)
    expected = models.logits(model, params, TOKENS, mask)
    assert relative_error(np.asarray(got)[mask], np.asarray(expected)[mask]) < 1e-5


@pytest.mark.parametrize("case", families.CASES)
def test_greedy_continuations_are_transformers(case, folder):
    import torch

    theirs = families.theirs(case)
    model, params = models.load_hf(folder(case))
    prompts = [TOKENS[row, :length].tolist() for row, length in enumerate([14, 5, 9])]
    got = sampling.generate(
        model, params, prompts, jax.random.key(0), max_new=14, temperature=0.0, eos_id=families.VOCAB
    )
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=14,
            min_new_tokens=14,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert np.asarray(got.tokens[row]).tolist() == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", families.CASES)
def test_a_window_forgets_what_is_past_its_edge(case, folder):
    """The logits at the end depend on the first token exactly where some layer sees everything."""
    model, params = models.load_hf(folder(case))
    changed = TOKENS.copy()
    changed[:, 0] = (changed[:, 0] + 1) % families.VOCAB
    a, b = (np.asarray(models.logits(model, params, tokens)) for tokens in (TOKENS, changed))
    reach = sum(window - 1 for window in model.arch.windows)  # how far back layers with windows can see between them
    sees_all = not model.arch.windows or 0 in model.arch.windows
    assert (np.abs(a - b)[:, -1].max() > 0) == (sees_all or reach >= LENGTH - 1)
    if not sees_all:
        assert np.abs(a - b)[:, reach].max() > 0 and not np.abs(a - b)[:, reach + 1 :].any()


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("case", ["llama tied with biases", "opt", "gemma2", "codegen"])
def test_gradients_of_an_sft_step_are_those_of_autograd(case, folder):
    import torch

    theirs = families.theirs(case)
    model, params = models.load_hf(folder(case))
    prompt, total = 10, 24
    mask = np.ones((3, total - prompt), bool)
    prompts = Prompts(TOKENS[:, :prompt], np.ones((3, prompt), bool), np.arange(3, dtype=np.int32))

    def loss(params):
        hidden = scoring.outputs(model, params, Batch(prompts, TOKENS[:, prompt:total], mask), needs=("hidden",)).hidden
        logp, _ = models.token_logp(model, params, hidden, TOKENS[:, prompt:total])
        return nll.Loss()(Outputs(logp=logp), None, masked.Mean(mask, "token"))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    theirs.zero_grad()
    logits = theirs(torch.tensor(TOKENS[:, :total], dtype=torch.long)).logits[:, prompt - 1 : total - 1]
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, families.VOCAB), torch.tensor(TOKENS[:, prompt:total], dtype=torch.long).reshape(-1)
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    there = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    table = choices.module("models/families", model.arch.family).table(model.arch)
    for path, weight in table.items():
        ours = models.hf._at(grads, path)
        names = models.hf._names(weight, model.arch.num_layers)
        took = np.stack(
            [weight.take(there[name]).reshape(ours.shape[-len(ours.shape) + ("{}" in weight.name) :]) for name in names]
        )
        took = took if "{}" in weight.name else took[0]
        scale = max(np.abs(took).max(), 1e-3)
        np.testing.assert_allclose(np.asarray(ours) / scale, took / scale, atol=1e-4, err_msg=str(path))


# ------------------------------------------------------------------ in and out


@pytest.mark.parametrize("case", families.CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_round_trip_is_bit_equal(case, dtype, folder, tmp_path):
    """Files that transformers wrote, read and written again: every tensor the same, the config understood alike by both."""
    import transformers
    from safetensors.numpy import load_file

    source = folder(case)
    if dtype == "bfloat16":
        source = tmp_path / "source"
        families.theirs(case).to(dtype=_torch_dtype(dtype)).save_pretrained(source)
        families.theirs.cache_clear()
    model, params = models.load_hf(source, param_dtype=dtype)
    assert all(x.dtype == dtype for x in jax.tree.leaves(params))
    models.save_hf(tmp_path / "out", model, params)
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.tobytes() == after[name].tobytes(), name
    assert models.read_config(tmp_path / "out") == model.arch
    if dtype == "float32":
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
        np.testing.assert_allclose(
            families.logits(again, TOKENS), families.logits(families.theirs(case), TOKENS), rtol=1e-5, atol=1e-5
        )


def _torch_dtype(name):
    import torch

    return getattr(torch, name)


@pytest.mark.parametrize("case", ["gpt2", "codegen", "gemma2"])
def test_every_element_of_a_file_has_one_place(case, folder):
    """The tables' views cover each tensor exactly once, fused ones too."""
    model, _ = models.load_hf(folder(case))
    seen = {}
    for weight in choices.module("models/families", model.arch.family).table(model.arch).values():
        for name in models.hf._names(weight, model.arch.num_layers):
            count = seen.setdefault(name, np.zeros(weight.shape, int))
            weight.take(count)[...] += 1
    assert all((count == 1).all() for count in seen.values())


@pytest.mark.parametrize("case", families.CASES)
def test_files_without_the_prefix_are_read(case, folder, tmp_path):
    """What a base model's class saved: no `model.` or `transformer.` before the names, and no output embedding if tied."""
    from safetensors.numpy import load_file, save_file

    source, prefix = folder(case), choices.module("models/families", case.split()[0]).PREFIX
    tensors = load_file(source / "model.safetensors")
    save_file({name.removeprefix(prefix): x for name, x in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    tiny.assert_trees_equal(models.load_hf(tmp_path)[1], models.load_hf(source)[1])


def test_a_stored_tied_output_embedding_must_repeat_the_other(folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder("gpt2") / "model.safetensors")
    (tmp_path / "config.json").write_text((folder("gpt2") / "config.json").read_text())
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)  # the causal mask that old files hold
    save_file(tensors, tmp_path / "model.safetensors")
    models.load_hf(tmp_path)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="lm_head.weight differs from transformer.wte.weight"):
        models.load_hf(tmp_path)


def test_several_files_with_an_index_are_written_and_read(folder, tmp_path):
    model, params = models.load_hf(folder("qwen3"))
    models.save_hf(tmp_path, model, params, max_shard_bytes=6000)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    tiny.assert_trees_equal(models.load_hf(tmp_path)[1], params)
    (tmp_path / "leftover.safetensors").write_bytes(b"not named in the index, so not read")
    tiny.assert_trees_equal(models.load_hf(tmp_path)[1], params)
    import transformers

    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    np.testing.assert_allclose(
        families.logits(again, TOKENS), families.logits(families.theirs("qwen3"), TOKENS), rtol=1e-5, atol=1e-5
    )
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match=f"names files that are not there: {names[1]}"):
        models.load_hf(tmp_path)


def test_pickled_weights_are_refused_with_how_to_convert_them(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder("opt") / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(InputError, match=r"only pytorch_model.bin: .*save_pretrained"):
        models.load_hf(tmp_path)


@pytest.mark.parametrize(
    "mesh", [pytest.param("one", marks=pytest.mark.slow), pytest.param("fsdp", marks=pytest.mark.slow), "mixed"]
)
def test_a_vocabulary_padded_for_sharding_is_never_likely_and_never_written(mesh, folder, tmp_path):
    """31 rows padded to a multiple of 8 are 32, on every mesh: a checkpoint of one is read on another."""
    layout = tiny.layout(mesh)
    alone, params = models.load_hf(folder("codegen"))
    model = models.Model(alone.arch, layout=layout, vocab_multiple=8)
    assert model.num_rows == 32
    shardings = models.param_shardings(model, models.shapes(model))
    _, spread = models.load_hf(folder("codegen"), shardings=shardings, layout=layout, vocab_multiple=8)
    assert spread["embed"]["kernel"].shape[0] == spread["unembed"]["kernel"].shape[1] == 32
    rows_here = spread["embed"]["kernel"].addressable_shards[0].data.shape[0]
    assert rows_here == (16 if mesh == "mixed" else 32)  # over 2 parts of `tensor`
    tokens = np.tile(TOKENS, (3, 1))[:8]
    np.testing.assert_allclose(
        models.logits(model, spread, tokens), models.logits(alone, params, tokens), rtol=1e-5, atol=1e-5
    )
    hidden = jnp.ones((1, 1, alone.arch.dim))
    assert (np.asarray(models.unembed(model, spread, hidden))[..., families.VOCAB :] < -1e29).all()
    logp, entropy = models.token_logp(model, spread, hidden, jnp.ones((1, 1), jnp.int32))
    assert np.isfinite(logp).all() and np.isfinite(entropy).all()
    models.save_hf(tmp_path, model, spread)
    tiny.assert_trees_equal(models.load_hf(tmp_path)[1], params)


def test_a_padded_vocabulary_is_padded_at_the_start_too():
    model = tiny.model("mixed", dataclasses.replace(tiny.ARCH, vocab_size=23), vocab_multiple=4)
    params = models.init(model, jax.random.key(0))
    assert params["embed"]["kernel"].shape[0] == 24
    assert models.logits(model, params, np.zeros((8, 3), np.int32)).shape == (8, 3, 23)
    tokens = [[1, 2, 3]] * 8
    drawn = sampling.generate(model, params, tokens, jax.random.key(0), max_new=40, eos_id=23)
    assert np.asarray(drawn.tokens).max() < 23


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "case, change, said",
    [
        ("llama", {"model_type": "bloom"}, "'bloom' is not supported; supported are codegen, gemma2"),
        ("llama", {"hidden_act": "tanh"}, "the activation 'tanh' is not supported; supported are silu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic'",
        ),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False; only True"),
        ("opt", {"word_embed_proj_dim": 8}, "word_embed_proj_dim is 8; only 16"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("codegen", {"n_head": 2}, "n_head is 2"),
        ("gemma2", {"attention_bias": True}, "attention_bias is True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("qwen2", {"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "chunked_attention"),
        ("qwen2", {"num_hidden_layers": "three"}, "it does not describe a qwen2 model"),
        ("llama", {"model_type": ["llama"]}, "['llama'] is not supported"),
        ("gpt2", {"n_head": 0}, "it does not describe a gpt2 model (ZeroDivisionError"),
        ("codegen", {"rotary_dim": 16}, "rotary_dim: got 16; it must be at most head_dim = 8"),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window is None"),
    ],
)
def test_a_config_that_the_decoder_does_not_do_is_refused(case, change, said, folder, tmp_path):
    config = json.loads((folder(case) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError) as caught:
        models.read_config(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


def test_rope_scaling_is_written_in_the_words_of_older_programs_too(folder, tmp_path):
    """transformers 4 and what is built on it read rope_theta and rope_scaling, and would leave the scaling out unseen."""
    model, params = models.load_hf(folder("llama with llama3 scaling"))
    models.save_hf(tmp_path, model, params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == families.LLAMA3["rope_theta"] and written["torch_dtype"] == "float32"
    assert written["rope_scaling"] == {key: x for key, x in families.LLAMA3.items() if key != "rope_theta"}
    model, params = models.load_hf(folder("gemma3_text"))
    models.save_hf(tmp_path, model, params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["rope_theta"], written["rope_local_base_freq"]) == (families.LINEAR["rope_theta"], 50.0)
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize("heads", [{"value_head.kernel": np.zeros(5, np.float32)}, {"value_head.bias": np.float32(1)}])
def test_a_value_head_of_another_model_is_refused(heads, folder, tmp_path):
    from safetensors.numpy import save_file

    model, params = models.load_hf(folder("opt"))
    models.save_hf(tmp_path, model, params)
    save_file({name: np.asarray(x) for name, x in heads.items()}, tmp_path / "heads.safetensors")
    for read in (models.check_hf, models.load_hf):
        with pytest.raises(InputError, match="a value head of this model is"):
            read(tmp_path)
