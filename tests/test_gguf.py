"""GGUF files: each family against transformers on the same weights, types, tokenizers against llama.cpp, and damaged files."""

import json

import numpy as np
import pytest
import tokenizers

from reft_jax import models
from reft_jax.data import gguf_tokenizer
from reft_jax.data import tokenizer as tokenizer_lib
from tests import families, llama_cpp, tiny

pytest.importorskip("gguf")
pytest.importorskip("torch")
from tests import gguf_files  # noqa: E402

LENGTH = 30
TOKENS = np.random.default_rng(0).integers(0, families.VOCAB, (3, LENGTH)).astype(np.int32)
# What llama.cpp's converter has no key for, and what it takes another way, is left out of the cases of `families`.
families.CASES |= {
    "llama of Llama 3.2": (
        "LlamaConfig",
        families.COMMON
        | dict(
            head_dim=64,
            rope_parameters=families.LLAMA3 | dict(rope_theta=500000.0, original_max_position_embeddings=8192),
        ),
    ),
    "llama with other Llama 3 scaling": (
        "LlamaConfig",
        families.COMMON
        | dict(
            head_dim=32,
            rope_parameters=families.LLAMA3
            | dict(
                rope_theta=10000.0, low_freq_factor=2.0, high_freq_factor=10.0, original_max_position_embeddings=512
            ),
        ),
    ),
    "gpt2 plain": ("GPT2Config", families.GPT | dict(n_embd=16)),
    "qwen3 with plain yarn": ("Qwen3Config", families.COMMON | dict(head_dim=6, rope_parameters=families.YARN)),
    "qwen3 tied": ("Qwen3Config", families.COMMON | dict(tie_word_embeddings=True, head_dim=6)),
}
CASES = [
    case
    for case in families.CASES
    if case.split()[0] in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2")
    and case not in ("mistral", "qwen2 with yarn and windows", "qwen3 with yarn", "gpt2")
]


def relative_error(model, params, theirs, tokens, lengths):
    """Of the logits, the largest over ragged batches padded right and left."""
    errors = []
    for left in (False, True):
        mask = tiny.lengths_mask(lengths, tokens.shape[1], left=left)
        expected = families.logits(theirs, tokens, mask)[mask]
        got = np.asarray(models.logits(model, params, tokens, mask))[mask]
        assert np.std(expected) > 0.3
        errors.append(np.abs(got - expected).max() / np.abs(expected).max())
    return max(errors)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_of_the_same_weights(case, tmp_path):
    file, theirs = gguf_files.of_case(tmp_path / "model.gguf", case)
    model, params = models.load_hf(file)
    family = "llama" if case == "mistral without windows" else case.split()[0]
    assert model.arch.family == family
    assert relative_error(model, params, theirs, TOKENS, [LENGTH, 17, 3]) < 2e-5


# ------------------------------------------------------------------ tokenizers

TEXTS = [
    "    Tom = a1 + 12.5\n  if Tom:\n\treturn Tom  # Ann's\n\nDone , so .",
    "é漢字ひらがな 123456 ١٢٣ ½ ² x²  \u00a0\u3000 y ﬁ ﷺ 中文。测试,１２３",
    "I'LL we'Ve  don't \r\n\r\n a\tb  ''''s 'S",
    "🙂🙂 ok \ufffd \u0301e\u0301 ÀÉÎ Straße ИЖ ǅ aʰB İstanbul",
    " leading",
    "trailing   ",
    "\n\n\n",
    "a  b   c    d",
    "$1,234.56 + 7% = <b>x</b> -----=====#### 12 and 1234567 or 12345678.5",
    "https://a.b/c?d=1&e=2 x=1;y=2//z  \n  q",
    "\x00\x07z CamelCase ABCdef xYZ aB",
    *(f"Tom has {a} pens, and buys {a * 37} more for ${a / 8}. How many in {2000 + a}?" for a in range(1, 300, 7)),
]


def tiny_model(vocab_size: int):
    import transformers

    sizes = families.COMMON | dict(
        vocab_size=vocab_size, num_hidden_layers=1, hidden_size=32, num_attention_heads=1, num_key_value_heads=1
    )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True))


def byte_level(writer, pre: str):
    """A byte-level vocabulary whose merges go over every border that a split could draw, so that each piece is seen in the ids."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=alphabet, special_tokens=["<s>", "</s>", "<think>"]
    )
    built.train_from_iterator(TEXTS, trainer)
    state = json.loads(built.to_str())["model"]
    words = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 4] + [1] * (len(words) - 3))
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    return len(words)


CUTS = {(cuts, pre in gguf_tokenizer.WHOLE): pre for pre, cuts in reversed(gguf_tokenizer.SPLITS.items())}


@pytest.mark.parametrize("pre", CUTS.values())
def test_each_pretokenizer_cuts_as_llama_cpp(pre, tmp_path):
    file = gguf_files.write(
        tmp_path / "model.gguf", tiny_model(1000), vocabulary=lambda writer: byte_level(writer, pre)
    )
    tokenizer = tokenizer_lib.load(file)
    assert tokenizer.all_special_tokens == ["<s>", "</s>"] and tokenizer_lib.encode(tokenizer, "<think>") == [2]
    texts = [*TEXTS, "so <think> so", "so <s>"]
    if pre == "tekken":  # llama.cpp's pattern leaves out combining marks, which the model's own has
        texts = [text for text in texts if "\u0301" not in text]
    ours = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ours == llama_cpp.ask(file, texts)["ids"]
    assert [tokenizer_lib.decode(tokenizer, ids) for ids in ours] == texts


def pieces(writer, user_defined=("<think>",), **keys):
    """SentencePiece's kind of vocabulary: bytes, user-defined words, letters of ASCII, and what merging them finds worth a token."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    built.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=700))
    vocab = built.get_vocab()
    found = [word for word in sorted(vocab, key=vocab.get) if word.replace("▁", "a").isascii() and "\0" not in word]
    own = [*gguf_files.WORDS[:3], *gguf_files.BYTES, *user_defined]
    words = list(dict.fromkeys([*own, *(word for word in found if word not in own)]))
    gguf_files.sentencepiece(writer, words, user_defined)
    for key, value in keys.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    return len(words)


@pytest.mark.parametrize("prefix", [False, True, None])
def test_scores_merge_as_in_llama_cpp(prefix, tmp_path):
    def vocabulary(writer):
        if prefix is False:  # as Gemma's, whose runs of spaces stand there
            return pieces(writer, ("  ", "    ", "\n\n", "<think>"), add_space_prefix=False)
        return pieces(writer, **({} if prefix is None else dict(add_space_prefix=True)))

    size = vocabulary(gguf_files.gguf.GGUFWriter(tmp_path / "none.gguf", "llama"))
    file = gguf_files.write(tmp_path / "model.gguf", tiny_model(size), vocabulary=vocabulary)
    tokenizer = tokenizer_lib.load(file)
    texts = [*TEXTS, "so <think>  so", "so <s> </s>", "-" * 37, "▁a ▁▁"]
    ours = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ours == llama_cpp.ask(file, texts)["ids"]
    assert [tokenizer.decode(ids) for ids in ours[: len(TEXTS)]] == TEXTS
    assert tokenizer("so")["input_ids"] == [1, *tokenizer("so", add_special_tokens=False)["input_ids"]]
