"""Sampling responses from a model: `generate` for lists of token ids, `engine.Engine` for many prompts in slots,
`decode.sample` for one batch inside other jitted functions."""

import functools

import jax
import numpy as np

from reft_jax.sampling import decode
from reft_jax.types import Prompts, Sample

_sample = functools.partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("max_new", "temperature", "top_k", "top_p", "eos_ids", "pad_id", "num_samples"),
)(decode.sample)


def generate(
    model, params, prompts, key, *, max_new, temperature=1.0, top_k=0, top_p=1.0, eos_id, num_samples=1
) -> Sample:
    """Responses of at most max_new tokens to prompts (lists of token ids); row i belongs to prompt i // num_samples.

    eos_id: an id or several; a response ends with the first of them, which its mask includes. temperature 0 is greedy.
    Prompt i's sample k is a function of (key, i, k) alone. Arrays are [len(prompts) * num_samples, max_new].
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("generate needs at least one prompt and at least one token in each")
    eos_ids = tuple(int(i) for i in np.atleast_1d(np.asarray(eos_id)))
    length = -(-max(map(len, prompts)) // 16) * 16  # few distinct shapes, hence few compilations
    tokens, mask = np.zeros((len(prompts), length), np.int32), np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :], mask[row, length - len(prompt) :] = prompt, True
    batch = Prompts(tokens, mask, np.arange(len(prompts), dtype=np.int32))
    return _sample(
        model,
        params,
        batch,
        key,
        max_new=max_new,
        temperature=float(temperature),
        top_k=int(top_k),
        top_p=float(top_p),
        eos_ids=eos_ids,
        pad_id=0,
        num_samples=num_samples,
    )
