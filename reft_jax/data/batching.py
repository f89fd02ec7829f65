"""Which records make up a step's batch, and how ragged rows become arrays. NumPy only.

The data order is a function of (seed, step) alone: the epochs' permutations stand one after the other in an endless
line, and step s takes positions [s * B, (s + 1) * B) of it. A run that resumes at step s therefore goes on exactly where
it stopped, with nothing repeated, skipped or stored.

Lengths are rounded up to a few buckets, so that each jitted function is compiled once per bucket.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from reft_jax.data import prompts
from reft_jax.data.records import Record
from reft_jax.errors import InputError

_STREAM = 0x0DDE5  # Keeps the data order apart from other uses of the same seed.


def order(seed: int, epoch: int, num: int) -> np.ndarray:
    """The order of `num` records in an epoch: a read-only permutation int64[num], a function of the arguments only."""
    if seed < 0 or epoch < 0 or num < 1:
        raise ValueError(f"order needs seed >= 0, epoch >= 0 and num >= 1; got {seed}, {epoch}, {num}")
    return _order(int(seed), int(epoch), int(num))


@functools.lru_cache(maxsize=4)
def _order(seed, epoch, num):
    # Sorting raw bits rather than Generator.permutation: only the bit stream is fixed across NumPy versions (NEP 19).
    bits = np.random.PCG64(np.random.SeedSequence((_STREAM, seed, epoch))).random_raw(num)
    permutation = np.argsort(bits, kind="stable").astype(np.int64)
    permutation.setflags(write=False)
    return permutation


def batch_indices(seed: int, step: int, batch_size: int, num: int) -> np.ndarray:
    """The records of batch `step` (from 0) as int64[batch_size]: positions step * batch_size + j of the endless line of
    epochs. A batch may run over an epoch's end, or hold several epochs if `num` is small."""
    if step < 0 or batch_size < 1 or num < 1:
        raise ValueError(f"batch_indices needs step >= 0, batch_size >= 1, num >= 1; got {step}, {batch_size}, {num}")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = positions // num, positions % num
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = order(seed, int(epoch), num)[offsets[chosen]]
    return indices


def bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds `length` tokens; InputError if none does."""
    for size in buckets:
        if length <= size:
            return size
    raise InputError(
        f"a row of {length} tokens fits none of the length buckets {tuple(buckets)}; "
        f"the last of config.data.prompt_buckets / response_buckets must be at least {length}"
    )


def pad_left(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens i32[B, length], mask bool[B, length]) with every row at the right end; for prompts."""
    return _pad(rows, length, pad_id, left=True)


def pad_right(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens i32[B, length], mask bool[B, length]) with every row at the left end; for responses."""
    return _pad(rows, length, pad_id, left=False)


def _pad(rows, length, pad_id, *, left):
    lengths = np.array([len(row) for row in rows], np.int64)
    if lengths.size and lengths.max() > length:
        raise ValueError(f"row {lengths.argmax()} has {lengths.max()} tokens and is to be padded to {length}")
    places = np.arange(length)[None, :]
    mask = places >= length - lengths[:, None] if left else places < lengths[:, None]
    tokens = np.full((len(rows), length), pad_id, np.int32)
    tokens[mask] = np.array([token for row in rows for token in row], np.int32)
    return tokens, mask


@dataclasses.dataclass(frozen=True)
class TooLong:
    """A record left out: its lengths in tokens (`response` counts only where it was limited, else 0)."""

    item_id: str
    prompt: int
    response: int


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The records whose tokens fit the limits, index by index with their tokens, and what was left out (`note` says it
    in a line, "" if nothing was). An evaluation counts the left-out questions as wrong, or its accuracy flatters."""

    records: tuple[Record, ...]
    encoded: tuple[prompts.Encoded, ...]
    too_long: tuple[TooLong, ...]
    note: str


def fit(tokenizer, records: Sequence[Record], data, *, purpose: str) -> Fitted:
    """Tokenizes for `purpose` (see `prompts.encode_all`) and leaves out what is over `data.max_prompt` or, under "teach"
    (the only case in which a gold response is fed to the model), over `data.max_response`.

    Raises InputError, naming limit and shortest length, if there are records and none fits.
    """
    encoded = prompts.encode_all(tokenizer, records, data, purpose=purpose)
    kept, too_long = [], []
    for record, row in zip(records, encoded, strict=True):
        response = len(row.response) if purpose == "teach" else 0
        if len(row.prompt) > data.max_prompt or response > data.max_response:
            too_long.append(TooLong(record.item_id, len(row.prompt), response))
        else:
            kept.append((record, row))
    if too_long and not kept:
        raise InputError(_none_fits(too_long, data))
    note = ""
    if too_long:
        named = ", ".join(f"{r.item_id} ({r.prompt} + {r.response})" for r in too_long[:5])
        more = f" and {len(too_long) - 5} more" if len(too_long) > 5 else ""
        note = (
            f"{len(too_long)} of {len(records)} records left out for their length (prompt + response over "
            f"config.data.max_prompt={data.max_prompt} or max_response={data.max_response} tokens): {named}{more}"
        )
    return Fitted(tuple(r for r, _ in kept), tuple(e for _, e in kept), tuple(too_long), note)


def _none_fits(too_long, data):
    prompt, response = min(r.prompt for r in too_long), min(r.response for r in too_long)
    sizes = (("prompt", prompt, data.max_prompt), ("response", response, data.max_response))
    told = "the shortest {0} has {1} tokens and config.data.max_{0} is {2}"
    problems = [told.format(what, least, most) for what, least, most in sizes if least > most] or [
        f"each is over config.data.max_prompt={data.max_prompt} or config.data.max_response={data.max_response}"
    ]
    return f"none of {len(too_long)} records fits: {'; '.join(problems)}; raise the limit"
