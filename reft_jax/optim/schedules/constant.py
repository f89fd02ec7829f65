"""lr throughout, after a linear rise over the fraction `warmup`: what ReFT trains with (arXiv 2401.08967, section 4.2)."""

import dataclasses

import optax

from reft_jax.config.records import setting
from reft_jax.optim.schedules.rise import warmed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    warmup: float = setting(0, 1, default=0.0)

    def __call__(self, lr: float, num_updates: int) -> optax.Schedule:
        return warmed(lr, round(self.warmup * num_updates), optax.constant_schedule(lr))
