"""The re-ranker's head: one logit of "the answer is right" from the state at a sequence's last token. It lives in the decoder's
parameter tree, under "classifier"; the decoder ignores it."""

import jax
import jax.numpy as jnp

from reft_jax.models import decoder


def classifier_axes() -> dict:
    """Logical axis names of the head's parameters."""
    return {"kernel": ("embed",), "bias": ()}


def init_classifier(model, key) -> dict:
    """A linear map D -> 1: kernel f32[D] with the decoder's init_std, bias f32[] of 0."""
    return {"kernel": model.arch.init_std * jax.random.normal(key, (model.arch.dim,)), "bias": jnp.zeros(())}


def classify(params, hidden, mask) -> jax.Array:
    """f32[B] logits of hidden [B, T, D] at the last True of each row of mask bool[B, T], in float32."""
    head, last = params["classifier"], mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    states = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return jnp.einsum("bd,d->b", states, head["kernel"]) + head["bias"]


def make_classifier_score(model):
    """(params, tokens i32[B, T], mask bool[B, T]) -> f32[B] logits of "the answer is right"."""

    def score(params, tokens, mask):
        hidden, _ = decoder.forward(model, params, tokens, decoder.positions_of(mask), mask)
        return classify(params, hidden, mask)

    return jax.jit(score)
