"""The builder itself; importing this needs tensorflow-datasets."""

import json
import os
import pathlib
import zipfile

import tensorflow_datasets as tfds

from reft_jax.data import files
from reft_jax.tasks.tfds import Published


def built(published: Published, data_dir: pathlib.Path, manual_dir: pathlib.Path | None):
    """The data set's builder, its array_record files written. Downloads are checked against checksums.tsv; one that is not
    known there is registered, where that file can be written."""

    class Reft(Original, skip_registration=True):
        name = f"reft_{published.name}"
        of = published

    builder = Reft(data_dir=data_dir, file_format="array_record")
    checksums = pathlib.Path(__file__).with_name("checksums.tsv")
    unknown = manual_dir is None and any(url not in (builder.url_infos or {}) for url in published.urls)
    config = tfds.download.DownloadConfig(
        # Not TFDS's own manual folder, where another data set's train.jsonl may lie.
        manual_dir=manual_dir or pathlib.Path(builder.data_dir) / "none",
        register_checksums=unknown and os.access(checksums, os.W_OK),
        try_download_gcs=False,
    )
    builder.download_and_prepare(download_config=config, file_format="array_record")
    return builder


class Original(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The records of a published data set in the order of its files, each as its JSON text (`record`)."""

    of: Published
    VERSION = tfds.core.Version("2.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "the original files, as they are published"

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"record": tfds.features.Text()}),
            homepage=self.of.homepage,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        originals = {url: _original(dl_manager, url) for url in self.of.urls}
        folder, splits = pathlib.Path(self.data_dir).parent / "original", {}
        for split, address in self.of.files.items():
            url, _, member = address.partition("#")
            if member:  # TFDS extracts with TensorFlow only
                with zipfile.ZipFile(originals[url]) as archive:
                    archive.extract(member, folder)
            splits[split] = self._generate_examples(folder / member if member else originals[url])
        return splits

    def _generate_examples(self, path):
        for i, (_, value) in enumerate(files.read_raw(path)):
            yield i, {"record": json.dumps(value)}


def _original(dl_manager, url: str):
    """The original file: of the manual folder where there is one, else downloaded."""
    try:
        given = pathlib.Path(dl_manager.manual_dir) / pathlib.Path(url).name
    except AssertionError:  # no such folder, or nothing in it
        return dl_manager.download(url)
    return given if given.exists() else dl_manager.download(url)
