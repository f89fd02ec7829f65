"""From logits to a token: temperature, top-k and top-p, and the log-probability under just that distribution."""

import jax
import jax.numpy as jnp

from reft_jax.models.decoder import MASKED


def sampling_logp(logits: jax.Array, *, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """f32[B, V] log-probabilities of the distribution that tokens are drawn from; excluded tokens get about -1e30.

    top_k 0 and top_p 1 are off; ties at the k-th place stay in. temperature must be > 0 (0 = greedy is `choose`'s).
    """
    logits = logits.astype(jnp.float32) / temperature
    if 0 < top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, MASKED, logits)
    if top_p < 1.0:
        ordered = -jnp.sort(-logits, axis=-1)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs  # a token stays while those above it hold less than top_p
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, MASKED, logits)
    return jax.nn.log_softmax(logits, axis=-1)


def choose(logits: jax.Array, keys: jax.Array, *, temperature: float, top_k: int, top_p: float):
    """(token i32[B], logp f32[B]): each row drawn with its own key (key[B]), so that a row does not depend on its neighbours.

    temperature 0 takes the most likely token; its logp is then that of the untempered distribution.
    """
    if temperature == 0.0:
        logp = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        token = jnp.argmax(logp, axis=-1)
    else:
        logp = sampling_logp(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (logits.shape[-1],), jnp.float32))(keys)
        token = jnp.argmax(logp + noise, axis=-1)
    return token.astype(jnp.int32), jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
