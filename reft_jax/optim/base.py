"""What every optimizer has: a rate that follows a schedule, decoupled weight decay, clipping and rounding."""

import dataclasses

import jax
import optax

from reft_jax.config.records import choice, setting
from reft_jax.optim import rounding

NOT_DECAYED = ("scale", "bias", "value_head", "classifier")  # weight decay pulls on matrices only


def decayed(params):
    """Tree of bool: which parameters weight decay pulls on."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(key.key in NOT_DECAYED for key in path), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """p <- p - rate (direction + weight_decay p), for gradients of a global norm of at most max_grad_norm (0 = any).

    The rate is lr times the schedule's share, over a run of `schedule_epochs` (0 = the stage's epochs). A file's `Optimizer` adds
    `direction()`, the optax transformation of a gradient into what is descended along. rounding: how a sum is rounded to the bfloat16 of a
    trained parameter (`rounding.py`).
    """

    lr: float = setting(above=0)
    schedule: object = choice("optim/schedules", default="linear")
    schedule_epochs: float = setting(0, default=0.0)
    weight_decay: float = setting(0, default=0.0)
    max_grad_norm: float = setting(0, default=1.0)
    rounding: str = setting(one_of=("nearest", "stochastic"), default="nearest")

    def __call__(self, num_updates: int) -> optax.GradientTransformation:
        """The optimizer of a run of num_updates updates in all."""
        tx = optax.chain(
            self.direction(),
            optax.add_decayed_weights(self.weight_decay, decayed),
            optax.scale_by_learning_rate(self.schedule(self.lr, num_updates)),
        )
        if self.max_grad_norm:
            tx = optax.chain(optax.clip_by_global_norm(self.max_grad_norm), tx)
        return rounding.stochastic(tx) if self.rounding == "stochastic" else tx
