"""Prefill and decode in one jitted function: read the prompts once, then a while_loop that stops when every response has ended.

What is sampled for (key, question, k) at response position t depends on nothing else: not on the other rows, nor on how
long the prompts were padded.
"""

import jax
import jax.numpy as jnp

from reft_jax import models
from reft_jax.sampling.choose import choose
from reft_jax.types import Prompts, Sample


def sample(
    model, params, prompts: Prompts, key, *, max_new, temperature, top_k, top_p, eos_ids, pad_id, num_samples=1
) -> Sample:
    """num_samples responses per prompt: Sample with B * num_samples rows, row i of prompt i // num_samples.

    Pure, to be jitted with everything but params, prompts and key static. The prompt is read once and its cache repeated.
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
    which = jnp.tile(jnp.arange(num_samples), batch)
    keys = jax.vmap(lambda index, k: jax.random.fold_in(jax.random.fold_in(key, index), k))(
        jnp.repeat(prompts.index, num_samples), which
    )
    ends = jnp.asarray(eos_ids, jnp.int32)

    def unfinished(state):
        t, _, _, _, done = state
        return (t < max_new) & ~done.all()

    def step(state):
        t, logits, cache, out, done = state
        here = jax.vmap(lambda k: jax.random.fold_in(k, t))(keys)
        token, logp = choose(logits, here, temperature=temperature, top_k=top_k, top_p=top_p)
        token, logp = jnp.where(done, pad_id, token), jnp.where(done, 0.0, logp)
        out = Sample(
            tokens=jax.lax.dynamic_update_slice_in_dim(out.tokens, token[:, None], t, axis=1),
            mask=jax.lax.dynamic_update_slice_in_dim(out.mask, ~done[:, None], t, axis=1),
            logp=jax.lax.dynamic_update_slice_in_dim(out.logp, logp[:, None], t, axis=1),
        )
        done = done | (token[:, None] == ends[None]).any(axis=1)
        hidden, cache = models.forward(model, params, token[:, None], (lengths + t)[:, None], slots, cache)
        return t + 1, models.unembed(model, params, hidden[:, 0]), cache, out, done

    out = Sample(
        jnp.full((rows, max_new), pad_id, jnp.int32),
        jnp.zeros((rows, max_new), bool),
        jnp.zeros((rows, max_new), jnp.float32),
    )
    start = (jnp.zeros((), jnp.int32), logits, cache, out, jnp.zeros((rows,), bool))
    return jax.lax.while_loop(unfinished, step, start)[3]
