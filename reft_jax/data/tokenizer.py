"""Tokenizers: two that are built here, any other from a Hugging Face directory or a GGUF file, all used the same way.

`build_word`: one id for each piece of a closed vocabulary (the generated data). `build_bpe`: byte-level BPE trained on
the texts of the run, each digit a token of its own. Both are `transformers` fast tokenizers with pad and eos of their
own, are saved as a Hugging Face tokenizer directory, and give back exactly the text that they were given. Real models'
tokenizers come through the same `load`.

Unusual:
- Text never turns into a special token, even where it spells one ("</s>" in a question is four characters).
- Texts are encoded piece by piece (`prompts.encode_all`). SentencePiece-like tokenizers put a space before the first word
  of whatever they are given; a piece that goes on after a line's end is therefore encoded, and decoded, after a line's end.
- A tokenizer.json is read as it stands. `transformers` has classes for some model types that read only its vocabulary and
  bring a pipeline of their own, which can lose the splitting of digits, or text.
"""

import functools
import json
import logging
import pathlib
import re
import string
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from reft_jax.data import gguf, gguf_tokenizer, json_text
from reft_jax.errors import InputError

REMEDY = "mend it, or fetch it again"  # where a directory's file is damaged
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"

# GPT-2's split, with numbers cut into digits: a word or a digit with the space before it, punctuation, white space.
BPE_PIECE = r"'(?:s|t|m|d|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What a response may hold: `load` refuses a tokenizer that does not give these back.
PROBES = (
    "    Tom = a1 + 12.5\n  if Tom:\n\treturn Tom  # Ann's\n\nDone , so .",
    string.digits + string.ascii_letters + string.punctuation,
    "é",
)


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
    cut = pre_tokenizers.Split(tokenizers.Regex(BPE_PIECE), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
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
    """Writes a Hugging Face tokenizer directory (tokenizer.json and tokenizer_config.json), made if absent.

    Its class is named as transformers 4 and 5 both know it: 5's own name for it is new.
    """
    tokenizer.save_pretrained(str(directory))
    path = pathlib.Path(directory) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":
        path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def load(directory):
    """The tokenizer in a Hugging Face directory or a GGUF file; nothing is downloaded.

    One without an end-of-sequence or a padding token (Galactica's, GPT-2's) gets those that generation_config.json or
    config.json names by id, and for padding else its unknown or eos token, which is logged: masks say what is padding,
    so any id would do. Raises InputError where there is no tokenizer, or none of these names a token to end with, or
    where it does not give back what it was given (line ends, indentation, letters' case).
    """
    directory = pathlib.Path(directory)
    tokenizer = gguf_tokenizer.load(directory) if gguf.is_file(directory) else _of_directory(directory)
    found = {key: _named(tokenizer, directory, f"{key}_id") for key in ("bos_token", "eos_token", "pad_token")}
    found["unk_token"] = _unknown_token(tokenizer)  # bos and unk: so that no text turns into them
    pads = tokenizer.pad_token
    for key, token in found.items():
        if token is not None and getattr(tokenizer, key) is None:
            setattr(tokenizer, key, token)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {directory} has no eos_token, so no response could end; name one in tokenizer_config.json "
            "(eos_token) or in config.json (eos_token_id, an id of the tokenizer's)"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token if tokenizer.unk_token is None else tokenizer.unk_token
    if pads is None:
        note = "the tokenizer in %s has no pad token; %s (id %d) pads"
        logging.getLogger(__name__).info(note, directory, tokenizer.pad_token, tokenizer.pad_token_id)
    tokenizer.clean_up_tokenization_spaces = False
    for how in ("is_local", "local_files_only"):  # how it was found; `save` would write that into the next directory
        tokenizer.init_kwargs.pop(how, None)
    _check_exact(tokenizer, directory)
    return tokenizer


def _of_directory(directory: pathlib.Path):
    """The tokenizer in a Hugging Face directory as its files have it; see `load`."""
    import transformers

    if not directory.is_dir():
        raise InputError(f"no tokenizer directory at {directory}; give a directory that holds tokenizer.json")
    present = sorted(path.name for path in directory.iterdir())
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(present):
        raise InputError(
            f"{directory} holds no tokenizer.json (nor tokenizer.model, vocab.json), only: {', '.join(present[:8]) or '-'}"
        )
    if "tokenizer_config.json" in present:
        json_text.read_object(directory / "tokenizer_config.json", REMEDY)
    try:
        reader = transformers.PreTrainedTokenizerFast if "tokenizer.json" in present else transformers.AutoTokenizer
        tokenizer = reader.from_pretrained(str(directory), local_files_only=True)
        tokenizer.encode("a", add_special_tokens=False)  # meets settings of another type
    except Exception as error:  # `tokenizers` raises nothing more specific for a file that it cannot read
        said = " ".join(str(error).split())
        raise InputError(f"cannot load the tokenizer in {directory}: {type(error).__name__}: {said}") from error
    _check_ids(tokenizer, directory)
    return tokenizer


def _named(tokenizer, directory: pathlib.Path, key: str) -> str | None:
    """The first token whose id the model's config files give under `key`; None if they give none."""
    return next((token for _, value in _said(directory, key) if (token := _token(tokenizer, value)) is not None), None)


def _said(directory: pathlib.Path, key: str):
    """What generation_config.json and config.json (of a nested one its text_config too), or a GGUF file, give under `key`, one by one:
    (file, value)."""
    if gguf.is_file(directory):
        yield from ((directory, value) for value in gguf.read(directory).token_ids(key))
    for file in ("generation_config.json", "config.json"):
        if not (directory / file).is_file():
            continue
        about = json_text.read_object(directory / file, REMEDY)
        for part in (about, about.get("text_config")):
            found = part.get(key) if isinstance(part, dict) else None
            for value in found if isinstance(found, list) else [found]:
                if value is not None:
                    yield directory / file, value


def _token(tokenizer, value) -> str | None:
    """The token of an id; None for what is no id of the tokenizer's."""
    known = type(value) is int and 0 <= value < num_ids(tokenizer)
    return tokenizer.convert_ids_to_tokens(value) if known else None


@functools.lru_cache(maxsize=8)
def num_ids(tokenizer) -> int:
    """The highest id of a token, and 1: so many rows of an embedding may be tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def _unknown_token(tokenizer) -> str | None:
    """The token that the tokenizer's model gives for what it does not know, whether or not tokenizer_config.json says."""
    if tokenizer.unk_token is not None or not tokenizer.is_fast:
        return tokenizer.unk_token
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:  # a unigram model
        return model["vocab"][model["unk_id"]][0]
    named = model.get("unk_token")
    return named if named in model["vocab"] else None


def _check_ids(tokenizer, directory: pathlib.Path) -> None:
    """InputError for an added token that has another id than its file says: tokenizers counts them on from the vocabulary, in the order in
    which they stand (0.23.3), so that after a gap the model would get other rows of its embedding."""
    said = []
    if (file := directory / "tokenizer.json").is_file():
        said += [(file, one["id"], one["content"]) for one in json.loads(file.read_bytes()).get("added_tokens") or ()]
    if (file := directory / "tokenizer_config.json").is_file():
        added = json_text.read_object(file, REMEDY).get("added_tokens_decoder")
        for i, one in added.items() if isinstance(added, dict) else ():
            said += [(file, int(i), one["content"])] if isinstance(one, dict) and i.isdecimal() else []
    vocabulary = tokenizer.get_vocab()
    for file, i, content in said:
        if vocabulary.get(content, i) != i:
            raise InputError(
                f"{file}: the added token {content!r} has the id {i}, and is read as {vocabulary[content]}: ids are counted on from the "
                "vocabulary's last. Add tokens for the ids in between, and let added_tokens stand in the order of their ids"
            )


def _check_exact(tokenizer, directory: pathlib.Path) -> None:
    """InputError if a response would come back otherwise than it was written."""
    for text in PROBES:
        try:
            back = decode(tokenizer, encode_batch(tokenizer, [text], after_newline=[True])[0])
        except InputError:
            continue  # it cannot spell this and will say so of any text that needs it
        if back != text:
            raise InputError(
                f"the tokenizer in {directory} gives back {back!r} for {text!r}; programs and answers cannot be learnt with it"
            )


def end_ids(tokenizer, directory=None) -> tuple[int, ...]:
    """All that ends a response: the tokenizer's EOS, which ends targets too, then what generation_config.json and config.json of the
    model's directory name, or its GGUF file, and the chat template's end of a turn. InputError for what is named and is no token."""
    ends = [tokenizer.eos_token_id]
    for path, value in _said(pathlib.Path(directory), "eos_token_id") if directory is not None else ():
        if _token(tokenizer, value) is None:
            raise InputError(
                f"{path}: eos_token_id names {value!r}; it must be ids of the tokenizer's (0 to {num_ids(tokenizer) - 1}), or null: correct "
                "it, or the file is of another model"
            )
        ends.append(value)
    turn = turn_end(tokenizer)
    return tuple(dict.fromkeys(ends if turn is None else [*ends, turn]))


def turn_end(tokenizer) -> int | None:
    """The id that ends what a model says in its chat template (<|im_end|>, <end_of_turn>, ...): of the special tokens the first after an
    assistant's message. None without a template, or if it puts none there."""
    if not tokenizer.chat_template:
        return None
    import jinja2

    try:
        said = [dict(role="user", content="a question"), dict(role="assistant", content="an answer")]
        text = tokenizer.apply_chat_template(said, tokenize=False)
    except ImportError as error:
        raise InputError(f"the tokenizer's chat template needs jinja2 ({error}): pip install -U jinja2") from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError):  # a template for other messages
        return None
    _, found, after = text.rpartition("an answer")
    special = _special_tokens(tokenizer) | {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if found else []
    return next((i for i in ids if i != tokenizer.unk_token_id and special.get(i, "").strip()), None)


def puts_bos(tokenizer) -> bool:
    """Whether the tokenizer's own post-processor, asked for special tokens, puts its BOS token before a text."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def bos_ids(tokenizer, how: str) -> list[int]:
    """What a prompt begins with: the BOS token's id, or none. `how`: config.data.bos. InputError for "on" without a BOS token."""
    if how == "off" or how == "auto" and not puts_bos(tokenizer):
        return []
    if tokenizer.bos_token_id is None:
        raise InputError(
            "config.data.bos: got 'on'; the tokenizer has no BOS token: set 'off', or name one in tokenizer_config.json (bos_token)"
        )
    return [tokenizer.bos_token_id]


def set_bos(tokenizer, wanted: bool) -> None:
    """Has the tokenizer's own post-processor put BOS before a text, or not: what `save` writes is then asked as it was trained."""
    if puts_bos(tokenizer) != wanted:
        tokenizer.add_bos_token = wanted
        tokenizer.init_kwargs["add_bos_token"] = wanted


def spelt(tokenizer, ids: Iterable[int]) -> str:
    """Tokens with their ids, for messages."""
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids)


def check_fits(tokenizer, vocab_size: int, where: str) -> None:
    """InputError if text, EOS or padding can have an id that the embedding has no row for. Special tokens may: no text turns
    into them (Gemma 3's text models have one for images)."""
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    used = (set(tokenizer.get_vocab().values()) - special) | {tokenizer.eos_token_id, tokenizer.pad_token_id}
    if max(used) >= vocab_size:
        raise InputError(
            f"{where}: the tokenizer has {num_ids(tokenizer)} ids and the model's vocabulary {vocab_size}; they do not belong together"
        )


def special_ids(tokenizer) -> dict:
    """What a run's config.json says of its tokenizer: its size, and the tokens that end and pad."""
    names = ("eos_token", "eos_token_id", "pad_token", "pad_token_id")
    return {"size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}


def encode(tokenizer, text: str) -> list[int]:
    """The ids of one text; see `encode_batch`."""
    return encode_batch(tokenizer, [text])[0]


def encode_batch(
    tokenizer, texts: Sequence[str], *, after_newline: Sequence[bool] | None = None, keep_unknown: bool = False
) -> list[list[int]]:
    """The ids of each text: no BOS, no EOS, no special tokens. `after_newline`: which texts go on after a line's end.

    Raises InputError for text the vocabulary cannot spell, or with `keep_unknown` puts the unknown token there: a model can write
    pieces of a closed vocabulary side by side that read as one that it does not have.
    """
    pairs = list(zip(texts, after_newline or [False] * len(texts), strict=True))
    distinct = [pair for pair in dict.fromkeys(pairs) if pair[0]]
    rows = {("", False): [], ("", True): []}
    for alike, ids in ((True, _ids_continued), (False, _ids)):
        some = [pair for pair in distinct if pair[1] == alike]
        rows |= zip(some, ids(tokenizer, [text for text, _ in some]), strict=True)
    special = _special_tokens(tokenizer)
    for (text, after), row in rows.items():
        if not special.keys().isdisjoint(row):
            rows[text, after] = _spelt_out(tokenizer, text, after, row, keep_unknown)
    return [list(rows[pair]) for pair in pairs]


def decode(tokenizer, ids: Iterable[int], *, ends: Sequence[int] = ()) -> str:
    """The text of a response's `ids` (numpy integers too), leaving out pad, eos and `ends` wherever they stand."""
    skipped = {tokenizer.pad_token_id, tokenizer.eos_token_id, *ends}
    kept = [int(i) for i in ids if int(i) not in skipped]
    start, text = _line_start(tokenizer)
    return _text(tokenizer, start + kept).removeprefix(text)


def decode_batch(tokenizer, rows: Sequence[list[int]], *, after_newline: bool = False) -> list[str]:
    """The texts of rows of ids as they stand, in one call: of texts' beginnings, or of what goes on after a line's end."""
    start, text = _line_start(tokenizer) if after_newline else ([], "")
    rows = [start + row for row in rows]
    if tokenizer.is_fast:
        back = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
    else:
        back = [_text(tokenizer, row) for row in rows]
    return [each.removeprefix(text) for each in back]


def _text(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, truncation=False
    )["input_ids"]


def _ids_continued(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts that go on after a line's end."""
    if not _line_start(tokenizer)[0]:
        return _ids(tokenizer, texts)
    rows = [None] * len(texts)
    for before in ("\n", ")", "0"):  # the others where a line's end and the text's beginning make one token
        left = [i for i, row in enumerate(rows) if row is None]
        start = _ids(tokenizer, [before])[0]
        for i, row in zip(left, _ids(tokenizer, [before + texts[i] for i in left]), strict=True):
            if row[: len(start)] == start:
                rows[i] = row[len(start) :]
    if None in rows:
        text = texts[rows.index(None)]
        raise InputError(f"the tokenizer joins the beginning of {text[:60]!r} to whatever stands before it")
    return rows


@functools.lru_cache(maxsize=8)
def _line_start(tokenizer) -> tuple[list[int], str]:
    """Something to decode a response after, and its text, if this tokenizer spells what follows a line's end otherwise
    than what begins a text; else nothing. A letter ends it: half a character after a byte would spoil that byte too."""
    newline, both, alone = _ids(tokenizer, ["\n", "\na", "a"])
    differs = both[: len(newline)] == newline and both[len(newline) :] != alone
    start = both if differs and tokenizer.unk_token_id not in both else []
    return start, _text(tokenizer, start)


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer) -> dict[int, str]:
    """The tokens, by id, that no text may turn into: the special ones, the unknown token among them."""
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _spelt_out(tokenizer, text: str, after: bool, row: list[int], keep_unknown: bool) -> list[int]:
    """The ids of a text whose `row` holds special tokens. A vocabulary may hold "</s>" as a word (unigram models do):
    the text is cut inside such words and each part encoded. InputError where that is not why."""
    words = [word for word in _special_tokens(tokenizer).values() if len(word) > 1]
    cuts = [found.start() + 1 for found in re.finditer("|".join(map(re.escape, words)), text)] if words else []
    if cuts:
        parts = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        went_on = [after] + [True] * len(cuts)
        return sum(encode_batch(tokenizer, parts, after_newline=went_on, keep_unknown=keep_unknown), [])
    if tokenizer.unk_token_id in row:
        if keep_unknown:
            return row
        raise InputError(_unknown_message(tokenizer, text))
    word = next(_special_tokens(tokenizer)[i] for i in row if i in _special_tokens(tokenizer))
    raise InputError(f"the tokenizer reads {text[:60]!r} as its special token {word!r}; give it another one")


def _unknown_message(tokenizer, text: str) -> str:
    """Says which piece of `text` the tokenizer has no token for."""
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    start, end = encoding["offset_mapping"][encoding["input_ids"].index(tokenizer.unk_token_id)]
    return (
        f"the tokenizer has no token for {text[start:end]!r} in {text[max(0, start - 30) : end + 30]!r}; "
        "real text needs config.data.tokenizer='bpe' or a pretrained model's tokenizer"
    )


def _wrap(built: tokenizers.Tokenizer, **special_tokens: str):
    """A `transformers` fast tokenizer around `built`, with pad and eos."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False, **special_tokens
    )
