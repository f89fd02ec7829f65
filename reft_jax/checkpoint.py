"""`load_params`: the parameters of a stage's folder or of one checkpoint (`run/checkpoint.py`)."""

from reft_jax.run.checkpoint import load_params

__all__ = ["load_params"]
