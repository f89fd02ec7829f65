"""The host's side of continuous batching: which sample each slot works on, and the sizes that programs are compiled for."""

import numpy as np


class Schedule:
    """Which sample each slot works on: samples 0 to num_rows - 1, begun in that order. The host's bookkeeping, no device."""

    def __init__(self, num_rows: int, sizes: tuple[int, ...]):
        """sizes: the legal numbers of slots, ascending; the work begins with the last, or with fewer if there is less to do."""
        self.sizes, self.num_rows, self.begun = sizes, num_rows, 0
        self.holder = np.full(next((size for size in sizes if size >= num_rows), sizes[-1]), -1)

    @property
    def num_slots(self) -> int:
        return len(self.holder)

    @property
    def busy(self) -> int:
        return int((self.holder >= 0).sum())

    @property
    def waiting(self) -> int:
        return self.num_rows - self.begun

    def next_row(self) -> int | None:
        """The sample that a free slot would take; None where there is no such slot or no such sample."""
        return self.begun if self.waiting and self.busy < self.num_slots else None

    def admit(self, before: int):
        """(slots, samples) i64[n]: free slots and the samples below `before` that they take."""
        free = np.flatnonzero(self.holder < 0)[: min(before, self.num_rows) - self.begun]
        rows = self.begun + np.arange(len(free))
        self.holder[free] = rows
        self.begun += len(free)
        return free, rows

    def stop_at(self) -> int:
        """How many live slots are few enough to stop for: an eighth of them ended, or a smaller set of slots would do."""
        if self.waiting:
            return self.busy - max(1, self.num_slots // 8)
        return max((size for size in self.sizes if size < self.busy), default=0)

    def release(self, ended) -> list[tuple[int, int]]:
        """(slot, sample) of the busy slots that ended; they are free afterwards."""
        done = [(int(slot), int(self.holder[slot])) for slot in np.flatnonzero((self.holder >= 0) & ended)]
        self.holder[[slot for slot, _ in done]] = -1
        return done

    def shrink(self):
        """i32[n], the slots that become slots 0 to n - 1 of a smaller set; None while prompts wait or none would do."""
        num = next(size for size in self.sizes if size >= self.busy)
        if self.waiting or num == self.num_slots:
            return None
        kept = np.argsort(self.holder < 0, kind="stable")[:num]
        self.holder = self.holder[kept]
        return kept.astype(np.int32)


def buckets(most: int, *, least: int, step: int, multiple: int = 1) -> tuple[int, ...]:
    """`most` and what dividing it by `step` gives, not below `least`; ascending multiples."""
    sizes = [most]
    while sizes[-1] > least:
        sizes.append(max(least, -(-sizes[-1] // step)))
    return tuple(sorted({-(-size // multiple) * multiple for size in sizes}))
