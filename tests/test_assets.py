"""The shipped base model is the one that its README describes, small, and loads."""

import hashlib
import pathlib
import re

from reft_jax import models
from reft_jax.data import tokenizer as tokenizers
from reft_jax.tasks import arithmetic

BASE = pathlib.Path(models.SHIPPED) / "arithmetic_base"


def test_readme_names_the_weights_checksum():
    (stated,) = re.findall(r"\b[0-9a-f]{64}\b", (BASE / "README.md").read_text())
    assert hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest() == stated


def test_it_is_at_most_two_megabytes():
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 2 * 2**20


def test_it_loads_and_its_tokenizer_is_the_data_sets():
    model, params = models.load_hf(BASE)
    tokenizer = tokenizers.load(BASE)
    assert params["embed"]["kernel"].shape == (len(tokenizer), model.arch.dim)
    built = tokenizers.build_word(arithmetic.PIECE, arithmetic.vocabulary())
    assert tokenizer.get_vocab() == built.get_vocab()
