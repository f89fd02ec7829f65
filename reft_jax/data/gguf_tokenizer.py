"""The tokenizer in a GGUF file, built from its vocabulary as llama.cpp reads it.

`tokenizer.ggml.model` is `gpt2`, a byte-level BPE with merges whose text is cut by `tokenizer.ggml.pre`, or `llama`, SentencePiece's BPE,
which has a score for each token: of two neighbours that make a token those with the highest score are joined first. Here that is a BPE whose
merges are all the ways to make a token of two others, by the token's score. (llama.cpp takes equal scores from the left, this the lower id;
SentencePiece gives none twice.)

Whatever text spells, no special token comes of it, but tokens that the file calls user-defined do, as in llama.cpp: Gemma's runs of
spaces and line ends. What the converter put in for rows of the embedding without a token ([PAD151665]) is left out.
"""

import pathlib
import re

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from reft_jax.data import gguf
from reft_jax.errors import InputError

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6  # of tokenizer.ggml.token_type; 1 is a normal token
PADDING = re.compile(r"\[PAD\d+\]")
SPACE = "▁"

# How text is cut before merging: patterns one after the other, each of what those before it left whole or found (llama.cpp's
# llama-vocab.cpp; where that rewrote a model's own pattern for its engine, the model's own).
DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{LINES}"
QWEN2 = rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{LINES}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{LINES}"
)
CHINESE = r"[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + LINES
)
SPLITS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "mellum", "a.x-4.0", "trillion", "exaone4"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (DIGIT, GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), (LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"), (QWEN2,)),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", DIGIT),
    "deepseek-v3": (r"\p{N}{1,3}", CHINESE, DEEPSEEK3),
    "tekken": (TEKKEN,),
}
# A piece that is a token is that token, whatever the merges would make of it.
WHOLE = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "tekken")
BEGINS = WHOLE  # their texts begin with BOS where the file does not say; so do SentencePiece's


def load(path: pathlib.Path):
    """The `transformers` fast tokenizer of a GGUF file. InputError for a vocabulary that is damaged or of another kind."""
    import transformers

    header = gguf.read(path)
    kind = header.get("tokenizer.ggml.model", str)
    if kind not in BUILDERS:
        raise InputError(f"{path}: tokenizer.ggml.model {kind!r} is not supported; supported are {', '.join(BUILDERS)}")
    tokens = [word or f"[EMPTY_{i}]" for i, word in enumerate(header.get("tokenizer.ggml.tokens", list))]
    types = _numbers(header, "tokenizer.ggml.token_type", len(tokens), kind="i")
    ids = {word: i for i, word in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(word for i, word in enumerate(tokens) if ids[word] != i)
        raise InputError(f"{path}: tokenizer.ggml.tokens has {twice!r} twice; {gguf.REMEDY}")
    there = {word: i for word, i in ids.items() if types[i] != UNUSED or not PADDING.fullmatch(word)}
    named = {key: header.token_ids(f"{key}_id") for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    names = {key: tokens[found[0]] for key, found in named.items() if found}
    try:
        built, begins = BUILDERS[kind](header, there, types, names.get("unk_token"))
        added = [
            tokenizers.AddedToken(word, normalized=False, special=types[i] != USER_DEFINED)
            for word, i in there.items()
            if types[i] in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
        built.add_tokens(added)
    except InputError:
        raise
    except Exception as error:  # `tokenizers` raises nothing more specific
        said = " ".join(str(error).split())
        raise InputError(f"{path}: no tokenizer can be made of its vocabulary ({said}); {gguf.REMEDY}") from error
    begins = header.get("tokenizer.ggml.add_bos_token", bool, begins) and "bos_token" in names
    ends = header.get("tokenizer.ggml.add_eos_token", bool, False) and "eos_token" in names
    if around := [names["bos_token"]] * begins + ["$A"] + [names["eos_token"]] * ends:
        special = [(names[key], ids[names[key]]) for key, used in (("bos_token", begins), ("eos_token", ends)) if used]
        pair = [*around, *(each.replace("$A", "$B") + ":1" for each in around)]
        built.post_processor = processors.TemplateProcessing(single=around, pair=pair, special_tokens=special)
    template = header.get("tokenizer.chat_template", str, None)
    more = dict(chat_template=template, clean_up_tokenization_spaces=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, **names, **more)


def _numbers(header: gguf.Header, key: str, size: int, *, kind: str):
    """An array of one number for each token. `kind`: NumPy's letter for integers or floats."""
    values = header.metadata.get(key)
    if not hasattr(values, "dtype") or values.dtype.kind != kind or len(values) != size:
        raise InputError(f"{header.path}: {key} must have a number for each of the {size} tokens; {gguf.REMEDY}")
    return values.tolist()


def _byte_level(header: gguf.Header, ids: dict[str, int], types: list[int], unknown: str | None):
    """(tokenizer, whether a text begins with BOS by default) of GPT-2's kind."""
    pre = header.get("tokenizer.ggml.pre", str, "default")
    if pre not in SPLITS:
        raise InputError(
            f"{header.path}: tokenizer.ggml.pre {pre!r} is not supported; supported are {', '.join(sorted(SPLITS))}"
        )
    merges = []
    for text in header.get("tokenizer.ggml.merges", list):
        cut = text.find(" ", 1)
        merges.append((text[:cut], text[cut + 1 :]))
    built = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=pre in WHOLE))
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in SPLITS[pre]]
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([*cuts, as_bytes])
    built.decoder = decoders.ByteLevel()
    return built, pre in BEGINS


def _sentencepiece(header: gguf.Header, ids: dict[str, int], types: list[int], unknown: str | None):
    """(tokenizer, whether a text begins with BOS by default) of SentencePiece's kind."""
    scores = _numbers(header, "tokenizer.ggml.scores", len(types), kind="f")
    if any(score != score for score in scores):
        raise InputError(f"{header.path}: tokenizer.ggml.scores holds NaN; {gguf.REMEDY}")
    parts = {word for word, i in ids.items() if types[i] not in (UNKNOWN, CONTROL, BYTE)}
    merges = [
        (word[:cut], word[cut:])
        for word in sorted(parts, key=lambda word: (-scores[ids[word]], ids[word]))
        for cut in range(len(word) - 1, 0, -1)
        if word[:cut] in parts and word[cut:] in parts
    ]
    built = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    replace = normalizers.Replace(" ", SPACE)
    built.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * prefix)
    return built, True


BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}
