"""PPO's clipped value loss (arXiv 1707.06347; ReFT, arXiv 2401.08967, section 3.2).

loss = mean of 0.5 max((v - ret)^2, (clip(v, v_old -+ clip) - ret)^2). An advantage with a critic has it (`Critic`).
"""

import dataclasses

import jax.numpy as jnp

from reft_jax.config.setting import setting


def clipped_squares(values, old_values, returns, mask, *, clip: float):
    """f32[B, R]; what mask excludes may hold NaN."""
    returns, old_values, values = (jnp.where(mask, x, 0.0) for x in (returns, old_values, values))
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(near - returns))


@dataclasses.dataclass(frozen=True)
class Critic:
    """An advantage's setting. What gives values: a head on the policy's trunk (shared), or a decoder of its own that starts as the policy
    does (separate); and the weight and the clipping of its loss."""

    trunk: str = setting(one_of=("shared", "separate"), default="shared")
    init: str = setting(one_of=("zeros", "normal"), default="normal")
    bias: bool = setting(default=True)
    coef: float = setting(0, default=5.0)
    clip: float = setting(above=0, default=0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    coef: float = setting(0, default=5.0)
    clip: float = setting(above=0, default=0.2)

    needs = ("values",)
    reads = ("old_values", "returns")
    together = "token"

    def __call__(self, out, batch, mean):
        loss = mean(clipped_squares(out.values, batch.old_values, batch.returns, batch.mask, clip=self.clip))
        return loss, {"ppo/value_loss": loss}
