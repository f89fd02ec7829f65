"""A table of what fits where, from what `reft_jax.compile` printed:

    python -m reft_jax.compile --config=configs/reft.py:...,model=codellama_7b --topology=v5e:16x16 >fits/codellama_7b.jsonl
    python launch/fits.py fits/*.jsonl

One row for each file and topology, the file's name being the model's; the largest function decides. A file may hold several
topologies, one after the other. Lines that are no JSON objects are passed over (warnings of the compiler).
"""

import json
import pathlib
import sys

GIB = 2**30
HEAD = ("model", "topology", "devices", "largest function", "GiB needed", "GiB there", "fits")


def rows(path: pathlib.Path) -> list[tuple]:
    """A table's rows for one file. Raises ValueError where it has none."""
    groups: dict[tuple, list[dict]] = {}
    for text in path.read_text().splitlines():
        if text.startswith("{"):
            line = json.loads(text)
            if not {"function", "topology", "num_devices", "hbm_bytes", "fits"} <= line.keys():
                raise ValueError(f"{path}: not what reft_jax.compile prints: {text[:80]}")
            groups.setdefault((line["topology"], line["num_devices"]), []).append(line)
    if not groups:
        raise ValueError(f"{path}: no line of reft_jax.compile in it")
    return [row(path.stem, *key, lines) for key, lines in groups.items()]


def row(model: str, topology: str, devices: int, lines: list[dict]) -> tuple:
    # A function that the compiler gave up on has no bytes: it is larger than all that have.
    largest = max(lines, key=lambda line: line.get("total_bytes", float("inf")))
    there = largest["hbm_bytes"] / GIB
    needed = f"{largest['total_bytes'] / GIB:.2f}" if "total_bytes" in largest else f"over {there:.2f}"
    fits = "yes" if all(line["fits"] for line in lines) else "no"
    return model, topology, str(devices), largest["function"], needed, f"{there:.2f}" if there else "not known", fits


def main(paths: list[str]) -> int:
    if not paths or paths[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if paths else sys.stderr)
        return 0 if paths else 2
    table = [HEAD, ("---",) * len(HEAD)]
    try:
        for path in paths:
            table += rows(pathlib.Path(path))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for cells in table:
        print(f"| {' | '.join(cells)} |" if cells[0] != "---" else f"|{'|'.join(cells)}|")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
