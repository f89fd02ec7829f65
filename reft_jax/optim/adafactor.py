"""Adafactor (arXiv 1804.04235): direction = max(1e-3, RMS(p)) clipped(g / sqrt(v)), where v of a matrix is kept as its row and column means.

v = R C / mean(R), where R and C are the exponential means, with b2_t = 1 - t^-decay, of what g^2 + eps is on average in a row and in a
column; clipped(u) = u / max(1, RMS(u) / clip). A matrix of n x m takes n + m numbers instead of AdamW's 2 n m. RMS, rows and columns are
those of each layer's own matrix, with attention's heads as one axis. The rate is relative to the size of the parameters (the
paper's is 1e-2 at most, its schedule 1 / sqrt(t)); relative=False takes it as AdamW's, with an RMS of a direction of 1.
"""

import dataclasses

import optax

from reft_jax.config.records import setting
from reft_jax.optim import base, matrices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(base.Settings):
    decay: float = setting(0, 1, default=0.8)
    clip: float = setting(1, default=1.0)  # of the RMS of a matrix's update, before the rate
    eps: float = setting(above=0, default=1e-30)
    relative: bool = setting(default=True)
    min_size: int = setting(1, default=128)  # a matrix with fewer rows or columns keeps v whole

    def direction(self) -> optax.GradientTransformation:
        parts = [
            optax.scale_by_factored_rms(decay_rate=self.decay, min_dim_size_to_factor=self.min_size, epsilon=self.eps),
            optax.clip_by_block_rms(self.clip),
        ]
        if self.relative:
            parts.append(optax.scale_by_param_block_rms())
        return matrices.per_layer(optax.chain(*parts))
