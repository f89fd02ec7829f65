"""Optimizers: one file each, made of optax.

A file defines `Optimizer`, a frozen record whose call is (num_updates) -> optax.GradientTransformation: it adds to `base.Settings`
(rate and schedule, weight decay, clipping, rounding) how a gradient becomes a direction. In a config `optim=dict(lr=1e-5)` is AdamW,
`optim=dict(use="muon", lr=1e-5)` another; with flags `--config.stages.sft.optim=muon` keeps what all optimizers have, and begins with the
file's defaults for the rest. `schedules/` has the shapes of the learning rate.
"""
