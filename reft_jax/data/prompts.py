'''What the model reads and what it learns to write: texts, and the one place where they become tokens.

Prompt: `Question:\\n{question}\\nAnswer reasoning:\\n`, no special tokens but, with config.data.bos, BOS before it (the paper has none).
Target: the chain of thought (CoT), then EOS (ReFT, arXiv 2401.08967; the templates are the authors'). A program (P-CoT) begins with

    def solution():
        """{question}"""            <- with config.data.docstring

and that beginning may be given to the model as the end of its prompt instead of being sampled
(config.data.append_prefix: the authors append it in ReFT and not in their SFT evaluation; ours is an option).

Unusual: the pieces (prompt, program prefix, rest, EOS) are tokenized one by one and concatenated. No merge can cross a
boundary, so a sampled continuation starts from exactly the tokens that training showed there. Where a tokenizer has a token for
a line end and the spaces after it (SmolLM2's `\\n   `), a program prefix that closes with the line end is cut where no text that the model
was pretrained on is: with config.data.line_end `rest` the prefix ends before it and the rest, which is sampled and learnt, begins with it.

A gold program's own docstring is replaced by the question's (or removed, without config.data.docstring), so that every
target begins with `program_prefix`; of SVAMP's 3,043 programs this changes the 37 whose docstring is a cleaned-up
question. What the program computes does not change.
'''

import dataclasses
import re
from collections.abc import Sequence

from reft_jax.data.records import SIGNATURE, Record
from reft_jax.data.tokenizer import bos_ids, encode_batch
from reft_jax.errors import InputError

ANSWER_SENTENCE = "\nTherefore, the answer is: "
PURPOSES = ("teach", "rollout", "ask")
LOOKED_AT = 500  # programs by which `best_line_end` chooses
_DOCSTRING = re.compile(r'[ \t]+"""(?:[^"\\]|\\.|"(?!""))*"""[ \t]*\n', re.DOTALL)
_NEEDS_ESCAPE = re.compile(r'\\|"""|"\Z')


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One record as token ids. For purpose "teach" all of `response` is learnt; otherwise `response` is the gold
    continuation of `prompt` (with EOS; empty where there is no gold), for counting only."""

    prompt: list[int]
    response: list[int]


def prompt(record: Record) -> str:
    """The text before the model's answer, without a program prefix."""
    return f"Question:\n{record.question}\nAnswer reasoning:\n"


def program_prefix(record: Record, *, docstring: bool, line_end: str = "prefix") -> str:
    """The beginning that every program of this record shares: the signature and, with `docstring`, the question; `line_end`: "rest" = without
    the last line's end.

    The question stands as it is except where that would not be Python: backslashes, triple quotes, a closing quote.
    """
    prefix = SIGNATURE
    if docstring:
        text = _NEEDS_ESCAPE.sub(lambda found: "".join("\\" + character for character in found[0]), record.question)
        prefix = f'{SIGNATURE}    """{text}"""\n'
    return prefix[:-1] if line_end == "rest" else prefix


def split_target(record: Record, *, docstring: bool, line_end: str = "prefix") -> tuple[str, str]:
    """(prefix, rest) of the target; prefix is "" for anything but a program, rest is "" for a record without a CoT."""
    if record.kind == "program":
        rest = _body(record)
        return program_prefix(record, docstring=docstring, line_end=line_end), _begun(rest, line_end)
    if record.kind == "nl":
        return "", record.cot and f"{record.cot}{ANSWER_SENTENCE}{record.answer}"
    if record.kind == "text":
        # Split here too, so that pretraining shows the tokens at which sampling from a program prefix will start.
        if not record.cot.startswith(SIGNATURE):
            return "", record.cot
        rest = record.cot[len(SIGNATURE) :]
        return program_prefix(record, docstring=False, line_end=line_end), _begun(rest, line_end)
    raise ValueError(f"record {record.item_id}: kind is {record.kind!r}; legal are 'program', 'nl' and 'text'")


def _begun(rest: str, line_end: str) -> str:
    return f"\n{rest}" if rest and line_end == "rest" else rest


def target(record: Record, *, docstring: bool) -> str:
    """The text that SFT teaches (without EOS), "" for a record without a CoT. See the top of this file on docstrings."""
    prefix, rest = split_target(record, docstring=docstring)
    return prefix + rest if rest else ""


def appends_prefix(record: Record, data, *, purpose: str) -> bool:
    """Whether the prompt for sampling ends with the program prefix.

    `purpose`: "rollout" where the policy learns from responses of its own (rollouts, its evaluation), "ask" for all other
    sampling, "teach" for teacher forcing, where the prefix is part of the response. `data.append_prefix`: everywhere, rollouts or nowhere.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose is {purpose!r}; legal are {', '.join(PURPOSES)}")
    purposes = {"everywhere": ("rollout", "ask"), "rollouts": ("rollout",), "nowhere": ()}
    if data.append_prefix not in purposes:
        raise InputError(f"config.data.append_prefix is {data.append_prefix!r}; legal are {', '.join(purposes)}")
    return record.kind == "program" and purpose in purposes[data.append_prefix]


def encode(tokenizer, record: Record, data, *, purpose: str) -> Encoded:
    """One record as token ids; see `encode_all`."""
    return encode_all(tokenizer, (record,), data, purpose=purpose)[0]


def encode_all(tokenizer, records: Sequence[Record], data, *, purpose: str) -> list[Encoded]:
    """The records as token ids, in order (one call to the tokenizer: 120k records take seconds, not minutes).

    `purpose` "teach": prompt = BOS, if any, and prompt text; response = program prefix + rest + EOS, all of it learnt. "rollout" and
    "ask": prompt = the same (+ program prefix where `appends_prefix`); response = what is left of the gold.
    Raises InputError for a record without a CoT under "teach".
    """
    pieces = []
    for record in records:
        prefix, rest = split_target(record, docstring=data.docstring, line_end=data.line_end)
        if purpose == "teach" and not rest:
            raise InputError(
                f"record {record.item_id} has no chain of thought to learn; "
                "supervised training needs a file with answer_cot (config.data.train_file)"
            )
        pieces.append((prompt(record), prefix, rest))
    encoded = []
    for record, (question, prefix, rest) in zip(records, encode_pieces(tokenizer, pieces, data), strict=True):
        appended = appends_prefix(record, data, purpose=purpose)
        gold = rest + [tokenizer.eos_token_id] if rest else []
        if gold and not appended:
            gold = prefix + gold
        encoded.append(Encoded(question + prefix if appended else question, gold))
    return encoded


def encode_pieces(
    tokenizer, pieces: Sequence[tuple[str, str, str]], data, *, keep_unknown: bool = False
) -> list[tuple[list[int], list[int], list[int]]]:
    """The ids of each (prompt, program prefix, rest), BOS before the prompt if there is one; no EOS. `keep_unknown`: as in
    `tokenizer.encode_batch`."""
    after = [False, True, True] * len(pieces)  # what stands before a prefix and a rest ends a line, or is no word
    texts = [text for piece in pieces for text in piece]
    ids = encode_batch(tokenizer, texts, after_newline=after, keep_unknown=keep_unknown)
    begins = bos_ids(tokenizer, data.bos)
    return [(begins + ids[i], ids[i + 1], ids[i + 2]) for i in range(0, len(ids), 3)]


def best_line_end(tokenizer, records: Sequence[Record], data) -> str:
    """The config.data.line_end with which the tokens of prefix and rest are those of the whole program, for most of the programs among the
    `records` (for a made one without any); "prefix" of equals."""
    programs = [record for record in records if record.kind == "program" and record.cot][:LOOKED_AT]
    programs = programs or [Record("", "How many?", f"{SIGNATURE}    return 1", "1", "program")]
    alike = {}
    for line_end in ("prefix", "rest"):
        pieces = [split_target(record, docstring=data.docstring, line_end=line_end) for record in programs]
        texts = [text for prefix, rest in pieces for text in (prefix, rest, prefix + rest)]
        ids = encode_batch(tokenizer, texts, after_newline=[True] * len(texts), keep_unknown=True)
        alike[line_end] = sum(ids[i] + ids[i + 1] == ids[i + 2] for i in range(0, len(ids), 3))
    return max(alike, key=alike.get)


def completed(record: Record, response_text: str, data, *, purpose: str) -> str:
    """The text to grade: the response, after the program prefix where the prompt held it."""
    if appends_prefix(record, data, purpose=purpose):
        return program_prefix(record, docstring=data.docstring, line_end=data.line_end) + response_text
    return response_text


def continuation(record: Record, data, *, purpose: str) -> str:
    """The gold text in the place of a response: the target without what the prompt for sampling holds of it; "" without a CoT."""
    prefix, rest = split_target(record, docstring=data.docstring, line_end=data.line_end)
    return rest if appends_prefix(record, data, purpose=purpose) or not rest else prefix + rest


def replaced_docstrings(records: Sequence[Record], *, docstring: bool) -> list[str]:
    """The item ids of gold programs whose own docstring is not the one they are trained with."""
    return [
        record.item_id
        for record in records
        if record.kind == "program"
        and record.cot not in ("", SIGNATURE + _body(record), target(record, docstring=docstring))
    ]


def _body(record: Record) -> str:
    """The gold program without signature and docstring; "" for a record without a CoT."""
    if not record.cot:
        return ""
    if not record.cot.startswith(SIGNATURE):
        raise InputError(
            f"record {record.item_id}: its program begins with {record.cot[:40]!r}; it must begin with {SIGNATURE!r}"
        )
    start = len(SIGNATURE)
    own = _DOCSTRING.match(record.cot, start)
    return record.cot[own.end() if own else start :]
