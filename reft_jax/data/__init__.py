"""Data sets: `load(config.data)` gives the train, dev and test records. Host side, strings only; nothing here needs jax.

One file per data set (`arithmetic` is generated, the others are read from files). What is cut off or capped is chosen by
a hash of the question, so that it stays the same when the file is reordered or grows. The dev split is cut from the
training file: the best epoch is picked on it, never on test.
"""

import collections
import hashlib
from collections.abc import Sequence

from reft_jax.data import gsm8k, mathqa, prompts, svamp
from reft_jax.data.records import Record, Splits
from reft_jax.errors import InputError

__all__ = ["Record", "Splits", "load"]

FILE_SETS = ("gsm8k", "svamp", "mathqa", "mathqa-numeric")


def load(data) -> Splits:
    """The records that `data` (the config's data record) asks for, and notes on what a user must be told.

    Raises InputError for a name and source that do not go together, for bad files and for a dev split that leaves
    nothing to train on.
    """
    if data.name == "arithmetic" and data.source == "generated":
        return _generated(data)
    if data.name in FILE_SETS and data.source == "files":
        return _from_files(data)
    raise InputError(
        f"config.data.name={data.name!r} with config.data.source={data.source!r}; legal are 'arithmetic' with 'generated', "
        f"and {', '.join(map(repr, FILE_SETS))} with 'files'"
    )


def _generated(data) -> Splits:
    from reft_jax.data import arithmetic

    def make(split, num, annotations):
        return arithmetic.generate(split, num, seed=data.seed, cot=data.cot, annotations=annotations) if num else ()

    corpus = data.annotations == "corpus"
    clean = "diverse" if corpus else data.annotations
    return Splits(
        train=make("pretrain" if corpus else "train", data.num_train, clean),
        dev=make("dev", data.dev_size, clean),
        test=make("test", data.num_test, clean),
    )


def _from_files(data) -> Splits:
    if not data.train_file:
        raise InputError(
            f"config.data.train_file is empty; config.data.name={data.name!r} is read from files, so name its training file"
        )
    everything = _read(data, data.train_file, "train")
    test = _read(data, data.test_file, "test") if data.test_file else ()
    notes = [_overlap(everything, test)]
    train, dev = cut_dev(everything, data.dev_size, seed=data.seed)
    if len(dev) < data.dev_size:
        notes.append(f"config.data.dev_size={data.dev_size}: only {len(dev)} cut, since equal questions stay together")
    train, note = _capped(train, data.num_train, seed=data.seed, field="num_train")
    notes.append(note)
    test, note = _capped(test, data.num_test, seed=data.seed, field="num_test")
    notes.append(note)
    notes.append(_docstrings(train, data))
    return Splits(train, dev, test, tuple(note for note in notes if note))


def _read(data, path, split) -> tuple[Record, ...]:
    if data.name == "gsm8k":
        return gsm8k.read(path, cot=data.cot, split=split, calculator_marks=data.calculator_marks)
    if data.name == "svamp":
        return svamp.read(path, cot=data.cot, split=split)
    return mathqa.read(path, cot=data.cot, split=split, numeric=data.name == "mathqa-numeric")


def cut_dev(records: Sequence[Record], size: int, *, seed: int) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """(train, dev), both in the file's order: `size` records chosen by a hash of (seed, question).

    Records with the same question stay together on one side, so dev may come out smaller where nearly all are repeated.
    Raises InputError if nothing would be left to train on.
    """
    if not 0 <= size < len(records):
        raise InputError(
            f"config.data.dev_size is {size} and the training file has {len(records)} records; "
            f"legal are 0 to {len(records) - 1}"
        )
    groups = collections.Counter(_question_key(record) for record in records)
    chosen, num_chosen = set(), 0
    for key in sorted(groups, key=lambda key: _hash("dev", seed, key)):
        if num_chosen + groups[key] <= size:
            chosen.add(key)
            num_chosen += groups[key]
    train = tuple(record for record in records if _question_key(record) not in chosen)
    return train, tuple(record for record in records if _question_key(record) in chosen)


def _capped(records, num: int, *, seed: int, field: str) -> tuple[tuple[Record, ...], str]:
    """At most `num` records (0: all) in the file's order, chosen by a hash, and a note if any were left out."""
    if num == 0 or num >= len(records):
        return tuple(records), ""
    ranked = sorted(
        range(len(records)), key=lambda i: _hash(field, seed, _question_key(records[i]), records[i].item_id)
    )
    kept = sorted(ranked[:num])
    return tuple(records[i] for i in kept), f"config.data.{field}={num}: {len(kept)} of {len(records)} records are used"


def _overlap(train, test) -> str:
    """A note on training questions that are test questions too."""
    in_test = {_question_key(record) for record in test}
    shared = [record.item_id for record in train if _question_key(record) in in_test]
    if not shared:
        return ""
    return f"training questions that are test questions too (kept): {len(shared)}: {_named(shared)}"


def _docstrings(train, data) -> str:
    """A note on gold programs whose docstring is not what the file has."""
    changed = prompts.replaced_docstrings(train, docstring=data.docstring)
    if not changed:
        return ""
    done = "replaced by the question" if data.docstring else "left out (config.data.docstring=False)"
    return f"{len(changed)} of {len(train)} gold programs have their docstring {done}: {_named(changed)}"


def _named(ids: Sequence[str], most: int = 5) -> str:
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(ids[:most]) + more


def _question_key(record: Record) -> str:
    """What makes two questions the same: their words, whatever the case and spacing."""
    return " ".join(record.question.split()).casefold()


def _hash(*parts: object) -> bytes:
    """A stable order of things: no salt, no dependence on the process (unlike `hash`)."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
