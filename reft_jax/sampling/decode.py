"""Prefill and decode in one jitted function: read the prompts once, then a while_loop that stops when every response has ended.

What is sampled for (key, question, k) at response position t depends on nothing else: not on the other rows, nor on how
long the prompts were padded.
"""

import jax
import jax.numpy as jnp

from reft_jax import models
from reft_jax.config.settings import Sampling
from reft_jax.sampling.choose import choose, first_seen, now_seen
from reft_jax.types import Prompts, Sample


def sample(
    model, params, prompts: Prompts, key, *, max_new, sampling: Sampling, eos_ids, pad_id, num_samples=1
) -> Sample:
    """num_samples responses per prompt: Sample with B * num_samples rows, row i of prompt i // num_samples.

    Pure, to be jitted with everything but params, prompts and key static. The prompt is read once and its cache repeated. Stop
    strings are for those who have a tokenizer (the engine); sampling.max_new is not read.
    """
    batch, prompt_length = prompts.tokens.shape
    num_slots, rows = prompt_length + max_new, batch * num_samples
    slots = jnp.concatenate([prompts.mask, jnp.ones((batch, max_new), bool)], axis=1)
    cache = models.empty_cache(model, batch, num_slots)
    hidden, cache = models.forward(model, params, prompts.tokens, models.positions_of(prompts.mask), slots, cache)
    logits = models.unembed(model, params, hidden[:, -1])
    if num_samples > 1:
        logits, slots = (jnp.repeat(x, num_samples, axis=0) for x in (logits, slots))
        cache = cache.replace(
            k=tuple(jnp.repeat(x, num_samples, axis=0) for x in cache.k),
            v=tuple(jnp.repeat(x, num_samples, axis=0) for x in cache.v),
        )
    lengths = jnp.repeat(prompts.mask.sum(axis=1), num_samples)
    given = 0 if prompts.given is None else jnp.repeat(prompts.given, num_samples)
    seen = jnp.repeat(first_seen(sampling, prompts.tokens, prompts.mask, logits.shape[-1]), num_samples, axis=0)
    which = jnp.tile(jnp.arange(num_samples), batch)
    keys = jax.vmap(lambda index, k: jax.random.fold_in(jax.random.fold_in(key, index), k))(
        jnp.repeat(prompts.index, num_samples), which
    )
    ends = jnp.asarray(eos_ids, jnp.int32)

    def unfinished(state):
        t, *_, done = state
        return (t < max_new) & ~done.all()

    def step(state):
        t, logits, cache, seen, out, done = state
        place = jnp.broadcast_to(given + t, rows)
        now = jax.vmap(jax.random.fold_in)(keys, place)
        token, logp = choose(logits, now, sampling, ends=eos_ids, t=place, seen=seen)
        token, logp = jnp.where(done, pad_id, token), jnp.where(done, 0.0, logp)
        out = Sample(
            tokens=jax.lax.dynamic_update_slice_in_dim(out.tokens, token[:, None], t, axis=1),
            mask=jax.lax.dynamic_update_slice_in_dim(out.mask, ~done[:, None], t, axis=1),
            logp=jax.lax.dynamic_update_slice_in_dim(out.logp, logp[:, None], t, axis=1),
        )
        done = done | (token[:, None] == ends[None]).any(axis=1) | (place + 1 >= max_new)
        hidden, cache = models.forward(model, params, token[:, None], (lengths + t)[:, None], slots, cache)
        return t + 1, models.unembed(model, params, hidden[:, 0]), cache, now_seen(sampling, seen, token), out, done

    out = Sample(
        jnp.full((rows, max_new), pad_id, jnp.int32),
        jnp.zeros((rows, max_new), bool),
        jnp.zeros((rows, max_new), jnp.float32),
    )
    start = (jnp.zeros((), jnp.int32), logits, cache, seen, out, jnp.zeros((rows,), bool))
    return jax.lax.while_loop(unfinished, step, start)[4]


def check_given(given, lengths, max_new: int):
    """ValueError unless each prompt has more tokens than are given of its response, and fewer are given than it may have."""
    for i, (num, length) in enumerate(zip(given, lengths, strict=True)):
        if not 0 <= num < min(length, max_new):
            raise ValueError(
                f"prompt {i} has {length} tokens of which {num} are given as its response's; from 0 to {min(length, max_new) - 1} can be "
                f"(max_new is {max_new}, and a token must stand before them)"
            )
