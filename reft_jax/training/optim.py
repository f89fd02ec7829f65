"""AdamW with global-norm clipping and the one schedule shape that covers the recipes (`config.Optim` explains its numbers)."""

import jax
import optax

NOT_DECAYED = ("scale", "bias", "value_head", "classifier")  # weight decay pulls on matrices only


def schedule(optim, num_updates: int):
    """Learning rate as a function of the update count: linear rise over `warmup`, flat until `hold`, linear to `final` x lr at the end."""
    rise, hold = round(optim.warmup * num_updates), round(optim.hold * num_updates)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0 if rise else optim.lr, optim.lr, max(rise, 1)),
            optax.linear_schedule(optim.lr, optim.lr * optim.final, max(num_updates - hold, 1)),
        ],
        [hold],
    )


def make_optimizer(optim, num_updates: int) -> optax.GradientTransformation:
    """The optimizer of a run of num_updates updates in all."""

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: not any(key.key in NOT_DECAYED for key in path), params)

    adamw = optax.adamw(
        schedule(optim, num_updates),
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        mu_dtype=optim.mu_dtype or None,
        mask=decayed,
    )
    return optax.chain(optax.clip_by_global_norm(optim.max_grad_norm), adamw) if optim.max_grad_norm else adamw
