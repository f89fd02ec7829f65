"""Half a cosine (arXiv 1608.03983, equation 5, without restarts): lr (final + (1 - final) (1 + cos(pi s)) / 2), s from 0 to 1 after a
linear rise over the fraction `warmup`."""

import dataclasses

import optax

from reft_jax.config.records import setting
from reft_jax.optim.schedules.rise import warmed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    warmup: float = setting(0, 1, default=0.0)
    final: float = setting(0, 1, default=0.0)

    def __call__(self, lr: float, num_updates: int) -> optax.Schedule:
        rise = round(self.warmup * num_updates)
        return warmed(lr, rise, optax.cosine_decay_schedule(lr, max(num_updates - rise, 1), alpha=self.final))
