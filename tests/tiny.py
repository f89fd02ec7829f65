"""What several tests share: the folder of real data, and small models, layouts and batches."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.config import choices, records
from reft_jax.config import settings as settings_lib
from reft_jax.data import files
from reft_jax.losses import nll
from reft_jax.mesh import sharding
from reft_jax.sampling import decode
from reft_jax.stages import reft
from reft_jax.training import reinforce
from reft_jax.training.update import make_update
from reft_jax.types import Batch, Prompts

VOCAB = 24
EOS = 1
PAD = 0
# Every size divides by 8 where fsdp lays it out and by 2 where tensor does; grouped-query attention; init_std is large, so
# that logits differ between tokens.
ARCH = settings_lib.Arch(
    vocab_size=VOCAB,
    dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffn_dim=24,
    rope_theta=100.0,
    norm_eps=1e-5,
    tie_embeddings=True,
    init_std=0.3,
)
RULES = settings_lib.RULES
NLL = (nll.Loss(),)
LAYOUTS = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (1, 8, 1), "mixed": (2, 2, 2)}


def shared_data() -> pathlib.Path:
    """The folder of real data sets (`REFT_DATA`, or ../shared/data beside the checkout); skips the test without it."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = pathlib.Path(os.environ.get("REFT_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder of real data at {folder} (set REFT_DATA)")
    return folder


def read(task: str, path, *, cot: str = "nl", split: str = "train", calculator_marks: str = "strip", complaints=None):
    """The records of one file as training reads them: a dev split, caps and overlaps aside."""
    data = settings_lib.Data(task=task, cot=cot, calculator_marks=calculator_marks)
    raw = files.read_raw(path, complaints=complaints)
    return choices.load("tasks", task)().read(raw, data, split=split, complaints=complaints)


@functools.cache
def layout(name: str = "one") -> sharding.Layout:
    """One of LAYOUTS on as many of the 8 devices as it takes."""
    data, fsdp, tensor = LAYOUTS[name]
    return sharding.make_layout(settings_lib.Mesh(data, fsdp, tensor, RULES), jax.devices()[: data * fsdp * tensor])


def model(where: str | None = "one", arch=ARCH, **changes) -> models.Model:
    """The tiny model on a layout (None = without one)."""
    return models.Model(arch, layout=where and layout(where), **changes)


@functools.cache
def _host_params(arch, seed):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return rng.normal(1.0, 0.2, leaf.shape).astype(np.float32)
        return rng.normal(0.0, arch.init_std, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, models.shapes(models.Model(arch)))


def params(model, seed: int = 0, *, value_head: bool = False) -> dict:
    """Random float32 parameters of the model on its layout, the same on every layout; the norms' scales are moved off 1."""

    tree = dict(_host_params(model.arch, seed))
    if value_head:
        rng = np.random.default_rng(seed)
        tree["value_head"] = {"kernel": rng.normal(size=model.arch.dim).astype(np.float32) / 4, "bias": np.float32(0.3)}
    if model.layout is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(
        lambda x, place: jax.device_put(jnp.asarray(x), place), tree, models.param_shardings(model, tree)
    )


def lengths_mask(lengths, size: int, *, left: bool) -> np.ndarray:
    """bool[B, size] with so many True in each row, at its right end if left-padded."""
    places, lengths = np.arange(size)[None], np.asarray(lengths)[:, None]
    return places >= size - lengths if left else places < lengths


def random_prompts(rng, lengths, size: int) -> Prompts:
    """Left-padded prompts of random tokens (host arrays); the padding holds random tokens too."""
    batch = len(lengths)
    return Prompts(
        rng.integers(2, VOCAB, (batch, size)).astype(np.int32),
        lengths_mask(lengths, size, left=True),
        np.arange(batch, dtype=np.int32),
    )


def sft_batch(rng, prompt_lengths, response_lengths, prompt_size=6, response_size=7) -> Batch:
    batch = len(prompt_lengths)
    return Batch(
        random_prompts(rng, prompt_lengths, prompt_size),
        rng.integers(1, VOCAB, (batch, response_size)).astype(np.int32),
        lengths_mask(response_lengths, response_size, left=False),
    )


def ppo_batch(rng, prompt_lengths, response_lengths, prompt_size=6, response_size=7, fill=0.0) -> Batch:
    """Random numbers for old log-probs, values, advantages and returns; `fill` where the mask is False."""
    base = sft_batch(rng, prompt_lengths, response_lengths, prompt_size, response_size)

    def numbers(mean, std):
        return np.where(base.mask, rng.normal(mean, std, base.mask.shape), fill).astype(np.float32)

    return base.put(
        old_logp=numbers(-3.0, 0.5),
        old_values=numbers(0.3, 0.5),
        adv=numbers(0.0, 1.0),
        returns=numbers(0.3, 0.7),
    )


def word_tokenizer(words=("one", "two", "three", "four", "five")):
    """A word-level tokenizer of text made of these words, each with a space before it."""
    from reft_jax.data import tokenizer as tokenizers

    return tokenizers.build_word(r" \w+", [f" {word}" for word in words])


def optim(lr=0.01, use="adamw", **changes):
    """An optimizer of the room, AdamW at a constant rate unless said otherwise."""
    return records.build(choices.load("optim", use), dict(lr=lr) | changes, "optim")


# The paper's settings with a minibatch of 8 rows, by short names.
PPO = dict(
    kl_coef=0.05,
    kl_in="reward",
    gamma=1.0,
    lam=0.95,
    whiten=True,
    clip=0.2,
    clip_high=0.0,
    advantage="gae",
    critic="shared",
    value_init="normal",
    value_bias=True,
    value_coef=5.0,
    value_clip=0.2,
    reduce="sequence",
    epochs=2,
    minibatch_size=8,
    accumulate=1,
    correction="none",
    importance_cap=2.0,
)


def ppo(**changes) -> reft.Stage:
    """A reft stage with `PPO`'s settings and these changes; what is said of a critic is for gae alone."""
    assert changes.keys() <= PPO.keys(), changes
    given = PPO | changes

    def some(**names):
        return {key: given[name] for key, name in names.items()}

    advantage = some(use="advantage") | dict(kl={"in": given["kl_in"], "coef": given["kl_coef"]})
    if given["advantage"] == "gae":
        critic = some(trunk="critic", init="value_init", bias="value_bias", coef="value_coef", clip="value_clip")
        advantage |= some(gamma="gamma", lam="lam", whiten="whiten") | dict(critic=critic)
    passes = ("minibatch_size", "epochs", "accumulate", "correction", "importance_cap")
    tree = dict(init_from="random", epochs=1.0, batch_size=given["minibatch_size"], num_samples=2, optim=dict(lr=0.01))
    tree |= dict(advantage=advantage, losses=dict(policy=some(clip="clip", clip_high="clip_high")))
    tree |= dict(reduce=given["reduce"], ppo={name: given[name] for name in passes})
    return records.build(reft.Stage, tree, "config.stages.reft")


def ppo_step(model, tx, params, stage: reft.Stage, **more):
    """`make_update` as a reft stage calls it."""
    return make_update(model, tx, params, stage.objective, name="ppo", **stage.how, **more)


def sft_step(model, tx, params, losses=NLL, **how):
    """`make_update` as an sft stage calls it."""
    return make_update(model, tx, params, losses, name="sft", **(dict(reduce="token") | how))


def advantages(stage: reft.Stage):
    """`make_advantages` as the stage calls it."""
    how = dict(importance_cap=stage.importance_cap, keep_reference=stage.keeps_reference)
    return reinforce.make_advantages(stage.advantage, **how)


def assert_trees_close(a, b, *, rtol=1e-5, atol=1e-6):
    """Two trees of the same structure with numbers alike; says where the first difference is."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
        )


def assert_trees_equal(a, b):
    """Bit for bit: structure, dtypes and values."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def sampler(model, sampling, *, max_new: int, eos_ids: tuple[int, ...], pad_id: int, num_samples: int = 1):
    """The plain sampler, jitted: (params, Prompts, key) -> Sample of B * num_samples rows."""
    return jax.jit(
        functools.partial(
            decode.sample,
            model,
            max_new=max_new,
            sampling=sampling,
            eos_ids=eos_ids,
            pad_id=pad_id,
            num_samples=num_samples,
        )
    )
