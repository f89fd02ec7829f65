"""The text of each token, from what samples.jsonl stores of it: the tokenizer's own pieces, as `convert_ids_to_tokens` gives them.

Tokenizers write their pieces in one of three ways. The stored response decides which: it is the one whose pieces, put
together, are the response. Where none is, pieces are shown as they are stored.
"""

import codecs
import re

SPACE = "\u2581"  # SentencePiece's mark for a space
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
PENDING = "\u22ef"  # shown for a token that ends within a character


def byte_letters() -> dict[str, int]:
    """Letter -> byte in byte-level BPE (GPT-2): printable ones stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


LETTERS = byte_letters()


def plain(token: str) -> bytes:
    return token.encode("utf-8", "replace")


def byte_level(token: str) -> bytes:
    try:
        return bytes(LETTERS[letter] for letter in token)
    except KeyError:  # a token added beside the vocabulary
        return plain(token)


def sentence_piece(token: str) -> bytes:
    if found := BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return plain(token.replace(SPACE, " "))


def texts(tokens: list[str], response: str) -> list[str]:
    """The text of each token; together they are the response and what was cut off it (an end token, a stop string)."""
    for way in (plain, byte_level, sentence_piece):
        parts = [way(token) for token in tokens]
        whole = b"".join(parts).decode("utf-8", "replace")
        if response.strip() and whole.strip().startswith(response.strip()):
            return decoded(parts)
    return tokens


def decoded(parts: list[bytes]) -> list[str]:
    """Each part as text; a character that several parts make up belongs to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    out = [decoder.decode(part) or (PENDING if part else "") for part in parts]
    if out and (rest := decoder.decode(b"", final=True)):
        out[-1] = out[-1].replace(PENDING, "") + rest
    return out
