"""Reward terms: what a response is paid for, one file each; `rewards/total.py` adds them up.

A file defines `Term`, a frozen record whose call is (responses, scored) -> f32[B], or f32[B, R] that pays tokens. `responses`
(`total.Responses`) are texts, tokens, grades, gold answers and records; `scored` are arrays of the model's by name, of which `needs` says what
the term reads, so that no term imports jax. `weight` is its share of the score. None: the term does not apply at all; a row of NaN: it does
not score that response.
"""
