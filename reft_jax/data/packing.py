"""Several sequences in one row of the forward pass, so that padding is not computed. NumPy only.

Prompts are left-padded and responses right-padded, and lengths differ by ten times: more than half of a batch [B, P + R] is padding.
Here the sequences of a batch lie one behind the other in fewer rows of P + R tokens, each with its own segment and positions;
what comes out of the forward pass is put back where it belongs in [B, R], and losses know nothing of it.

How many rows there are is a multiple of a sixteenth of the batch, so that few programs are compiled (one for each such number).
"""

import typing
from collections.abc import Sequence

import numpy as np

STEPS = 16  # of the number of rows


class Packing(typing.NamedTuple):
    """How a batch's sequences share rows: C <= B of them, of S = P + R tokens."""

    source: np.ndarray  # i32[C, S] which of the B * S tokens of prompts and responses stands here
    segment: np.ndarray  # i32[C, S] which sequence of its row it belongs to, from 1; 0 = padding
    position: np.ndarray  # i32[C, S] in its sequence
    place: np.ndarray  # i32[B, R] which of the C * S states emits this response token; 0 where the mask is False


def pack(
    prompt_mask: np.ndarray, mask: np.ndarray, groups: Sequence[np.ndarray], *, parts: int = 1, multiple: int = 1
) -> list[Packing]:
    """Host arrays for each of the equally large groups of rows of prompt_mask bool[B, P] and mask bool[B, R].

    parts: an update goes through a group in so many slices (rows j, j + parts, ... are slice j), each packed by itself. multiple: of
    the rows of a slice, for a mesh to divide; group / parts must be one.
    """
    # through the last learnt token: a mask may have holes
    prompt, response = prompt_mask.sum(1), (mask[:, ::-1].cumsum(1) > 0).sum(1)
    size, length = len(groups[0]) // parts, prompt_mask.shape[1] + mask.shape[1]
    step = -(-size // STEPS // multiple) * multiple

    def one(rows, plan, num_rows):
        source, segment, position = (np.zeros((num_rows, length), np.int32) for _ in range(3))
        place = np.zeros((size, mask.shape[1]), np.int32)
        for row, sequences in enumerate(plan):
            start = 0
            for number, i in enumerate(sequences, 1):
                before, after = prompt[rows[i]], response[rows[i]]
                tokens = np.arange(before + after)
                here = slice(start, start + len(tokens))
                source[row, here] = i * length + prompt_mask.shape[1] - before + tokens
                segment[row, here], position[row, here] = number, tokens
                place[i, :after] = row * length + start + before - 1 + tokens[:after]
                start += len(tokens)
        return source, segment, position, place

    def together(group):
        slices = [group[part::parts] for part in range(parts)]
        plans = [first_fit((prompt + response)[rows], length) for rows in slices]
        num_rows = min(-(-max(map(len, plans)) // step) * step, size)
        arrays = [one(rows, plan, num_rows) for rows, plan in zip(slices, plans, strict=True)]
        return Packing(*(np.stack(x, axis=1).reshape(-1, x[0].shape[1]) for x in zip(*arrays, strict=True)))

    return [together(np.asarray(group)) for group in groups]


def first_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Which of the sequences share a row of `capacity` tokens: the longest first, each in the first row that has room (at most 11/9 of
    the fewest rows, and one more: Johnson 1973)."""
    rows, room = [], np.zeros(len(lengths), np.int64)
    for i in np.argsort(-lengths, kind="stable").tolist():
        row = int(np.argmax(room[: len(rows)] >= lengths[i])) if rows else 0
        if not rows or room[row] < lengths[i]:
            row = len(rows)
            rows.append([])
            room[row] = capacity
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows
