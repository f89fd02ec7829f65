"""Data sets: `load(config.data)` gives the train, dev and test records. Host side, strings only; nothing here needs jax.

One file per data set: `arithmetic` and `stories` are generated, the others are read from files or built by TensorFlow Datasets
(`tfds_builders`). `splits` cuts the dev split from the training records, by a hash of the question: the best epoch is
picked on it, never on test.
"""

import dataclasses

from reft_jax.data import files, prompts, splits
from reft_jax.data.records import Record, Splits
from reft_jax.data.splits import cut_dev
from reft_jax.errors import InputError
from reft_jax.tasks import gsm8k, mathqa, svamp

__all__ = ["Record", "Splits", "cut_dev", "load", "read"]

FILE_SETS = ("gsm8k", "svamp", "mathqa", "mathqa-numeric")


def load(data) -> Splits:
    """The records that `data` (the config's data record) asks for, and notes on what a user must be told.

    Raises InputError for a name and source that do not go together, for bad files, for a dev split that leaves nothing to
    train on and for test questions that stand in train (`config.data.max_overlap`).
    """
    if data.name == "arithmetic" and data.source == "generated":
        return _generated(data)
    if data.name == "stories" and data.source == "generated":
        return _stories(data)
    if data.name in FILE_SETS and data.source in ("files", "tfds"):
        return _read_splits(data)
    raise InputError(
        f"config.data.name={data.name!r} with config.data.source={data.source!r}; legal are 'arithmetic' with 'generated', "
        f"'stories' with 'generated', and {', '.join(map(repr, FILE_SETS))} with 'files' or 'tfds'"
    )


def _generated(data) -> Splits:
    from reft_jax.tasks import arithmetic

    def make(split, num, annotations):
        return arithmetic.generate(split, num, seed=data.seed, cot=data.cot, annotations=annotations) if num else ()

    corpus = data.annotations == "corpus"
    clean = "diverse" if corpus else data.annotations
    return Splits(
        train=make("pretrain" if corpus else "train", data.num_train, clean),
        dev=make("dev", data.dev_size, clean),
        test=make("test", data.num_test, clean),
    )


def _stories(data) -> Splits:
    """Generated stories, and the questions of a training file as text without a solution, where the question is what is learnt: each
    once, and at most as many as stories. What a run on that file takes as its dev split (seed 0) is left out, with as many again:
    the files with P-CoT and with N-CoT do not hold quite the same questions. So is what differs from these in punctuation alone."""
    from reft_jax.tasks import stories

    def make(split, num, cot=data.cot):
        return stories.generate(split, num, seed=data.seed, cot=cot)

    train, notes = make("train", data.num_train, "both" if data.annotations == "corpus" else data.cot), ()
    if data.questions_file:
        texts = [
            Record(f"question_{i}", files.text_field(place, row, "question"), "", "", "text", place=place)
            for i, (place, row) in enumerate(files.read_objects(data.questions_file))
        ]
        held_out = {splits.question_words(record.question) for record in cut_dev(texts, 2 * data.dev_size, seed=0)[1]}
        kept = [record for record in texts if splits.question_words(record.question) not in held_out]
        train += tuple(
            dataclasses.replace(record, question="", cot=record.question) for record in kept[: data.num_train]
        )
        notes = (
            f"{len(kept)} of {len(texts)} questions of {data.questions_file} may be read as text, a dev split not",
        )
    return Splits(train, make("dev", data.dev_size), make("test", data.num_test), notes)


def _read_splits(data) -> Splits:
    notes, found = [], {}
    for split in ("train", "test"):
        objects = _objects(data, split)
        found[split] = read(data.name, objects, data, split=split) if objects else ()
        if left_out := len(objects) - len(found[split]):
            notes.append(
                f"{left_out} of {len(objects)} {split} questions left out: their right option is not one number"
            )
    everything, test = found["train"], found["test"]
    notes.append(splits.check_overlap(everything, test, max_overlap=data.max_overlap))
    train, dev = cut_dev(everything, data.dev_size, seed=data.seed)
    if len(dev) < data.dev_size:
        notes.append(f"config.data.dev_size={data.dev_size}: only {len(dev)} cut, since equal questions stay together")
    notes.append(splits.near_dev(train, dev))
    train, note = splits.capped(train, data.num_train, seed=data.seed, field="num_train")
    notes.append(note)
    test, note = splits.capped(test, data.num_test, seed=data.seed, field="num_test")
    notes.append(note)
    notes.append(_docstrings(train, data))
    return Splits(train, dev, test, tuple(note for note in notes if note))


def _objects(data, split: str) -> list[tuple[str, dict]]:
    """The (place, object) pairs of one split: of its file where one is named, else of TFDS; none for no test file."""
    path = data.train_file if split == "train" else data.test_file
    if path:
        return files.read_objects(path)
    if data.source == "files" and split == "test":
        return []
    if data.source == "files":
        raise InputError(
            f"config.data.train_file is empty; config.data.name={data.name!r} is read from files, so name its training file"
        )
    if split == "train" and (data.cot == "program" or data.name == "svamp"):
        what = "programs" if data.cot == "program" else "reasoning"
        raise InputError(
            f"config.data.source='tfds': the published {data.name} holds no {what} to train on; name a file of the ReFT authors' "
            "form in config.data.train_file (test questions still come from TFDS), or choose gsm8k or mathqa with cot='nl'"
        )
    from reft_jax.tasks import tfds as tfds_builders

    return tfds_builders.read_objects(data.name, split, tfds_dir=data.tfds_dir, manual_dir=data.manual_dir)


def read(name: str, objects, data, *, split: str, complaints: list | None = None) -> tuple[Record, ...]:
    """The records of (place, object) pairs of the data set `name`, read as `data` says (cot, calculator_marks).
    With a list `complaints`, what is wrong goes there and reading goes on (`files.telling`)."""
    how = dict(cot=data.cot, split=split, complaints=complaints)
    if name == "gsm8k":
        return gsm8k.records(objects, calculator_marks=data.calculator_marks, **how)
    if name == "svamp":
        return svamp.records(objects, **how)
    return mathqa.records(objects, numeric=name == "mathqa-numeric", **how)


def _docstrings(train, data) -> str:
    """A note on gold programs whose docstring is not what the file has."""
    changed = prompts.replaced_docstrings(train, docstring=data.docstring)
    if not changed:
        return ""
    done = "replaced by the question" if data.docstring else "left out (config.data.docstring=False)"
    return f"{len(changed)} of {len(train)} gold programs have their docstring {done}: {splits.named_few(changed)}"
