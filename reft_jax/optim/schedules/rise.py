"""The beginning that schedules share."""

import optax


def warmed(lr: float, num: int, then, until: int = 0) -> optax.Schedule:
    """From 0 to lr in the first `num` updates, lr to update `until` (at least num), and from there `then`, a function of the updates since."""
    return optax.join_schedules([optax.linear_schedule(0.0 if num else lr, lr, max(num, 1)), then], [max(num, until)])
