"""Tokenizers: text comes back exactly, files are the same for the same input, a directory loads or says why not.

`FORMS`: small tokenizers of the forms that real models have, as their repositories hold them. Also for test_prompts.py.
"""

import hashlib
import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from reft_jax.data import prompts, tokenizer
from reft_jax.errors import InputError
from reft_jax.tasks import arithmetic

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

ASCII = [chr(i) for i in range(33, 127)]
WORDS = "Question|Answer| reasoning|How| many| balls| in| bags|bags| of|def| solution|Therefore".split("|")
WORDS += "return| return| the| answer| is|12".split("|")
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def bpe_parts(alphabet, space, words):
    """(vocabulary, merges): runs of two to four spaces, and the words; ids in the order of `alphabet`, then merges."""
    merges = [(space, space), (space * 2, space), (space * 2, space * 2)]
    for word in words:
        word = word.replace(" ", space).replace("\n", "Ċ")
        merges += [(word[:i], word[i]) for i in range(1, len(word))]
    merges = list(dict.fromkeys(merges))
    return {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *map("".join, merges)]))}, merges


def special(*contents):
    return [tokenizers.AddedToken(content, special=True, normalized=False) for content in contents]


def byte_level(pre_tokenizer, words=(), pairs=()):
    """Byte-level BPE: no unknown token, and one special token after the vocabulary, for everything. `pairs`: of tokens that make one, last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = bpe_parts(alphabet, "Ġ", [*WORDS, *words])
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(pairs)}
    built = tokenizers.Tokenizer(models.BPE(vocabulary, [*merges, *pairs]))
    built.add_special_tokens(special("<|endoftext|>"))
    built.pre_tokenizer = pre_tokenizer
    built.decoder = decoders.ByteLevel()
    built.post_processor = processors.ByteLevel(trim_offsets=False)
    return built


def gpt2():
    """Its repository names no special token at all: only config.json has an id. No padding."""
    built = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    end = built.token_to_id("<|endoftext|>")
    return built, {"model_max_length": 1024}, {"model_type": "gpt2", "bos_token_id": end, "eos_token_id": end}


def smollm():
    """A line end and the spaces after it, but for the one before a word, are one token. Not in FORMS: it has a place for a cut of its own."""
    built = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), pairs=[("Ċ", "ĠĠĠ")])
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return built, named, {"model_type": "llama"}


def qwen():
    """Qwen's split: punctuation takes the line's end behind it along. Padding with the token that ends."""
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN), behavior="isolated")
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built = byte_level(pre_tokenizers.Sequence([split, byte]), words=[":\n"])
    built.normalizer = normalizers.NFC()
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    return built, named, {"model_type": "qwen2"}


def galactica_bytes():
    """Byte-level BPE in which each digit is cut off before anything else; "opt" has another pipeline in transformers."""
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    built = byte_level(pre_tokenizers.Sequence(cut))
    end = built.token_to_id("<|endoftext|>")
    return built, {}, {"model_type": "opt", "eos_token_id": end, "pad_token_id": end}


def galactica():
    """SentencePiece-like unigram pieces, digits one by one. Special tokens are pieces like others; config.json has ids."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{i:02X}>", -30.0) for i in range(256)]
    pieces += [(character, -10.0) for character in ["▁", "\n", *ASCII]]
    pieces += [(word.replace(" ", "▁"), -9.0) for word in [*WORDS, "    ", "\n\n"]]  # "12" must never be chosen
    built = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    space = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([space, pre_tokenizers.Digits(individual_digits=True)])
    built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always")])
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return built, {}, {"model_type": "opt", **ids}


def llama(prepend):
    """BPE with a byte for what it does not know, and a template that would put <s> before every text."""
    alphabet = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *ASCII]
    vocabulary, merges = bpe_parts(alphabet, "▁", WORDS[:-1])
    built = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # digits: no merges
    )
    built.add_special_tokens(special("<unk>", "<s>", "</s>"))
    if prepend:
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        built.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return built, named, {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}


def llama_normalizer():
    built, named, model = llama(prepend=True)
    built.enable_truncation(8)  # some repositories leave such settings behind
    built.enable_padding(pad_id=0, pad_token="<unk>")
    return built, {**named, "tokenizer_class": "LlamaTokenizer"}, model


def llama_metaspace():
    built, named, model = llama(prepend=False)
    return built, {**named, "tokenizer_class": "CodeLlamaTokenizerFast"}, {**model, "model_type": "code_llama"}


FORMS = {form.__name__: form for form in (gpt2, qwen, galactica_bytes, galactica, llama_normalizer, llama_metaspace)}


def write(directory, built, named, model):
    """A Hugging Face directory; `named` and `model` are its tokenizer_config.json and config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    built.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    (directory / "config.json").write_text(json.dumps(model))
    return directory


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
    kept = tokenizer.encode_batch(built, ["a b", "a b zebra b"], keep_unknown=True)
    assert kept == [[3, 4], [3, 4, built.unk_token_id, 4]]
    with pytest.raises(ValueError, match="more than once"):
        tokenizer.build_word(r"\w", ["a", "b", "a"])
    with pytest.raises(InputError, match="no token for"):
        tokenizer.encode(word, "<eos>")
    glued = "    return anddef solution():\n"  # two pieces that the model wrote side by side
    assert word.unk_token_id in tokenizer.encode_batch(word, [glued], keep_unknown=True)[0]


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
        "import sys; from reft_jax.data import tokenizer; from reft_jax.tasks import arithmetic;"
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


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    return tokenizer.load(write(tmp_path_factory.mktemp(request.param) / "hf", *FORMS[request.param]()))


def continued(built, text):
    return tokenizer.encode_batch(built, [text], after_newline=[True])[0]


def tokens(built, ids):
    return built.convert_ids_to_tokens(ids)


def spelt(built, ids):
    """The tokens in one line."""
    return " ".join(tokens(built, ids))


# Leading and trailing spaces, indented code, line ends first, characters of two and four bytes, special tokens' names.
RESPONSES = [
    *TEXTS,
    *HARD,
    "    x = 12\n        return x",
    " a",
    "a ",
    "\n\nx",
    "\n x",
    "é",
    "😀",
    "<s>",
    "</s></s><s>x",
    "<<s>s><pad><0x0A>",
]


@pytest.mark.parametrize("text", RESPONSES)
def test_real_forms_give_back_every_response_and_never_break_on_a_part_of_one(form, text):
    ids = continued(form, text)
    assert tokenizer.decode(form, ids) == text
    assert not {form.bos_token_id, form.eos_token_id, form.pad_token_id, form.unk_token_id} & set(ids)
    assert tokenizer.decode(form, [*ids, form.eos_token_id, form.pad_token_id]) == text
    for cut in range(len(ids)):
        assert text.startswith(tokenizer.decode(form, ids[:cut]).rstrip("\ufffd"))  # only an unfinished end is lost
    assert (
        tokenizer.decode(form, [*ids, len(form) + 7]) == text
    )  # a row of the model's that the tokenizer has no token for


def test_half_a_character_at_a_cut_end_takes_nothing_else_along(form):
    # Where a line's end is a byte too, bytes that make no character together would swallow it.
    assert tokenizer.decode(form, continued(form, "é")[:1]) == "\ufffd"


@pytest.mark.parametrize("name", FORMS)
def test_real_forms_are_the_same_after_save_and_load(tmp_path, name):
    loaded = tokenizer.load(write(tmp_path / "hf", *FORMS[name]()))
    tokenizer.save(loaded, tmp_path / "again")  # a run's folder: without the config.json that named the ids
    again = tokenizer.load(tmp_path / "again")
    assert tokenizer.special_ids(again) == tokenizer.special_ids(loaded)
    assert tokenizer.encode_batch(again, RESPONSES) == tokenizer.encode_batch(loaded, RESPONSES)
    assert [continued(again, text) for text in RESPONSES] == [continued(loaded, text) for text in RESPONSES]


@pytest.mark.parametrize(
    "name,expected",
    [
        ("gpt2", (339, "<|endoftext|>", 338, "<|endoftext|>", 338)),
        ("qwen", (340, "<|endoftext|>", 339, "<|endoftext|>", 339)),
        ("galactica_bytes", (339, "<|endoftext|>", 338, "<|endoftext|>", 338)),
        ("galactica", (377, "</s>", 2, "<pad>", 1)),
        ("llama_normalizer", (435, "</s>", 2, "<unk>", 0)),
        ("llama_metaspace", (435, "</s>", 2, "<unk>", 0)),
    ],
)
def test_special_ids_of_real_forms(tmp_path, name, expected, caplog):
    with caplog.at_level(logging.INFO):
        loaded = tokenizer.load(write(tmp_path, *FORMS[name]()))
    fields = ("size", "eos_token", "eos_token_id", "pad_token", "pad_token_id")
    assert tokenizer.special_ids(loaded) == dict(zip(fields, expected, strict=True))
    assert ("has no pad token" in caplog.text) is (name not in ("qwen", "llama_normalizer"))  # these two name one


def test_digits_are_one_token_each_where_the_file_says_so(tmp_path):
    # In both, transformers' class for config.json's model type would ignore the split: "12" is in their vocabularies.
    for name, expected in (
        ("galactica", "▁of ▁ 1 2 . 1 2"),
        ("galactica_bytes", "Ġof Ġ 1 2 . 1 2"),
        ("gpt2", "Ġof Ġ 12 . 12"),
    ):
        loaded = tokenizer.load(write(tmp_path / name, *FORMS[name]()))
        assert spelt(loaded, continued(loaded, " of 12.12")) == expected


def test_a_special_token_s_name_is_text_even_where_it_is_a_word_of_the_vocabulary(tmp_path):
    loaded = tokenizer.load(write(tmp_path, *FORMS["galactica"]()))
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert raw.encode("of</s>").tokens == ["▁of", "</s>"]  # else this test shows nothing
    assert spelt(loaded, tokenizer.encode(loaded, "of</s><s> <unk>")) == "▁of < / s > < s > ▁ < u n k >"
    assert spelt(loaded, continued(loaded, "<pad>12")) == "< p a d > 1 2"
    built, named, model = llama_metaspace()
    built.add_tokens(["<end>"])  # ends responses, but is not marked as special
    model["eos_token_id"] = built.token_to_id("<end>")
    loaded = tokenizer.load(write(tmp_path / "b", built, {}, model))
    assert loaded.eos_token == "<end>" and spelt(loaded, tokenizer.encode(loaded, "of<end>")) == "▁of < e n d >"


def test_a_special_token_that_is_a_character_of_the_text_is_refused(tmp_path):
    built, named, model = gpt2()
    loaded = tokenizer.load(write(tmp_path, built, {**named, "pad_token": "!"}, model))
    with pytest.raises(InputError, match="reads 'Yes!' as its special token '!'; give it another one"):
        tokenizer.encode(loaded, "Yes!")


def test_a_beginning_that_would_join_the_line_s_end_is_still_spelt_without_a_space(tmp_path):
    built, named, model = galactica()
    loaded = tokenizer.load(write(tmp_path / "a", built, named, model))
    assert tokens(loaded, tokenizer.encode(loaded, "x\n\nx")) == ["▁", "x", "\n\n", "x"]
    assert tokens(loaded, continued(loaded, "\nx")) == ["\n", "x"]
    joined = [("\n", "~"), (")", "~"), ("0", "~")]
    vocabulary = ["▁", "\n", "\t", "é", *ASCII, *map("".join, joined), "</s>"]
    built = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, joined))
    built.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    built.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    loaded = tokenizer.load(write(tmp_path / "b", built, {"eos_token": "</s>"}, {}))
    with pytest.raises(InputError, match="joins the beginning of '~x' to whatever stands before it"):
        continued(loaded, "~x")


def test_an_unknown_token_that_only_the_model_knows_of_is_no_text(tmp_path):
    built, named, model = galactica()
    state = json.loads(built.to_str())
    state["model"]["byte_fallback"] = False
    loaded = tokenizer.load(write(tmp_path / "a", tokenizers.Tokenizer.from_str(json.dumps(state)), named, model))
    with pytest.raises(InputError, match="no token for '中' in 'a 中 b'"):
        tokenizer.encode(loaded, "a 中 b")
    built = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    loaded = tokenizer.load(write(tmp_path / "b", built, {"eos_token": "</s>"}, {}))
    with pytest.raises(InputError, match="no token for 'b' in 'b'"):
        tokenizer.encode_batch(loaded, ["a", "b"])


def lower(built):
    built.normalizer = normalizers.Lowercase()


def one_space(built):  # what SentencePiece does unless told otherwise
    built.normalizer = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")


def spaced_digits(built):  # the wrong way round: each digit becomes a word of its own, with a space before it
    space = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), space])


def no_accents(built):  # without an unknown token or bytes, text is lost in silence
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "\n", "\t", "▁", *ASCII])}
    built.model = models.BPE(vocabulary, [])


@pytest.mark.parametrize("spoil", [lower, one_space, spaced_digits, no_accents])
def test_a_tokenizer_that_changes_text_is_refused(tmp_path, spoil):
    built, named, model = llama_metaspace()
    spoil(built)
    with pytest.raises(InputError, match="gives back .* for .*; programs and answers cannot be learnt with it"):
        tokenizer.load(write(tmp_path, built, {"eos_token": "</s>"}, {}))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "ids", [{}, *({"eos_token_id": i} for i in (5000, -1, 2**70, True, "2", 2.0, None, [], [5000]))]
)
def test_without_an_end_the_error_says_how_to_set_one(tmp_path, name, ids):
    built, named, model = FORMS[name]()
    named.pop("eos_token", None)
    write(tmp_path, built, named, {"model_type": model["model_type"], **ids})
    with pytest.raises(
        InputError, match=r"no eos_token.*tokenizer_config.json \(eos_token\) or in config.json \(eos_token_id"
    ):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("ids,expected", [(2, 2), ([2, 3], 2), ([1, 2], 1), ([0], 0)])
def test_the_first_of_several_ends_is_taken(tmp_path, ids, expected):
    built, named, _ = galactica()
    assert tokenizer.load(write(tmp_path, built, named, {"eos_token_id": ids})).eos_token_id == expected


@pytest.mark.parametrize(
    "text,expected",
    [('{"eos_token_id": 1}', 1), ('{"eos_token_id": 5000}', 2), ('{"eos_token_id": null}', 2)],
)
def test_generation_config_comes_first(tmp_path, text, expected):
    write(tmp_path, *galactica())
    (tmp_path / "generation_config.json").write_text(text)
    assert tokenizer.load(tmp_path).eos_token_id == expected


@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text, said",
    [
        (b"{", ":1: malformed JSON"),
        (b"", ": the file is empty"),
        (b"[]", ": holds '[]'; a JSON object is expected"),
        (b"\xff\xfe{", ": not UTF-8"),
        (b'{"eos_token": "a", "eos_token": "b"}', ": the key 'eos_token' stands twice in one object"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, text, said):
    write(tmp_path, *galactica())
    (tmp_path / file).write_bytes(text)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / file}{said}")):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("change", [{"model_max_length": "x"}, {"eos_token": 5}, {"padding_side": "up"}])
def test_a_setting_of_another_type_is_one_error(tmp_path, bpe, change):
    tokenizer.save(bpe, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="cannot load the tokenizer in"):
        tokenizer.load(tmp_path)


def test_an_added_token_that_would_get_another_id_is_refused(tmp_path, bpe):
    tokenizer.save(bpe, tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    num, one = len(bpe), {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

    def added(*ids):
        more = [one | {"id": i, "content": f"<t{i}>"} for i in ids]
        (tmp_path / "tokenizer.json").write_text(json.dumps(state | {"added_tokens": state["added_tokens"] + more}))
        return tokenizer.load(tmp_path)

    assert added(num, num + 1).convert_tokens_to_ids(f"<t{num + 1}>") == num + 1
    with pytest.raises(
        InputError,
        match=f"tokenizer.json: the added token '<t{num + 3}>' has the id {num + 3}, and is read as {num + 1}",
    ):
        added(num, num + 3)
    with pytest.raises(InputError, match=f"'<t{num + 1}>' has the id {num + 1}, and is read as {num}"):
        added(num + 1, num)


def test_special_tokens_in_files_of_their_own_are_found(tmp_path):
    built, _, model = llama_normalizer()
    write(tmp_path, built, {}, {"model_type": "llama"})
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert tokenizer.load(tmp_path).eos_token_id == 2
    (tmp_path / "tokenizer_config.json").unlink()  # only tokenizer.json and config.json, as after a conversion
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(model))
    assert tokenizer.load(tmp_path).eos_token_id == 2


def test_byte_level_with_a_space_before_every_text(tmp_path):
    built = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    loaded = tokenizer.load(write(tmp_path, built, {"eos_token": "<|endoftext|>"}, {}))
    assert spelt(loaded, tokenizer.encode(loaded, "of 12")) == "Ġof Ġ 12"
    for text, expected in (("of 12", "o f Ġ 12"), ("    return", "ĠĠĠ Ġreturn"), ("\n\na", "Ċ Ċ a")):
        assert spelt(loaded, continued(loaded, text)) == expected
        assert tokenizer.decode(loaded, continued(loaded, text)) == text


@pytest.mark.parametrize(
    "generation, model, expected",
    [
        ([1, 7, 7, 9], None, (1, 7, 9)),
        (7, 9, (1, 7, 9)),
        (1, {}, (1,)),
        (None, [9, 1], (1, 9)),
        ({}, 8, (1, 8)),
        ([], {"text_config": {"eos_token_id": [1, 6]}}, (1, 6)),
        (5, {"eos_token_id": 4, "text_config": {"eos_token_id": 3}}, (1, 5, 4, 3)),
        ({}, {"text_config": None}, (1,)),
    ],
)
def test_ends_are_all_that_the_model_s_files_name(generation, model, expected, tmp_path, bpe):
    assert bpe.eos_token_id == 1
    for name, ids in (("generation_config.json", generation), ("config.json", model)):
        (tmp_path / name).write_text(json.dumps(ids if isinstance(ids, dict) else dict(eos_token_id=ids)))
    assert tokenizer.end_ids(bpe, tmp_path) == expected
    assert tokenizer.end_ids(bpe, tmp_path / "absent") == tokenizer.end_ids(bpe) == (1,)
    assert tokenizer.spelt(bpe, expected[:1]) == "<eos> (1)"


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("ids", [True, -1, 10**6, 2**70, "</s>", 2.0, [1, 5000], [[1]], {"a": 1}])
def test_an_end_that_is_no_token_is_refused(file, ids, tmp_path, bpe):
    (tmp_path / file).write_text(json.dumps(dict(eos_token_id=ids)))
    wrong = ids[-1] if isinstance(ids, list) else ids
    said = f"{tmp_path / file}: eos_token_id names {wrong!r}; it must be ids of the tokenizer's (0 to {tokenizer.num_ids(bpe) - 1})"
    with pytest.raises(InputError, match=re.escape(said)):
        tokenizer.end_ids(bpe, tmp_path)


def test_an_id_without_a_token_is_no_end(tmp_path):
    built = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "</s>": 5}, unk_token="[UNK]"))
    loaded = tokenizer.load(write(tmp_path, built, {"eos_token": "</s>"}, {"eos_token_id": 3}))
    assert tokenizer.num_ids(loaded) == 6 > len(loaded)  # a vocabulary with holes
    with pytest.raises(InputError, match="config.json: eos_token_id names 3; it must be ids of the tokenizer's"):
        tokenizer.end_ids(loaded, tmp_path)


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    "template, end",
    [
        (None, None),
        (CHATML, "<|im_end|>"),
        (CHATML + "<|endoftext|>", "<|im_end|>"),  # the turn's end, not the text's
        ("{{ messages[1].content }} <|endoftext|>", "<|endoftext|>"),
        ("<|im_end|>{{ messages[1].content }}\n\n", None),  # words alone
        ("{{ messages[0].content }}<|im_end|>", None),
        ("{{ raise_exception('a system message is needed') }}", None),
        ("{% for", None),
    ],
)
def test_the_end_of_a_turn_is_the_template_s(template, end, tmp_path):
    built, named, model = qwen()
    built.add_special_tokens(special("<|im_start|>", "<|im_end|>"))
    write(tmp_path, built, named, model)
    if template:
        (tmp_path / "chat_template.jinja").write_text(template)
    loaded = tokenizer.load(tmp_path)
    turn = end and built.token_to_id(end)
    assert tokenizer.turn_end(loaded) == turn
    assert tokenizer.end_ids(loaded, tmp_path) == tuple(dict.fromkeys([loaded.eos_token_id, *([turn] if turn else [])]))
    tokenizer.save(loaded, tmp_path / "again")
    assert tokenizer.turn_end(tokenizer.load(tmp_path / "again")) == turn


def test_the_default_of_several_templates_counts(tmp_path):
    built, named, model = qwen()
    built.add_special_tokens(special("<|im_end|>"))
    several = [
        dict(name="tools", template="{{ messages[1].content }}<|endoftext|>"),
        dict(name="default", template=CHATML),
    ]
    loaded = tokenizer.load(write(tmp_path, built, named | dict(chat_template=several), model))
    assert tokenizer.turn_end(loaded) == built.token_to_id("<|im_end|>")


def test_decode_leaves_out_further_ends(bpe):
    ids = tokenizer.encode(bpe, "a b")
    assert tokenizer.decode(bpe, [*ids, 9], ends=(1, 9)) == "a b" != tokenizer.decode(bpe, [*ids, 9])
