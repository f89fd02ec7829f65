"""Tasks: where questions and answers come from, one file each. `load(config.data)` gives the train, dev and test records.

A file defines `Task`, made without settings: `kind` of its answers (number, choice or expression), `sources` (the legal config.data.source),
`check(data)` (a generator of (key, what is legal) about config.data) and `splits(data) -> Splits`; if it likes `gold(place, value, field)`, which
checks and normalises an answer, and if its texts have a closed vocabulary `words() -> (pattern, vocabulary)`. `base.py` has what is the same for
most: `Generated`, whose records a task makes itself, and `FromFiles`, where a task says the fields of its own files (`data.reader.Form`) and
where these are published (`tfds.Published`). `data.splits` cuts the dev split from the training records, by a hash of the question: the best
epoch is picked on it, never on test. Host side, strings only; nothing here needs jax.
"""

from reft_jax.config import choices
from reft_jax.data import reader
from reft_jax.data.records import Record, Splits


def load(data) -> Splits:
    """The records that `data` (the config's data record) asks for, and notes on what a user must be told.

    Raises InputError for an unknown task, for bad records wherever they come from (`data.reader`), for a dev split that leaves nothing
    to train on and for test questions that stand in train (`config.data.max_overlap`).
    """
    task = choices.load("tasks", data.task)()
    found = task.splits(data)
    gold = getattr(task, "gold", None) or reader.GOLD[task.kind]
    train, dev, test = (
        reader.checked(getattr(found, name), gold, f"{data.task}/{name}") for name in ("train", "dev", "test")
    )
    return Splits(train, dev, test, found.notes)
