"""Rises over the fraction `warmup`, is lr until the fraction `hold`, then falls linearly to `final` x lr at the end.

With warmup = hold = 0.1 and final = 0 it is that of supervised fine-tuning in arXiv 2401.08967, section 4.2; its defaults are a constant rate.
"""

import dataclasses

import optax

from reft_jax.config.records import setting
from reft_jax.optim.schedules.rise import warmed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    warmup: float = setting(0, 1, default=0.0)
    hold: float = setting(0, 1, default=0.0)
    final: float = setting(0, default=1.0)

    def check(self):
        if self.warmup > self.hold:
            yield "hold", f"the rate cannot fall before warmup = {self.warmup} ends"

    def __call__(self, lr: float, num_updates: int) -> optax.Schedule:
        rise, hold = round(self.warmup * num_updates), round(self.hold * num_updates)
        return warmed(lr, rise, optax.linear_schedule(lr, lr * self.final, max(num_updates - hold, 1)), hold)
