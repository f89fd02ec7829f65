"""Warmup-stable-decay (arXiv 2404.06395, section 4): rises over the fraction `warmup`, is lr, and falls over the last fraction `decay`.

With s from 0 to 1 over the fall, the rate is lr times final^s (exponential, the paper's), 1 - (1 - final) s (linear) or
1 - (1 - final) sqrt(s) (sqrt, arXiv 2405.18392).
"""

import dataclasses

import jax.numpy as jnp
import optax

from reft_jax.config.records import setting
from reft_jax.optim.schedules.rise import warmed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    warmup: float = setting(0, 1, default=0.01)
    decay: float = setting(0, 1, default=0.1)
    final: float = setting(0, 1, default=0.1)
    fall: str = setting(one_of=("exponential", "linear", "sqrt"), default="exponential")

    def check(self):
        if self.warmup + self.decay > 1:
            yield "decay", f"warmup = {self.warmup} and decay together are at most the whole run, 1"
        if self.fall == "exponential" and self.final == 0:
            yield "final", "an exponential never arrives at 0: legal is > 0, or fall 'linear' or 'sqrt'"

    def __call__(self, lr: float, num_updates: int) -> optax.Schedule:
        rise, last = round(self.warmup * num_updates), round(self.decay * num_updates)

        def fall(count):
            share = jnp.clip(count / max(last, 1), 0.0, 1.0)
            if self.fall == "exponential":
                return lr * self.final**share
            return lr * (1.0 - (1.0 - self.final) * (share if self.fall == "linear" else jnp.sqrt(share)))

        return warmed(lr, rise, fall, num_updates - last)
