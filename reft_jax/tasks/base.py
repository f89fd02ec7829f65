"""What the tasks share that are read from files: `FromFiles`, whose `read` a task fills in."""

import dataclasses

from reft_jax.data import files, prompts, splits
from reft_jax.data.records import Splits
from reft_jax.errors import InputError
from reft_jax.tasks import tfds


@dataclasses.dataclass(frozen=True)
class FromFiles:
    """A task of files (`config.data.train_file`, `test_file`), or with the source "tfds" of TensorFlow Datasets where no file is named.

    A task adds read(objects, data, *, split, complaints=None) -> the records of (place, object) pairs, read as `data` says (cot,
    calculator_marks). With a list `complaints`, what is wrong goes there and reading goes on (`files.telling`).
    """

    kind = "number"
    sources = ("files",)
    published = ("nl",)  # where tfds is a source: the kinds of CoT that the data set there has
    left_out = "they are no questions of this task"  # why `read` may give fewer records than there are objects

    def check(self, data):
        if data.questions_file:
            yield "questions_file", f"it is for stories, and the task is {data.task!r}"

    def load(self, data) -> Splits:
        notes, found = [], {}
        for split in ("train", "test"):
            objects = self._objects(data, split)
            found[split] = self.read(objects, data, split=split) if objects else ()
            if left_out := len(objects) - len(found[split]):
                notes.append(f"{left_out} of {len(objects)} {split} questions left out: {self.left_out}")
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
        notes.append(note)
        notes.append(_docstrings(train, data))
        return Splits(train, dev, test, tuple(note for note in notes if note))

    def _objects(self, data, split: str) -> list[tuple[str, dict]]:
        """The (place, object) pairs of one split: of its file where one is named, else of TFDS; none for no test file."""
        path = data.train_file if split == "train" else data.test_file
        if path:
            return files.read_objects(path)
        if data.source == "files" and split == "test":
            return []
        if data.source == "files":
            raise InputError(
                f"config.data.train_file: got ''; {data.task} is read from files: say which (:train_file=PATH)"
            )
        if split == "train" and data.cot not in self.published:
            what = "programs" if data.cot == "program" else "reasoning"
            raise InputError(
                f"config.data.train_file: got ''; the published {data.task} holds no {what} to train on: with source 'tfds' name a file of the "
                "ReFT authors' form (test questions still come from TFDS), or choose gsm8k or mathqa with cot='nl'"
            )
        return tfds.read_objects(data.task, split, tfds_dir=data.tfds_dir, manual_dir=data.manual_dir)


def _docstrings(train, data) -> str:
    """A note on gold programs whose docstring is not what the file has."""
    changed = prompts.replaced_docstrings(train, docstring=data.docstring)
    if not changed:
        return ""
    done = "replaced by the question" if data.docstring else "left out (config.data.docstring=False)"
    return f"{len(changed)} of {len(train)} gold programs have their docstring {done}: {splits.named_few(changed)}"
