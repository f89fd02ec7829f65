"""`gae`, where users of the first versions import it (`reft_jax/advantages/` has the estimators)."""

from reft_jax.advantages.gae import gae

__all__ = ["gae"]
