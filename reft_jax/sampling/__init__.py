"""Sampling responses from a model: `generate` for lists of token ids, `engine.Engine` for many prompts in slots,
`decode.sample` for one batch inside other jitted functions."""

import functools

import jax
import numpy as np

from reft_jax.config.settings import Sampling
from reft_jax.sampling import decode
from reft_jax.sampling.engine import Engine
from reft_jax.types import Prompts, Sample

FEW = 8  # responses that one batch draws; more take turns in SLOTS slots
SLOTS = 64

_sample = functools.partial(
    jax.jit, static_argnums=0, static_argnames=("max_new", "sampling", "eos_ids", "pad_id", "num_samples")
)(decode.sample)


def generate(
    model,
    params,
    prompts,
    key,
    *,
    max_new,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    forbidden=(),
    min_new=0,
    given=None,
    eos_id,
    num_samples=1,
) -> Sample:
    """Responses of at most max_new tokens to prompts (lists of token ids); row i belongs to prompt i // num_samples.

    eos_id: an id or several; a response ends with the first of them, which its mask includes. temperature 0 is greedy; the other
    settings are config.Sampling's. given: for each prompt, how many of its last tokens are the beginning of the response, which
    then goes on as if it had been sampled so far (they count in max_new and are not returned).
    Prompt i's sample k is a function of (key, i, k) alone. Arrays are [len(prompts) * num_samples, max_new]. Up to FEW responses are one
    batch; more are drawn in slots, where a response that ends makes room for the next.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("generate needs at least one prompt and at least one token in each")
    if given is not None:
        decode.check_given(given, [len(prompt) for prompt in prompts], max_new)
    eos_ids = tuple(int(i) for i in np.atleast_1d(np.asarray(eos_id)))
    length = -(-max(map(len, prompts)) // 16) * 16  # few distinct shapes, hence few compilations
    tokens, mask = np.zeros((len(prompts), length), np.int32), np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :], mask[row, length - len(prompt) :] = prompt, True
    given = None if given is None else np.asarray(given, np.int32)
    batch = Prompts(tokens, mask, np.arange(len(prompts), dtype=np.int32), given)
    sampling = Sampling(
        float(temperature), int(top_k), float(top_p), min_p, repetition_penalty, tuple(forbidden), min_new=min_new
    )
    how = dict(max_new=max_new, sampling=sampling, eos_ids=eos_ids, pad_id=0, num_samples=num_samples)
    if (rows := len(prompts) * num_samples) <= FEW:
        return _sample(model, params, batch, key, **how)
    return _engine(model, max_prompt=length, num_slots=min(rows, SLOTS), **how)(params, batch, key)


_engine = functools.lru_cache(maxsize=8)(Engine)
