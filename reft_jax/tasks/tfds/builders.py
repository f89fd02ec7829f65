"""The builders themselves; importing this needs tensorflow-datasets. All fields are texts, and the order is the files'.

A field that a record lacks is written as "" (the reader then says which record has none), and a number as JSON spells it.
"""

import os
import pathlib
import zipfile

import tensorflow_datasets as tfds

from reft_jax.data import files


def build(builder, *, manual_dir: pathlib.Path | None) -> None:
    """Writes the data set's array_record files unless they are there. Downloads are checked against checksums.tsv; one that
    is not known there is registered, where that file can be written."""
    checksums = pathlib.Path(__file__).with_name("checksums.tsv")
    unknown = manual_dir is None and any(url not in (builder.url_infos or {}) for url in builder.URLS)
    config = tfds.download.DownloadConfig(
        # Not TFDS's own manual folder, where another data set's train.jsonl may lie.
        manual_dir=manual_dir or pathlib.Path(builder.data_dir) / "none",
        register_checksums=unknown and os.access(checksums, os.W_OK),
        try_download_gcs=False,
    )
    builder.download_and_prepare(download_config=config, file_format="array_record")


class ReftGsm8k(tfds.core.GeneratorBasedBuilder):
    """GSM8K (Cobbe et al., arXiv 2110.14168): 7,473 training and 1,319 test questions."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "train.jsonl and test.jsonl of https://github.com/openai/grade-school-math"
    URLS = tuple(
        f"https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/{name}.jsonl"
        for name in ("train", "test")
    )

    def _info(self):
        return _info(self, ("question", "answer"), "https://github.com/openai/grade-school-math")

    def _split_generators(self, dl_manager):
        return {pathlib.Path(url).stem: self._generate_examples(_original(dl_manager, url)) for url in self.URLS}

    def _generate_examples(self, path):
        yield from _examples(self, path)


class ReftSvamp(tfds.core.GeneratorBasedBuilder):
    """SVAMP (Patel et al., arXiv 2103.07191): the 1,000 test questions."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "SVAMP.json of https://github.com/arkilpatel/SVAMP"
    URLS = ("https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json",)

    def _info(self):
        fields = ("ID", "Body", "Question", "Equation", "Answer", "Type")
        return _info(self, fields, "https://github.com/arkilpatel/SVAMP")

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples(_original(dl_manager, self.URLS[0]))}

    def _generate_examples(self, path):
        yield from _examples(self, path)


class ReftMathqa(tfds.core.GeneratorBasedBuilder):
    """MathQA (Amini et al., arXiv 1905.13319): multiple-choice questions with a rationale; train, validation and test."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "MathQA.zip of https://math-qa.github.io"
    URLS = ("https://math-qa.github.io/math-QA/data/MathQA.zip",)

    def _info(self):
        fields = ("Problem", "Rationale", "options", "correct", "annotated_formula", "linear_formula", "category")
        return _info(self, fields, "https://math-qa.github.io")

    def _split_generators(self, dl_manager):
        names = dict(train="train", validation="dev", test="test")
        folder = pathlib.Path(self.data_dir).parent / "MathQA"
        with zipfile.ZipFile(_original(dl_manager, self.URLS[0])) as archive:  # TFDS extracts with TensorFlow only
            for name in names.values():
                archive.extract(f"{name}.json", folder)
        return {split: self._generate_examples(folder / f"{name}.json") for split, name in names.items()}

    def _generate_examples(self, path):
        yield from _examples(self, path)


def _info(builder, fields, homepage: str):
    """Text fields, in the order of the file."""
    features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in fields})
    return tfds.core.DatasetInfo(builder=builder, features=features, homepage=homepage, disable_shuffling=True)


def _original(dl_manager, url: str):
    """The original file: of the manual folder where there is one, else downloaded."""
    try:
        given = pathlib.Path(dl_manager.manual_dir) / pathlib.Path(url).name
    except AssertionError:  # no such folder, or nothing in it
        return dl_manager.download(url)
    return given if given.exists() else dl_manager.download(url)


def _examples(builder, path):
    """(index, fields as texts) of each object of a file."""
    for i, (_, row) in enumerate(files.read_objects(path)):
        yield i, {name: str(row.get(name, "")) for name in builder.info.features}
