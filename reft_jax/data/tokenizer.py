"""Tokenizers: two that are built here, any other from a Hugging Face directory, all used the same way.

`build_word`: one id for each piece of a closed vocabulary (the generated data). `build_bpe`: byte-level BPE trained on
the texts of the run, each digit a token of its own. Both are `transformers` fast tokenizers with pad and eos of their
own, are saved as a Hugging Face tokenizer directory, and give back exactly the text that they were given. Real models'
tokenizers come through the same `load`.

Unusual: text never turns into a special token, even where it spells one ("</s>" in a question is five characters).
"""

import logging
import pathlib
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from reft_jax.errors import InputError

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"

# GPT-2's split, with numbers cut into digits: a word or a digit with the space before it, punctuation, white space.
BPE_PIECE = r"'(?:s|t|m|d|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def build_word(piece_regex: str, vocabulary: Sequence[str]):
    """A tokenizer with one id per entry of `vocabulary`; text is cut by `piece_regex`. Ids follow the given order."""
    words = [PAD, EOS, UNK, *vocabulary]
    ids = {word: i for i, word in enumerate(words)}
    if len(ids) != len(words):
        twice = sorted({word for word in words if words.count(word) > 1})
        raise ValueError(f"the vocabulary holds an entry more than once: {twice[:5]}")
    built = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNK))
    built.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(piece_regex), behavior="isolated")
    built.decoder = decoders.Fuse()
    return _wrap(built, unk_token=UNK)


def build_bpe(texts: Iterable[str], vocab_size: int):
    """A byte-level BPE tokenizer trained on `texts`; the same texts give the same tokenizer. 258 ids is the least."""
    least = 256 + len((PAD, EOS))
    if vocab_size < least:
        raise InputError(
            f"config.data.vocab_size is {vocab_size}; it must be at least {least} (256 bytes, {PAD} and {EOS})"
        )
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(BPE_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    built.train_from_iterator(texts, trainer)
    return _wrap(built)


def save(tokenizer, directory) -> None:
    """Writes a Hugging Face tokenizer directory (tokenizer.json and tokenizer_config.json), made if absent."""
    tokenizer.save_pretrained(str(directory))


def load(directory):
    """The tokenizer in a Hugging Face directory; nothing is downloaded. Raises InputError where there is none or it has
    no end-of-sequence token. One without a padding token gets its unknown or eos token for it, which is logged."""
    import transformers

    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(f"no tokenizer directory at {directory}; give a directory that holds tokenizer.json")
    present = sorted(path.name for path in directory.iterdir())
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(present):
        raise InputError(
            f"{directory} holds no tokenizer.json (nor tokenizer.model, vocab.json), only: {', '.join(present[:8]) or '-'}"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # `tokenizers` raises nothing more specific for a file that it cannot read
        said = " ".join(str(error).split())
        raise InputError(f"cannot load the tokenizer in {directory}: {type(error).__name__}: {said}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {directory} has no eos_token, so no response could end; name one in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        # Masks say what is padding, so any id would do; one that text never holds is easiest to see in a dump.
        tokenizer.pad_token = tokenizer.eos_token if tokenizer.unk_token is None else tokenizer.unk_token
        logging.getLogger(__name__).info(
            "the tokenizer in %s has no pad token; %s (id %d) pads",
            directory,
            tokenizer.pad_token,
            tokenizer.pad_token_id,
        )
    tokenizer.clean_up_tokenization_spaces = False
    for how in ("is_local", "local_files_only"):  # how it was found; `save` would write that into the next directory
        tokenizer.init_kwargs.pop(how, None)
    return tokenizer


def encode(tokenizer, text: str) -> list[int]:
    """The ids of one text; see `encode_batch`."""
    return encode_batch(tokenizer, [text])[0]


def encode_batch(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text: no BOS, no EOS, no special tokens. Raises InputError for text the vocabulary cannot spell."""
    distinct = [text for text in dict.fromkeys(texts) if text]
    ids = {"": []}
    if distinct:
        rows = tokenizer(
            distinct, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, truncation=False
        )["input_ids"]
        ids.update(zip(distinct, rows, strict=True))
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown != tokenizer.eos_token_id:  # GPT-2 has one token for both; no text is unknown
        for text, row in ids.items():
            if unknown in row:
                raise InputError(_unknown_message(tokenizer, text, row.index(unknown)))
    return [list(ids[text]) for text in texts]


def decode(tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids` (numpy integers too), leaving out pad and eos wherever they stand."""
    skipped = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    kept = [int(i) for i in ids if int(i) not in skipped]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _unknown_message(tokenizer, text: str, position: int) -> str:
    """Says which piece of `text` the tokenizer has no token for."""
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    start, end = encoding["offset_mapping"][position]
    return (
        f"the tokenizer has no token for {text[start:end]!r} in {text[max(0, start - 30) : end + 30]!r}; "
        "real text needs config.data.tokenizer='bpe' or a pretrained model's tokenizer"
    )


def _wrap(built: tokenizers.Tokenizer, **special_tokens: str):
    """A `transformers` fast tokenizer around `built`, with pad and eos."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )
