"""AdamW (arXiv 1711.05101): direction = m / (sqrt(v) + eps).

m and v are the exponential means of g and g^2 with b1 and b2, each divided by 1 - b^t. Two numbers a parameter are kept.
"""

import dataclasses

import optax

from reft_jax.config.records import setting
from reft_jax.optim import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(base.Settings):
    b1: float = setting(0, 1, default=0.9)
    b2: float = setting(0, 1, default=0.999)
    eps: float = setting(above=0, default=1e-8)
    # of the first moment; "" = the parameters', but float32 where these are rounded stochastically
    mu_dtype: str = setting(one_of=("", "float32", "bfloat16"), default="")

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps, mu_dtype=self.mu_dtype or None)
