"""One field of a record of settings, and what several records ask of theirs; what fills, overrides, builds and checks records is `records.py`."""

import dataclasses

MISSING = dataclasses.MISSING


def setting(
    low=None,
    high=None,
    *,
    above=None,
    one_of=None,
    default=MISSING,
    free=False,
    room="",
    key="",
    parse=None,
    traced=False,
    path=False,
):
    """A value. Legal is low <= value <= high, value > above, value in one_of, or the name of a file of `room` (a file of one's own, too).

    free: a started run may change it (how it is watched or laid out). key: its name in configs, where Python has another use for
    it. parse(value, path) -> what the record holds, for values that are no number, text or tuple. traced: a coefficient that reaches
    jit as an array, so that another value compiles nothing anew. path: it names a file or folder, of which the record has `~` spelt out and
    config.json does not, so that the same command goes on.
    """
    legal = dict(low=low, high=high, above=above, one_of=one_of, room=room)
    how = dict(free=free, key=key, parse=parse, traced=traced, path=path)
    return dataclasses.field(default=default, metadata=legal | how)


def traced(record) -> dict:
    """The fields that are marked so, by name."""
    names = [field.name for field in dataclasses.fields(record) if field.metadata.get("traced")]
    return {name: getattr(record, name) for name in names}


def divides(accumulate: int, rows: int, what: str = "batch_size"):
    """(key, what is legal) where a batch cannot be split into equal parts."""
    if rows % accumulate:
        yield "accumulate", f"it must divide {what} = {rows}"


def divisible(losses, dropout: float) -> bool:
    """Whether an update comes out the same, but for rounding, in however many parts: no loss needs rows together, and nothing is dropped."""
    return not dropout and not any(getattr(loss, "together", "token") in ("group", "batch") for loss in losses)


def num_parts(num: int, length: int, most: int, *, least: int = 1, multiple: int = 1) -> int:
    """In how many parts an update goes through `num` rows of `length` tokens: as few as leave each device `most` tokens of a part (0 = any
    number), and at least `least`. All parts have as many rows, a multiple of `multiple`; where none is so small, the smallest."""
    if not most:
        return least
    legal = [n for n in range(least, num // multiple + 1) if num % (n * multiple) == 0] or [least]
    return next((n for n in legal if num // n // multiple * length <= most), legal[-1])
