"""JSON of users' files. Of a key that an object has twice Python's own reader takes the last without a word; here it is refused."""

import json
import pathlib

from reft_jax.errors import InputError


class DoubledKey(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str):
        super().__init__(f"the key {key!r} stands twice in one object: remove one of the two")


def _object(pairs: list[tuple[str, object]]) -> dict:
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DoubledKey(next(key for key in keys if keys.count(key) > 1))
    return out


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_object(path, remedy: str) -> dict:
    """The JSON object that a file holds (UTF-8, with or without a byte order mark). InputError with the file, where it is malformed, and
    the remedy: it cannot be read, is empty or cut, holds something else, or has a key twice."""
    path = pathlib.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}); {remedy}") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty; {remedy}")
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: malformed JSON ({error.msg}, column {error.colno}); {remedy}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}; {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {str(value)[:40]!r}; a JSON object is expected; {remedy}")
    return value
