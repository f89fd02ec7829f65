"""The tables of every method, small (`tables.SMALL`): several seeds each, on the same questions from the same warm-up."""

import csv
import io
import itertools
import os
import re
import statistics
import sys

from reft_jax.run.metrics import table as text_table
from reft_jax.tables import SMALL, SMALL_METRICS, Figure, by_seed, paper_small, student

COLUMNS = ("", "greedy", "over SFT", "vote", "re-ranked", "average", "pass", "each seed, greedy", "commit")
TITLES = {
    "arithmetic": "Every method from the shipped base on generated problems, %",
    "svamp_small": "Every method from a small base of your own on SVAMP, %",
}
LEGEND = (
    "greedy, vote, re-ranked, average, pass: mean over seeds ± their standard deviation, the last four of {k} samples a question; "
    "over SFT: the mean difference to the same seed's SFT, with Student's 95 % interval over seeds; each seed: Wilson's 95 % interval over questions."
)


def cells(table: str, of_seeds) -> list[tuple[str, str, int]]:
    """(cot, style, seed) of every run of the table, in the order in which they are run."""
    module = paper_small(table)
    return [(cot, style, seed) for cot in module.COTS for style in module.STYLES for seed in of_seeds]


def command_of(table: str, cot: str, style: str, seed: int, root: str, *, smoke: bool = False) -> str:
    """The shell command that makes a run of the table under root; $DATA and $MODELS are left to the shell."""
    home = re.sub(r'([\\"$`])', r"\\\1", f"{root}/{'smoke_' if smoke else ''}{cot}_{style}_{seed}")
    pairs = f"cot={cot},style={style},seed={seed}{',smoke' if smoke else ''}"
    if not smoke and (files := getattr(paper_small(table), "FILES", None)):
        pairs += f",base=$MODELS/words,train_file=$DATA/{files[cot]},test_file=$DATA/{files['test']}"
    return f'python -m reft_jax.main "--config={SMALL[table]}:{pairs}" "--workdir={home}"'


def show(table: str, found: list[Figure], root: os.PathLike, form: str, of_seeds, smoke: bool = False):
    """Prints the table of `found`, and the commands of what `of_seeds` lack; warnings go to stderr."""
    module, lines, missing, warnings = paper_small(table), [], {}, []
    for cot, style, method in itertools.product(module.COTS, module.STYLES, module.METHODS):
        row = {}
        for metric in ("accuracy", *SMALL_METRICS):
            job = (f"{table}/{cot}/{style}/{method}", metric)
            row[metric], said = by_seed([f for f in found if (f.job, f.metric.partition("@")[0]) == job])
            warnings += said
        absent = {}
        for seed in sorted(set(of_seeds) - by_number(row["accuracy"]).keys()):
            command = command_of(table, cot, style, seed, str(root), smoke=smoke)
            absent[seed] = missing.setdefault(command, f"[{len(missing) + 1}]")
        lines.append((f"{cot}/{style}/{method}", row, absent))
    for warning in dict.fromkeys(warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if form == "csv":
        print(as_csv(lines), end="")
        return
    rows = [cells_of(name, row, absent, baseline(lines, name)) for name, row, absent in lines]
    k = next((figure.metric.partition("@")[2] for figure in found if "@" in figure.metric), "k")
    title = f"{table}: {TITLES[table]} ({SMALL[table]})"
    if form == "markdown":
        rule = ["---", *["---:"] * (len(COLUMNS) - 2), "---"]
        body = "\n".join("| " + " | ".join(row) + " |" for row in (COLUMNS, rule, *rows))
        print(f"### {title}\n\n{body}\n\n{LEGEND.format(k=k)}\n")
    else:
        print(f"{title}\n\n{text_table(list(COLUMNS), rows)}\n\n{LEGEND.format(k=k)}\n")
    if missing:
        body = "\n".join(f"# {number}\n{command}" for command, number in missing.items())
        print(f"What makes the missing seeds (`bash launch/table.sh {table} ROOT` runs them all):\n")
        print(f"```bash\n{body}\n```" if form == "markdown" else body)


def baseline(lines, name: str) -> dict[int, Figure]:
    """seed -> greedy accuracy of SFT where the row `name` is."""
    home = name.rpartition("/")[0]
    return next(by_number(row["accuracy"]) for other, row, _ in lines if other == f"{home}/sft")


def by_number(figures: list[Figure]) -> dict[int, Figure]:
    return {figure.run.config["seed"]: figure for figure in figures}


def cells_of(name: str, row: dict, absent: dict, sft: dict[int, Figure]) -> list[str]:
    """A line's cells as text."""
    there = by_number(row["accuracy"]).items()
    each = {seed: f"{100 * figure.value:.1f} ({interval(figure.interval)})" for seed, figure in there} | absent
    commits = sorted({(figure.run.commit or "-")[:9] for figure in row["accuracy"]})
    return [
        name,
        spread(row["accuracy"]),
        "-" if name.endswith("/sft") else over(row["accuracy"], sft),
        *(spread(row[metric]) for metric in SMALL_METRICS),
        "; ".join(f"{seed}: {each[seed]}" for seed in sorted(each)),
        ", ".join(commits) or "-",
    ]


def interval(bounds) -> str:
    return "–".join(f"{100 * bound:.1f}" for bound in bounds)


def spread(figures: list[Figure]) -> str:
    """Mean and standard deviation over seeds, %."""
    if not figures:
        return "-"
    values = [100 * figure.value for figure in figures]
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def over(figures: list[Figure], sft: dict[int, Figure]) -> str:
    """The mean difference to SFT on the same seeds, points, with Student's 95 % interval if there are several."""
    pairs = [(figure.value, sft[seed].value) for seed, figure in by_number(figures).items() if seed in sft]
    if not pairs:
        return "-"
    gains = [100 * (ours - theirs) for ours, theirs in pairs]
    if len(gains) == 1:
        return f"{gains[0]:+.1f}"
    mean, half = student(gains)
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def as_csv(lines) -> str:
    """A line for every figure of every seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "metric", "seed", "accuracy", "low", "high", "selected on", "commit"))
    for name, row, _ in lines:
        for figure in (figure for figures in row.values() for figure in figures):
            place = (name, figure.metric, figure.run.config["seed"], figure.value, *figure.interval)
            writer.writerow((*place, figure.selected_on, figure.run.commit or ""))
    return out.getvalue()
