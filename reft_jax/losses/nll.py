"""Supervised fine-tuning: the negative log-likelihood of the target's tokens (ReFT, arXiv 2401.08967, section 3.1).

loss = mean of -log p_t, over tokens or over each target's mean, as the stage's `reduce` says.
"""

import dataclasses

from reft_jax.config.setting import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    coef: float = setting(0, default=1.0)

    needs = ("logp",)
    reads = ()
    together = "token"

    def __call__(self, out, batch, mean):
        return mean(-out.logp), {}
