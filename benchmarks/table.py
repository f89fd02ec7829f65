"""One table of what rollout.py, update.py and gpu.sh printed: python benchmarks/table.py RESULTS.jsonl

Rows are the file's JSON lines with a sampler, an update or a whole step, and parts that failed; Markdown on stdout.
"""

import json
import pathlib
import sys

COLUMNS = {  # heading -> value of a line; None where it has none
    "rows": lambda line: line.get("slots", line.get("rows")),
    "tokens/s": lambda line: line.get("tokens_per_s") and f"{line['tokens_per_s']:,.0f}",
    "seconds": lambda line: line.get("seconds"),
    "ms/step": lambda line: line.get("ms_per_step"),
    "compile, s": lambda line: line.get("compile_s"),
    "peak, GB": lambda line: line.get("peak_mb") and f"{line['peak_mb'] / 1e3:.1f}",
    "GB/step": lambda line: line.get("bytes_per_step") and f"{line['bytes_per_step'] / 1e9:.3g}",
    "GB/s": lambda line: line.get("bandwidth_gb_s"),
    "roofline": lambda line: line.get("roofline") and f"{line['roofline']:.1%}",
    "TFLOP/s": lambda line: line.get("tflop_per_s"),
    "of": lambda line: line.get("peak_tflop_per_s"),
    "MFU": lambda line: line.get("mfu") and f"{line['mfu']:.1%}",
    "loss": lambda line: line.get("loss") and f"{line['loss']:.5f}",
}


def title(line: dict) -> str | None:
    """What a line is about; None for lines that are no row (the machine, ratios)."""
    if "failed" in line:
        return f"{line['part']}: failed ({line['failed']})"
    kind = next((kind for kind in ("sampler", "update", "whole") if kind in line), None)
    return f"{kind} {line[kind]}, {line['size']} {line['dtype']}" if kind and "size" in line else None


def table(lines: list[dict]) -> str:
    """Markdown; columns that no line fills are left out."""
    rows = [(title(line), *(value(line) for value in COLUMNS.values())) for line in lines if title(line)]
    heads = ("", *COLUMNS)
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i] is not None for row in rows)]
    cells = [[heads[i] for i in kept]] + [["" if row[i] is None else str(row[i]) for i in kept] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(kept))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells)


def main(path):
    text = pathlib.Path(path).read_text()
    print(table([json.loads(line) for line in text.splitlines() if line.startswith("{")]))


if __name__ == "__main__":
    main(*sys.argv[1:])
