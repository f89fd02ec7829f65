"""What states say of tokens: logits, and of distributions over the vocabulary what losses read, a few positions at a time."""

import functools

import jax
import jax.numpy as jnp

from reft_jax.models import decoder
from reft_jax.models.attention import MASKED, on_cpu, soft_cap
from reft_jax.models.decoder import wide
from reft_jax.models.products import product


def unembed(model: decoder.Model, params, hidden) -> jax.Array:
    """Logits f32[..., num_rows] of hidden [..., D]; rows past the vocabulary, and past the tokenizer's ids, are never likely."""
    arch, dtype = model.arch, jnp.dtype(model.compute_dtype)
    kernel = params["embed"]["kernel"].T if arch.tie_embeddings else params["unembed"]["kernel"]
    out = product(hidden, kernel.astype(dtype), dtype=jnp.float32, wide=on_cpu(model))
    if not arch.tie_embeddings and arch.unembed_bias:
        out = out + wide(params["unembed"]["bias"].astype(jnp.float32), out)
    out = soft_cap(out, arch.logit_softcap)
    num = min(model.num_ids or arch.vocab_size, arch.vocab_size)
    if model.num_rows > num:
        out = out + wide(jnp.where(jnp.arange(model.num_rows) < num, 0.0, MASKED), out)
    return out


def token_outputs(
    model: decoder.Model, params, hidden, tokens, *, temperature: float = 1.0, reference=None
) -> dict[str, jax.Array]:
    """ "logp" and "entropy" f32[B, R] of tokens i32[B, R] given the states hidden [B, R, D] that emit them, of softmax(logits / temperature);
    with `reference`, another's (model, params, hidden), also "ref_logp" and "ref_kl", KL(this || the reference's) over the vocabulary.

    Logits exist for `logits_chunk` positions at a time, also in the backward pass: [B, R, V] float32 would be the memory peak.
    """

    def distribution(model, params, hidden):
        logits = unembed(model, params, hidden)
        return jax.nn.log_softmax(logits if temperature == 1.0 else logits / temperature)

    def chunk(args):
        hidden, tokens, *others = args
        logp = distribution(model, params, hidden)

        def of(logp):
            return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]

        out = {"logp": of(logp), "entropy": -(jnp.exp(logp) * logp).sum(-1)}
        if reference is not None:
            ref = distribution(*reference[:2], *others)
            out |= {"ref_logp": of(ref), "ref_kl": (jnp.exp(logp) * (logp - ref)).sum(-1)}
        return out

    rows = (hidden, tokens, *(reference or ())[2:])
    length, size = tokens.shape[1], model.logits_chunk
    if length <= size:
        return chunk(rows)
    num = -(-length // size)
    size = -(-length // num)  # no more padding than it takes

    def cut(x):
        padded = jnp.pad(x, ((0, 0), (0, num * size - length)) + ((0, 0),) * (x.ndim - 2))
        return padded.reshape(len(x), num, size, *x.shape[2:]).swapaxes(0, 1)

    out = jax.lax.map(jax.checkpoint(chunk), jax.tree.map(cut, rows))
    return {name: x.swapaxes(0, 1).reshape(len(tokens), -1)[:, :length] for name, x in out.items()}


def token_logp(
    model: decoder.Model, params, hidden, tokens, *, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(logp, entropy) of `token_outputs`."""
    out = token_outputs(model, params, hidden, tokens, temperature=temperature)
    return out["logp"], out["entropy"]


def logits(model: decoder.Model, params, tokens, mask=None) -> jax.Array:
    """f32[B, T, V] next-token logits of tokens i32[B, T]; mask bool[B, T] (None = all real), left- or right-padded."""
    mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    tokens = jnp.asarray(tokens)
    return _logits(model, params, tokens, mask)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, mask):
    hidden, _ = decoder.forward(model, params, tokens, decoder.positions_of(mask), mask)
    return unembed(model, params, hidden)[..., : model.arch.vocab_size]
