"""Published data sets as TensorFlow Datasets, written as array_record files and read without TensorFlow: `read_raw`.

`config.data.source = "tfds"` builds a data set once (config.data.tfds_dir) from its original files, which TFDS downloads
or config.data.manual_dir holds, and reads it with random access. Where they are is said by the task (`Published`). Each
record is kept as its JSON text, so that what comes out are the same values that `files.read_raw` gives for the original
files, in their order, with their types and nulls: everything after it is the same code (`data/reader.py`).
The published sets hold no Python programs, and SVAMP no reasoning: those come from files of the ReFT authors' form
(config.data.train_file). What is built from manual files lies in a folder named by their SHA-256: other files, another
build.

`checksums.tsv` holds sizes and SHA-256 in TFDS's form. GSM8K's are those of its public files, MathQA's those that TFDS's
own `math_qa` has. SVAMP's are not known here: the first download is not checked, and registers them there
(`register_checksums`) for those that follow.

    pip install 'reft_jax[tfds]'
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

from reft_jax.config import packages
from reft_jax.config.paths import expanded
from reft_jax.data import locks
from reft_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set, and split -> the address of its original file; "ZIP#FILE" is a file in a zip archive."""

    name: str
    homepage: str
    files: dict[str, str]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(address.partition("#")[0] for address in self.files.values()))


def read_raw(published: Published, split: str, *, tfds_dir: str = "", manual_dir: str = "") -> list[tuple[str, object]]:
    """Every raw record of a split with its place ("reft_gsm8k/2.0.0/train[0]"); builds the data set first where that has not been
    done. InputError: not installed, files absent or malformed."""
    originals = [url.rpartition("/")[2] for url in published.urls]
    if manual_dir:
        folder = expanded(manual_dir)
        absent = [file for file in originals if not (folder / file).is_file()]
        if absent:
            raise InputError(
                f"config.data.manual_dir={manual_dir!r} holds no {', '.join(absent)}; it must hold the original files of {published.name}: "
                f"{', '.join(originals)} (or be empty, and TFDS downloads them)"
            )
    try:
        packages.load("array_record")  # what the files are written with
        tfds = packages.load("tensorflow_datasets", "core")

        from reft_jax.tasks.tfds import builders
    except ImportError as error:
        raise InputError(
            f"config.data.source='tfds' needs tensorflow-datasets and array_record ({error}); pip install 'reft_jax[tfds]', or "
            "name the original files: config.data.source='files' reads them too"
        ) from error
    try:
        base = expanded(tfds_dir or tfds.core.constants.DATA_PATH)
        data_dir = base / f"manual_{_digest(folder, originals)}" if manual_dir else base
        data_dir.mkdir(parents=True, exist_ok=True)
        with _alone(data_dir):
            builder = builders.built(published, data_dir, folder if manual_dir else None)
        source = builder.as_data_source(split=split)
    except Exception as error:  # TFDS has no class of its own for what fails in a build
        cause = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"config.data.source='tfds': cannot build or read {published.name}: {type(error).__name__}: {said}. Without a network, put "
            f"{', '.join(originals)} into a folder and name it in config.data.manual_dir"
        ) from error
    return [(f"{builder.info.full_name}/{split}[{i}]", json.loads(row["record"])) for i, row in enumerate(source)]


def _digest(folder: pathlib.Path, originals) -> str:
    """The beginning of the SHA-256 of the original files, one after the other."""
    digest = hashlib.sha256()
    for file in originals:
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
    """Keeps other processes from building into the folder while the block runs."""
    with open(folder / ".lock", "w") as file:
        locks.take(file.fileno(), folder, wait=True)
        yield
