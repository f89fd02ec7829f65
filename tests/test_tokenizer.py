"""Tokenizers: text comes back exactly, files are the same for the same input, a directory loads or says why not."""

import hashlib
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from reft_jax.data import arithmetic, prompts, tokenizer
from reft_jax.errors import InputError

TEXTS = [
    "Tom has 12 apples and 3 pears.\n\nHow many?",
    "def solution():\n    a = 12 + 3\n    return a",
    "don't we'll 1,234.50",
]
HARD = [
    "  two  spaces, a tab\t, \r\n and  trailing  ",
    "é ½ ’ 😀 \u2028 \x00 中文 ٣",
    "<eos> <pad> <unk> </s> <|endoftext|>",
    "don't , stop . ! n't",
    "\n\n\n",
    "    ",
    "",
]


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.build_bpe(TEXTS * 3, 320)


@pytest.fixture(scope="module")
def word():
    return tokenizer.build_word(arithmetic.PIECE, arithmetic.vocabulary())


def files_of(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.parametrize("text", TEXTS + HARD)
def test_bpe_gives_back_the_text_exactly(bpe, text):
    ids = tokenizer.encode(bpe, text)
    assert tokenizer.decode(bpe, ids) == text
    assert not {bpe.pad_token_id, bpe.eos_token_id} & set(ids)  # text never turns into a special token


def test_bpe_digits_are_tokens_of_their_own(bpe):
    assert len(tokenizer.encode(bpe, "1234567")) == 7
    assert len(bpe) <= 320 and all(sum(c.isdigit() for c in token) <= 1 for token in bpe.get_vocab())
    assert len(tokenizer.encode(bpe, "apples")) < 6  # but words are merged


def test_special_tokens_are_explicit_and_apart(bpe, word):
    for built in (bpe, word):
        assert built.pad_token_id is not None and built.eos_token_id is not None
        assert built.pad_token_id != built.eos_token_id


def test_vocabulary_too_small_for_bytes_is_refused():
    with pytest.raises(InputError, match="config.data.vocab_size is 257; it must be at least 258"):
        tokenizer.build_bpe(TEXTS, 257)
    assert len(tokenizer.build_bpe(TEXTS, 258)) == 258


@pytest.mark.parametrize("cot", ["program", "nl"])
def test_word_gives_back_generated_text_with_one_id_a_piece(word, cot):
    records = arithmetic.generate("train", 200, seed=1, cot=cot, annotations="diverse")
    records += arithmetic.generate("pretrain", 500, seed=1, cot=cot, annotations="diverse")
    for record in records:
        for text in (prompts.prompt(record), *prompts.split_target(record, docstring=False)):
            ids = tokenizer.encode(word, text)
            assert tokenizer.decode(word, ids) == text and len(ids) == len(arithmetic.pieces(text))


def test_word_ids_follow_the_vocabulary_and_unknown_text_is_refused(word):
    built = tokenizer.build_word(r" ?\w+", ["a", " b"])
    assert tokenizer.encode(built, "a b b") == [3, 4, 4]
    with pytest.raises(InputError, match="no token for ' zebra' in 'a b zebra b'; real text needs"):
        tokenizer.encode_batch(built, ["a b", "a b zebra b"])
    with pytest.raises(ValueError, match="more than once"):
        tokenizer.build_word(r"\w", ["a", "b", "a"])
    with pytest.raises(InputError, match="no token for"):
        tokenizer.encode(word, "<eos>")


def test_decode_leaves_out_pad_and_eos_wherever_they_are(bpe):
    ids = [bpe.pad_token_id, *tokenizer.encode(bpe, "a b"), bpe.eos_token_id, bpe.pad_token_id]
    assert tokenizer.decode(bpe, ids) == tokenizer.decode(bpe, np.array(ids, np.int32)) == "a b"
    assert tokenizer.decode(bpe, []) == ""


def test_batch_keeps_order_and_shares_no_row(bpe):
    rows = tokenizer.encode_batch(bpe, ["a", "", "b c", "a"])
    assert rows == [tokenizer.encode(bpe, text) for text in ("a", "", "b c", "a")] and rows[1] == []
    rows[0].append(0)
    assert rows[3] == tokenizer.encode(bpe, "a")
    assert tokenizer.encode_batch(bpe, []) == []


@pytest.mark.parametrize("with_config", [False, True])
def test_saved_tokenizer_loads_the_same(tmp_path, bpe, word, with_config):
    for name, built in (("bpe", bpe), ("word", word)):
        tokenizer.save(built, tmp_path / name)
        assert {"tokenizer.json", "tokenizer_config.json"} <= set(files_of(tmp_path / name))
        if with_config:  # a model's directory: its type must not bring another tokenizer class with it
            (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(built)}))
        loaded = tokenizer.load(tmp_path / name)
        assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (
            built.eos_token_id,
            built.pad_token_id,
            len(built),
        )
        for text in TEXTS + HARD if name == "bpe" else ("\nAnswer reasoning:\n", "def solution():\n"):
            assert tokenizer.encode(loaded, text) == tokenizer.encode(built, text)
            assert tokenizer.decode(loaded, tokenizer.encode(loaded, text)) == text
        tokenizer.save(loaded, tmp_path / f"{name}_again")
        assert files_of(tmp_path / f"{name}_again").items() <= files_of(tmp_path / name).items()


def test_same_texts_give_the_same_bytes_in_another_process(tmp_path, bpe, word):
    code = (
        "import sys; from reft_jax.data import arithmetic, tokenizer;"
        f"tokenizer.save(tokenizer.build_bpe({TEXTS!r} * 3, 320), sys.argv[1] + '/bpe');"
        "tokenizer.save(tokenizer.build_word(arithmetic.PIECE, arithmetic.vocabulary()), sys.argv[1] + '/word')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    for name, built in (("bpe", bpe), ("word", word)):
        tokenizer.save(built, tmp_path / "here" / name)
        assert files_of(tmp_path / "here" / name) == files_of(tmp_path / name)


def edit(directory, **changes):
    """Changes fields of tokenizer_config.json; None removes one."""
    path = directory / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def test_directories_that_are_no_tokenizer_say_why(tmp_path, bpe):
    with pytest.raises(InputError, match="no tokenizer directory at .*missing"):
        tokenizer.load(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no tokenizer.json .* only: notes.txt"):
        tokenizer.load(tmp_path)
    tokenizer.save(bpe, tmp_path / "a")
    edit(tmp_path / "a", eos_token=None)
    with pytest.raises(InputError, match="has no eos_token"):
        tokenizer.load(tmp_path / "a")
    whole = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    for text in (
        "{",
        "{}",
        "[]",
        "",
        json.dumps(whole | {"model": {}}),
        json.dumps(whole | {"pre_tokenizer": {"type": "x"}}),
    ):
        (tmp_path / "a" / "tokenizer.json").write_text(text)
        with pytest.raises(InputError, match="cannot load the tokenizer in"):
            tokenizer.load(tmp_path / "a")


def test_a_missing_pad_token_is_chosen_and_said(tmp_path, bpe, word, caplog):
    for name, built, chosen in (("bpe", bpe, bpe.eos_token), ("word", word, word.unk_token)):
        tokenizer.save(built, tmp_path / name)
        edit(tmp_path / name, pad_token=None)
        with caplog.at_level(logging.INFO):
            loaded = tokenizer.load(tmp_path / name)
        assert loaded.pad_token == chosen and f"has no pad token; {chosen}" in caplog.text
