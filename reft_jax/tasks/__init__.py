"""Tasks: where questions and answers come from, one file each. `load(config.data)` gives the train, dev and test records.

A file defines `Task`, made without settings: `kind` of its answers (number, choice or expression), `sources` (the legal config.data.source),
`check(data)` (a generator of (key, what is legal) about config.data) and `load(data) -> Splits`. A task of files has `read` too
(`base.FromFiles`), one whose texts have a closed vocabulary `words() -> (pattern, vocabulary)`. `data.splits` cuts the dev split from the
training records, by a hash of the question: the best epoch is picked on it, never on test. Host side, strings only; nothing here needs jax.
"""

from reft_jax.config import choices
from reft_jax.config.words import listed
from reft_jax.data.records import Record, Splits
from reft_jax.errors import InputError

__all__ = ["Record", "Splits", "load"]


def load(data) -> Splits:
    """The records that `data` (the config's data record) asks for, and notes on what a user must be told.

    Raises InputError for an unknown task, for a source that is not the task's, for bad files, for a dev split that leaves nothing to
    train on and for test questions that stand in train (`config.data.max_overlap`).
    """
    task = choices.load("tasks", data.task)()
    if data.source not in task.sources:
        raise InputError(f"config.data.source: got {data.source!r}; legal for {data.task} are {listed(task.sources)}")
    return task.load(data)
