"""Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024), as scaled in arXiv 2502.16982.

direction = rms sqrt(max(n, m)) U V^T of each layer's n x m matrices, where U S V^T is the singular value decomposition of the gradients' mean,
with Nesterov's look-ahead. From X of Frobenius norm 1, a few Newton-Schulz steps X <- 3.4445 X - 4.7750 X X^T X + 2.0315 (X X^T)^2 X come
near U V^T (most singular values become 0.6 to 1.2). With rms = 0.2 a direction is as large as AdamW's, and AdamW's lr and weight
decay serve. Embeddings, the unembedding, norms, biases and heads take AdamW (b1, b2, eps). Attention's heads are one axis of a
matrix, and of adapters A and B are matrices.
"""

import dataclasses
import math

import jax
import optax
import optax.contrib

from reft_jax.config.records import setting
from reft_jax.optim import base, matrices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(base.Settings):
    momentum: float = setting(0, 1, default=0.95)
    nesterov: bool = setting(default=True)
    newton_schulz: int = setting(1, default=5)  # steps
    rms: float = setting(above=0, default=0.2)  # of a direction's entries, about
    b1: float = setting(0, 1, default=0.9)  # AdamW's, for what is no matrix
    b2: float = setting(0, 1, default=0.999)
    eps: float = setting(above=0, default=1e-8)
    mu_dtype: str = setting(one_of=("", "float32", "bfloat16"), default="")  # of first moments; "" = as `adamw.py`

    def direction(self) -> optax.GradientTransformation:
        def scaled(path, leaf):
            sizes = [math.prod(leaf.shape[axis] for axis in group) for group in matrices.axes(path, leaf.ndim)]
            return self.rms * math.sqrt(max(sizes)) * leaf

        matrix = optax.chain(
            optax.contrib.scale_by_muon(
                beta=self.momentum,
                nesterov=self.nesterov,
                ns_steps=self.newton_schulz,
                eps=self.eps,
                mu_dtype=self.mu_dtype or None,
                weight_dimension_numbers=dimension_numbers,
            ),
            optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates)),
        )
        rest = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps, mu_dtype=self.mu_dtype or None)
        return optax.partition({"matrix": matrix, "rest": rest}, labels)


def labels(params):
    """Tree of "matrix", for what is orthogonalised, or "rest"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "matrix" if matrices.axes(path, leaf.ndim) else "rest", params
    )


def dimension_numbers(updates):
    """Which axes of each leaf are rows and columns; the layer axis, being neither, is one of separate matrices."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: optax.contrib.MuonDimensionNumbers(*matrices.axes(path, leaf.ndim)), updates
    )
