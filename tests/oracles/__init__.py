"""Oracles: what each file of a room gives, in float64, token by token, written from the equation and not from the file.

tests/oracles/losses/NAME.py has `loss(record, batch, out, reduce)`, tests/oracles/advantages/NAME.py `advantage(record, rollout)` -> (adv, returns or
None). `tests/test_rooms.py` finds them by name, and asks for one where a file has none.
"""
