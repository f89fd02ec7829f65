"""What the tasks share: `Generated` of those that make their records themselves, `FromFiles` of those that read them."""

import dataclasses
import random

from reft_jax.data import files, prompts, reader, splits
from reft_jax.data.records import Record, Splits
from reft_jax.errors import InputError
from reft_jax.tasks import tfds


@dataclasses.dataclass(frozen=True)
class Common:
    kind = "number"
    reads_questions = False  # whether it does something with config.data.questions_file

    def gold(self, place: str, value: object, field: str) -> str:
        """An answer as records have it; RecordError for what is none."""
        return reader.GOLD[self.kind](place, value, field)

    def check(self, data):
        if data.questions_file and not self.reads_questions:
            yield "questions_file", f"it is for stories, and the task is {data.task!r}"


def draw(rng: random.Random, weights: dict):
    """A key of `weights`, each as likely as its weight says."""
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


@dataclasses.dataclass(frozen=True)
class Generated(Common):
    """A task adds make(split, num, data) -> the first `num` records of train, dev or test."""

    sources = ("generated",)

    def check(self, data):
        yield from super().check(data)
        if not data.num_train:
            yield "num_train", "generated data needs a number of training questions"

    def splits(self, data) -> Splits:
        sizes = dict(train=data.num_train, dev=data.dev_size, test=data.num_test)
        return Splits(*(self.make(split, num, data) for split, num in sizes.items()))


@dataclasses.dataclass(frozen=True)
class FromFiles(Common):
    """A task of files (`config.data.train_file`, `test_file`), or with the source "tfds" of TensorFlow Datasets where no file is named."""

    own = None  # the reader.Form of the data set's own files; those of the ReFT authors' form are always read
    published = None  # the tfds.Published of these
    left_out = "they are no questions of this task"  # why there may be fewer records than raw ones (reader.LEFT_OUT)

    @property
    def sources(self) -> tuple[str, ...]:
        return ("files", "tfds") if self.published else ("files",)

    def splits(self, data) -> Splits:
        notes, found = [], {}
        for split in ("train", "test"):
            raw = self.raw(data, split)
            found[split] = self.read(raw, data, split=split)
            if left_out := len(raw) - len(found[split]):
                notes.append(f"{left_out} of {len(raw)} {split} questions left out: {self.left_out}")
        everything, test = found["train"], found["test"]
        notes.append(splits.check_overlap(everything, test, max_overlap=data.max_overlap))
        train, dev = splits.cut_dev(everything, data.dev_size, seed=data.seed)
        if len(dev) < data.dev_size:
            notes.append(
                f"config.data.dev_size={data.dev_size}: only {len(dev)} cut, since equal questions stay together"
            )
        notes.append(splits.near_dev(train, dev))
        train, note = splits.capped(train, data.num_train, seed=data.seed, field="num_train")
        notes.append(note)
        test, note = splits.capped(test, data.num_test, seed=data.seed, field="num_test")
        notes += [note, _docstrings(train, data)]
        return Splits(train, dev, test, tuple(note for note in notes if note))

    def raw(self, data, split: str) -> list[tuple[str, object]]:
        """The (place, value) pairs of one split: of its file where one is named, else of TFDS; none for no test file."""
        if path := data.train_file if split == "train" else data.test_file:
            return files.read_raw(path)
        if data.source == "files" and split == "test":
            return []
        if data.source == "files":
            raise InputError(
                f"config.data.train_file: got ''; {data.task} is read from files: say which (:train_file=PATH)"
            )
        if split == "train":
            self._check_cot(self.own, data, "config.data.train_file: got ''")
        return tfds.read_raw(self.published, split, tfds_dir=data.tfds_dir, manual_dir=data.manual_dir)

    def read(self, raw, data, *, split: str, complaints: list | None = None) -> tuple[Record, ...]:
        """The records of (place, value) pairs, read as `data` says (cot, calculator_marks); see `reader.read`."""
        form = reader.form_of(raw, self.own)
        if raw and split == "train":
            self._check_cot(form, data, raw[0][0])
        records = reader.read(raw, form, self.gold, data, split=split, complaints=complaints)
        if raw and not records and not complaints:
            raise InputError(
                f"{raw[0][0]}: all {len(raw)} {split} questions are left out: {self.left_out}; choose another config.data.task"
            )
        return records

    def _check_cot(self, form: reader.Form, data, place: str):
        if not form.holds(data.cot):
            what = "programs" if data.cot == "program" else "reasoning"
            other = " or config.data.cot='nl'" if form.holds("nl") else ""
            raise InputError(
                f"{place}: the published {data.task} holds no {what} to train on, and config.data.cot is {data.cot!r}; use a "
                f"config.data.train_file in the ReFT authors' form (test questions may still be the published ones){other}"
            )


def _docstrings(train, data) -> str:
    """A note on gold programs whose docstring is not what the file has."""
    changed = prompts.replaced_docstrings(train, docstring=data.docstring)
    if not changed:
        return ""
    done = "replaced by the question" if data.docstring else "left out (config.data.docstring=False)"
    return f"{len(changed)} of {len(train)} gold programs have their docstring {done}: {splits.named_few(changed)}"
