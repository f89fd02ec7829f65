"""The re-ranker's loss: cross-entropy of "the answer is right" (ReFT, arXiv 2401.08967, section 4.3).

loss = mean of -log sigmoid(logit) where right, -log(1 - sigmoid(logit)) elsewhere, over responses.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax.config.setting import setting


def cross_entropy(logits: jax.Array, right: jax.Array) -> jax.Array:
    """f32[] of logits f32[B] and right bool[B]."""
    return jax.nn.softplus(jnp.where(right, -logits, logits)).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Metrics: the accuracy of logit > 0 (P(right) > 1/2), and the share of right ones."""

    coef: float = setting(0, default=1.0)

    needs = ("right_logits",)
    reads = ("right",)
    together = "row"

    def __call__(self, out, batch, mean):
        return cross_entropy(out.right_logits, batch.right), {
            "reranker/accuracy": ((out.right_logits > 0) == batch.right).astype(jnp.float32).mean(),
            "reranker/right": batch.right.astype(jnp.float32).mean(),
        }
