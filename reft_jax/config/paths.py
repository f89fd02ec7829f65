"""Paths as users write them."""

import pathlib

from reft_jax.errors import InputError


def expanded(path) -> pathlib.Path:
    """The path with `~` and `~user` spelt out, which a shell does not do after a `=`. InputError for a user who is not here."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{path}: there is no such user; ~ is your own home, ~NAME another's (./{path} is a file of that name)"
        ) from error
