"""Gets a published model or data set by name, and checks it

    reft fetch model smollm2_135m|gemma3_270m --to=DIR
    reft fetch data gsm8k|svamp|mathqa|mathqa-numeric --to=DIR

which is `python -m reft_jax.fetch` too. Each is a command of its own, whose --help says more: `python -m reft_jax.models.fetch` and
`python -m reft_jax.data.fetch`. Models are GGUF files, data sets their authors' JSON; every file is checked by a checksum that is kept here,
and what is there already is not downloaded again.
"""

import sys

from reft_jax import commands
from reft_jax.commands import Flag
from reft_jax.config.paths import expanded
from reft_jax.errors import InputError

FLAGS = {"WHAT": Flag(needed=True, several=True), "--to": Flag(expanded, needed=True)}


@commands.command()
def main(argv: list[str]) -> int:
    given = commands.parse(argv, __doc__, FLAGS)
    what, *names = given["WHAT"]
    if what not in ("model", "data") or len(names) != 1:
        raise InputError(
            f"got {' '.join(given['WHAT'])!r}; it is `model NAME` or `data NAME` (reft fetch --help has the names)"
        )
    if what == "model":
        from reft_jax.models import fetch
    else:
        from reft_jax.data import fetch

    return fetch.main([*names, f"--to={given['to']}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
