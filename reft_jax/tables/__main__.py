"""The paper's tables beside finished runs.

    python -m reft_jax.tables ROOT [--table=NAME] [--format=terminal|markdown|csv] [--curves]
    python -m reft_jax.tables ROOT --plan [--table=NAME] [--variant=paper|script] [--seed=N] [--smoke]

A workdir under ROOT that has config.json and results.json fills a cell if what was trained is what configs/paper.py says of
that row, setting by setting and back to the pretrained weights; how it was run (checks, logs, devices, precision) does not matter. All
other runs are in a table of their own, with what keeps them from a cell they are near to. Figures are means over seeds. The interval
of one seed is Wilson's, over questions; of several, Student's t over the seeds, which is of training alone.

The tables arithmetic and svamp_small are of configs/paper_small.py and configs/paper_text.py, and nothing is published of them; a folder with
no other runs shows one alone, one without such runs leaves it out. --curves also writes its learning curves to ROOT/curves.csv and ROOT/curves.png.

--plan prints the commands that make a table, each run once and after those that it begins with. --variant, --seed and --smoke
are arguments of those commands. Exit codes: 0, 2 bad arguments.
"""

import csv
import io
import json
import os
import pathlib
import re
import sys
import types

from reft_jax import commands
from reft_jax.commands import SWITCH, Flag
from reft_jax.config.paths import expanded
from reft_jax.errors import InputError
from reft_jax.run.metrics import table as text_table
from reft_jax.tables import (
    CONFIG,
    SMALL,
    Figure,
    by_seed,
    figures_of,
    find_runs,
    finder,
    kept,
    mean_interval,
    paper,
    paper_small,
    small,
)

# ------------------------------------------------------------------ lines of tables

COLUMNS = ("", "published", "ours", "difference", "95 % interval", "seeds", "selected on", "commit", "run")


def line_of(name: str, published, unverified: bool, found: list[Figure], root, digits: int, command: str = "") -> dict:
    """A line as text, by column. Of an empty cell, `command` stands for its runs."""
    is_number = isinstance(published, float)
    shown = f"{published:.{digits}f}" if is_number else published or "-"
    line = {"": name, "published": shown + (" †" if unverified else "")}
    if not found:
        return line | dict.fromkeys(COLUMNS[2:-1], "-") | {"run": command}
    mean, (low, high) = mean_interval(found)
    seeds = ", ".join(str(figure.run.config["seed"]) for figure in found)
    return line | {
        "ours": f"{100 * mean:.{digits}f}",
        "difference": f"{100 * mean - published:+.{digits}f}" if is_number else "-",
        "95 % interval": f"{100 * low:.{digits}f}-{100 * high:.{digits}f}",
        "seeds": f"{len(found)}: {seeds}",
        "selected on": ", ".join(sorted({figure.selected_on for figure in found})),
        "commit": ", ".join(sorted({(figure.run.commit or "-")[:9] for figure in found})),
        "run": ", ".join(os.path.relpath(figure.run.path, root) for figure in found),
    }


def paper_lines(name: str, found: list[Figure], root, command) -> tuple[list[dict], list[str]]:
    """(a table's lines, warnings). A cell has one line for each variant with runs, the default's first."""
    metric = paper().TABLES[name][1]
    digits = 2 if name == "main" else 1
    lines, warnings = [], []
    for row in paper().ROWS.values():
        if row.table != name:
            continue
        label, filled = row.name.partition("/")[2], []
        for variant in paper().VARIANTS:
            job = paper().job(row.name, variant)
            mine, said = by_seed([f for f in found if (f.job, f.variant, f.metric) == (job, variant, metric)])
            warnings += said
            if mine:
                shown = label if variant == paper().VARIANTS[0] else f"{label} ({variant})"
                filled.append(line_of(shown, row.published, row.unverified, mine, root, digits))
        lines += filled or [line_of(label, row.published, row.unverified, [], root, digits, command(row))]
    return lines, warnings


def other_lines(found: list[Figure], root) -> tuple[list[dict], list[str], list[str]]:
    """(lines, notes, warnings) of the runs that are no paper row; seeds of the same settings make one line."""
    groups: dict = {}
    for figure in found:
        if not figure.job:
            config = figure.run.config
            stages = {name: kept(stage, "stage") for name, stage in config["stages"].items()}
            key = json.dumps([figure.name, kept(config["data"], "data"), config["model"], stages])
            groups.setdefault(key, []).append(figure)
    lines, notes, warnings = [], [], []
    for group in groups.values():
        mine, said = by_seed(group)
        lines.append(line_of(group[0].name, "", False, mine, root, 1))
        notes += [figure.note for figure in mine if figure.note]
        warnings += said
    return lines, notes, warnings


def render(title: str, lines: list[dict], form: str) -> str:
    rows = [[line[column] for column in COLUMNS] for line in lines]
    if form == "terminal":
        return f"{title}\n\n{text_table(list(COLUMNS), rows)}"
    cells = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 2), "---"], *rows]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in cells)


# ------------------------------------------------------------------ commands


def in_order(jobs, variant: str) -> list[str]:
    """The jobs and those that they begin with, each once, after what it needs."""
    out: list[str] = []
    for job in jobs:
        for each in (*in_order(paper().needs(job, variant), variant), job):
            if each not in out:
                out.append(each)
    return out


def command_of(job: str, root: str, *, variant: str, seed: int, smoke: bool) -> str:
    """The shell command that makes a job's run under root; $DATA and $MODELS are left to the shell."""
    home = f"{root}/{'smoke_' if smoke else ''}{variant}_{seed}"
    home = re.sub(r'([\\"$`])', r"\\\1", home)
    train, test = paper().files(job)
    pairs = [f"row={job}", f"variant={variant}", f"seed={seed}"]
    pairs += [f"runs={home}"] if paper().needs(job, variant) else []
    files = [f"train_file=$DATA/{train}", f"test_file=$DATA/{test}", f"model_dir=$MODELS/{paper().ROWS[job].model}"]
    pairs += ["smoke"] if smoke else files
    return f'python -m reft_jax.main "--config={CONFIG}:{",".join(pairs)}" "--workdir={home}/{job}"'


def legend(smoke: bool) -> str:
    if smoke:
        return "# at toy size, on generated problems"
    models = ", ".join(f"{preset} is {hub}" for preset, hub in paper().MODELS.items())
    return f"# DATA: a folder with the authors' data files. MODELS: one with Hugging Face directories, where {models}"


# ------------------------------------------------------------------ main


FLAGS = {
    "ROOT": Flag(needed=True),
    "--table": Flag(lambda text: commands.one_of(*paper().TABLES, *SMALL)(text)),
    "--format": Flag(commands.one_of("terminal", "markdown", "csv"), default="terminal"),
    "--plan": SWITCH,
    "--variant": Flag(lambda text: commands.one_of(*paper().VARIANTS)(text)),
    "--seed": Flag(commands.whole(0)),
    "--smoke": SWITCH,
    "--curves": SWITCH,
}


def parse(argv: list[str]) -> types.SimpleNamespace:
    """The command line's values. Raises InputError."""
    args = types.SimpleNamespace(**commands.parse(argv, __doc__, FLAGS))
    args.variant = args.variant or paper().VARIANTS[0]
    args.root = args.ROOT if args.plan else str(expanded(args.ROOT))  # a plan is for a shell, perhaps another machine's
    if "," in args.root:
        raise InputError(
            f"ROOT: got {args.root!r}; a comma separates arguments of a config: choose a folder without one"
        )
    return args


@commands.command(unread=0)
def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.plan:
        print("\n".join(plan(args)))
        return 0
    root = pathlib.Path(args.root)
    if not root.is_dir():
        raise InputError(f"ROOT: got {args.root!r}; it is no folder: name one that holds workdirs")
    runs, warnings = find_runs(root)
    find = finder(runs, root)
    found = [figure for run in runs for figure in figures_of(run, find)]
    ours = {table: [figure for figure in found if figure.job.startswith(f"{table}/")] for table in SMALL}
    others = [figure for figure in found if figure.job.partition("/")[0] not in SMALL]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.curves:
        from reft_jax.tables import curves  # with what draws

        table = args.table if args.table in SMALL else max(SMALL, key=lambda table: len(ours[table]))
        print("\n".join(str(path) for path in curves.write(table, ours[table], root)))
        return 0
    filled = [table for table in SMALL if ours[table]]
    of_paper = not (args.table in SMALL or not args.table and filled and not others)
    if not of_paper or filled and not args.table and args.format != "csv":
        for table in [args.table] if args.table else filled:
            small.show(table, ours[table], root, args.format, seeds_of(args, table), args.smoke)
    if of_paper or others and args.format != "csv":
        names = [args.table] if args.table else list(paper().TABLES)
        show(others, root, names if of_paper else [], args.format, about_of(args))
    return 0


def about_of(args) -> dict:
    """What the paper's commands have in common."""
    seed = paper().ARGS["seed"] if args.seed is None else args.seed
    return dict(variant=args.variant, seed=seed, smoke=args.smoke)


def seeds_of(args, table: str) -> tuple[int, ...]:
    """The seeds that a table of SMALL is to have."""
    return paper_small(table).SEEDS if args.seed is None else (args.seed,)


def plan(args) -> list[str]:
    """The commands of a table, in order, or of all of the paper's."""
    if args.table in SMALL:
        cells = small.cells(args.table, seeds_of(args, args.table))
        return [small.command_of(args.table, *cell, args.root, smoke=args.smoke) for cell in cells]
    rows = [row for row in paper().ROWS.values() if args.table in (None, row.table)]
    jobs = in_order([paper().job(row.name, args.variant) for row in rows], args.variant)
    return [legend(args.smoke), *(command_of(job, args.root, **about_of(args)) for job in jobs)]


def show(found: list[Figure], root: pathlib.Path, names: list[str], form: str, about: dict):
    """Prints the paper's tables; warnings go to stderr."""
    warnings: list[str] = []
    missing: dict[str, tuple[str, str]] = {}  # command -> (its number, the job)

    def command(row) -> str:
        job = paper().job(row.name, about["variant"])
        for each in in_order([job], about["variant"]):
            missing.setdefault(command_of(each, str(root), **about), (f"[{len(missing) + 1}]", each))
        text = command_of(job, str(root), **about)
        return text if form == "csv" else missing[text][0]

    tables = {}
    for name in names:
        tables[name], said = paper_lines(name, found, root, command)
        warnings += said
    others, notes, said = other_lines(found, root)
    warnings += said
    for warning in dict.fromkeys(warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if form == "csv":
        print(as_csv(tables | {"other": others}), end="")
        return
    for name, lines in tables.items():
        print(render(f"{name}: {paper().TABLES[name][0]}", lines, form))
        if any("†" in line["published"] for line in lines):
            print(f"\n{paper().UNVERIFIED}")
        print()
    if others:
        print(render("other runs", others, form), end="\n\n")
    for note in dict.fromkeys(notes):
        print(f"note: {note}")
    if missing:
        commands = "\n".join(f"# {number} {job}\n{text}" for text, (number, job) in missing.items())
        body = f"{legend(about['smoke'])}\n{commands}"
        print("What makes the empty cells, in this order (`bash launch/table.sh TABLE ROOT` runs a table's):\n")
        print(f"```bash\n{body}\n```" if form == "markdown" else body)


def as_csv(tables: dict) -> str:
    """All tables in one, with a column for the table and one for the mark's meaning."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("table", "row", *COLUMNS[1:], "note"))
    for name, lines in tables.items():
        for line in lines:
            note = paper().UNVERIFIED if "†" in line["published"] else ""
            writer.writerow((name, *(line[column] for column in COLUMNS), note))
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
