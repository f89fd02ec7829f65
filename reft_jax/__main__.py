"""The commands by name: `reft NAME ...` is `python -m reft_jax.NAME ...`, and `run` is `reft_jax.main`.

A command is a module of this folder, or the __main__.py of a package in it, that has a `main(argv)`. To be listed they
are only read, which takes no time; what they import does.
"""

import ast
import contextlib
import os
import pathlib
import re
import runpy
import sys

from reft_jax.config.words import nearest

USAGE = "usage: reft COMMAND ...    (reft COMMAND --help says more)"


def commands() -> dict[str, str]:
    """{name: source} of every command."""
    folder = pathlib.Path(__file__).parent
    files = {file.stem: file for file in folder.glob("*.py")}
    files |= {file.parent.name: file for file in folder.glob("*/__main__.py")}
    files["run"] = files.pop("main")
    sources = {name: file.read_text(encoding="utf-8") for name, file in sorted(files.items())}
    return {name: text for name, text in sources.items() if re.search(r"^def main\(argv\b", text, re.MULTILINE)}


def listing(known: dict[str, str]) -> str:
    """Each command with the first line of its docstring."""
    lines = []
    for name, text in known.items():
        first = ast.get_docstring(ast.parse(text)).splitlines()[0]
        lines.append(f"  {name:9}{first.rstrip('.')}")
    return "\n".join(lines)


def main() -> int:
    name, *argv = sys.argv[1:] or ["--help"]
    known = commands()
    if name in known:
        sys.argv[1:] = argv
        if not sys.flags.safe_path:
            sys.path[0] = os.getcwd()  # as `python -m` has it, for what a config imports
        runpy.run_module(f"reft_jax.{'main' if name == 'run' else name}", run_name="__main__", alter_sys=True)
        return 0
    if name in ("-h", "--help"):
        with contextlib.suppress(BrokenPipeError):
            print(f"{USAGE}\n\n{listing(known)}", flush=True)
        return 0
    print(f"error: unknown command {name!r}; {nearest(name, known)}known are\n\n{listing(known)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
