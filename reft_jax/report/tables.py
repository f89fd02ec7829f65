"""The tables of a report as HTML, made here and not in the page's script: they are there without JavaScript too."""

import datetime
import html
import math

import numpy as np

from reft_jax.config.records import flatten
from reft_jax.report import plots
from reft_jax.report.curves import color_names, plural
from reft_jax.report.plots import title_of
from reft_jax.report.read import Workdir, as_dict, number
from reft_jax.run.progress import clock

NAMES = {"maj": "vote"}


def escape(value) -> str:
    return html.escape(str(value), quote=True)


def percent(value) -> str:
    return f"{100 * value:.1f}" if number(value) else "\u2013"


def interval(bounds) -> str:
    """'74.9 to 80.1' as a small text, '' without an interval."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or not all(map(number, bounds)):
        return ""
    return f"{100 * bounds[0]:.1f}\u2013{100 * bounds[1]:.1f}"


def cell(row: dict, key: str, bounds: str) -> str:
    spread = interval(row.get(bounds))
    small = f'<span class="ci">{spread}</span>' if spread else ""
    return f'<td class="num"><span class="val">{percent(row.get(key))}</span>{small}</td>'


def axis_of(rows: list[dict]) -> tuple[int, int]:
    """(low, high) in %, tens, that the intervals of all rows lie within."""
    bounds = [100 * b for row in rows if interval(row.get("ci95")) for b in row["ci95"]]
    bounds += [100 * row["accuracy"] for row in rows if number(row.get("accuracy"))]
    low, high = 10 * math.floor(min(bounds, default=0) / 10), 10 * math.ceil(max(bounds, default=100) / 10)
    return low, max(high, low + 10)


def whisker(row: dict, color: str, axis: tuple[int, int]) -> str:
    """The accuracy as a dot on a line over `axis`, its interval as a bar."""
    if not number(row.get("accuracy")):
        return "<td></td>"
    bounds = row["ci95"] if interval(row.get("ci95")) else (row["accuracy"],) * 2
    low, at, high = (100 * (100 * x - axis[0]) / (axis[1] - axis[0]) for x in (bounds[0], row["accuracy"], bounds[1]))
    return (
        '<td class="plot"><svg viewBox="0 0 104 12" width="208" height="24" aria-hidden="true" focusable="false">'
        '<line class="axis" x1="2" x2="102" y1="6" y2="6"/>'
        f'<line class="bar c-{color}" x1="{2 + low:.2f}" x2="{2 + high:.2f}" y1="6" y2="6"/>'
        f'<circle class="dot c-{color}" cx="{2 + at:.2f}" cy="6" r="2.2"/></svg></td>'
    )


def headline(groups: list[tuple[str, list[Workdir]]]) -> str:
    """Accuracies with intervals, in %: a row for each evaluated label of each run, and the mean over seeds."""
    all_runs = [run for _, runs in groups for run in runs]
    results = [row for run in all_runs for row in run.results.values()]
    if not results:
        return '<p class="empty">No stage has been evaluated yet: results.json is missing or empty.</p>'
    keys, axis, colors = plots.sampled_keys(results), axis_of(results), color_names(groups)
    rows = []
    for _, runs in groups:
        for label in dict.fromkeys(label for run in runs for label in run.results):
            having = [run for run in runs if label in run.results]
            for run in having:
                name = f'<span class="swatch c-{colors[label]}"></span>{escape(title_of(label))}'
                cells = result_cells(run.results[label], colors[label], keys, axis)
                rows.append(line(name, cells, run_cell(run, all_runs)))
            if len(having) > 1:
                rows.append(seed_row(label, [run.results[label] for run in having], keys))
    heads = ["Checkpoint", "Test, greedy", f"{axis[0]} to {axis[1]} %", "Dev", *map(sampled_name, keys)]
    heads = [*run_head(all_runs), *heads, "Questions", "Chosen", "Matcher"]
    caption = "Accuracy in % with 95 % intervals"
    if any(len(runs) > 1 for _, runs in groups):
        caption += "; in rows of several seeds their mean, and the lowest and the highest"
    right = ("Test, greedy", "Dev", "Questions", *map(sampled_name, keys))
    return table(caption, heads, rows, "headline", right)


def run_head(runs: list[Workdir]) -> list[str]:
    return ["Run"] if len(runs) > 1 else []


def run_cell(run: Workdir, runs: list[Workdir]) -> str:
    """Which run a row is of, where there are several."""
    return f'<td class="run">{escape(run.name)}</td>' if len(runs) > 1 else ""


def sampled_name(key: str) -> str:
    kind, k = key.split("@")
    return f"{NAMES.get(kind, kind)}@{k}"


def result_cells(row: dict, color: str, keys: list[str], axis: tuple[int, int]) -> list[str]:
    out = [cell(row, "accuracy", "ci95"), whisker(row, color, axis), cell(as_dict(row.get("dev")), "accuracy", "ci95")]
    out += [cell(row, key, f"{key}_ci95") for key in keys]
    questions = f"{row['num_questions']:,}" if number(row.get("num_questions")) else "\u2013"
    if keys and number(row.get("num_sampled_questions")):
        questions += f'<span class="ci">{row["num_sampled_questions"]:,} sampled</span>'
    matcher = escape(row["matcher"]) if row.get("matcher") else "\u2013"
    return [*out, f'<td class="num">{questions}</td><td>{chosen(row)}</td><td>{matcher}</td>']


def chosen(row: dict) -> str:
    """Which checkpoint it is, and on which split it was picked."""
    if not number(row.get("step")):
        return "\u2013"
    how = f"best on {escape(row['selected_on'])}" if row.get("selected_on") else "last"
    epoch = f", epoch {row['epoch']:.1f}" if number(row.get("epoch")) else ""
    return f'{how}<span class="ci">step {row["step"]:,}{epoch}</span>'


def seed_row(label: str, rows: list[dict], keys: list[str]) -> str:
    """The mean over seeds, and the lowest and the highest of them."""
    test, *others = (seeds_cell([row.get(key) for row in rows]) for key in ("accuracy", *keys))
    cells = [test, "<td></td>", seeds_cell([as_dict(row.get("dev")).get("accuracy") for row in rows]), *others]
    head = f'<td class="run">{len(rows)} seeds</td><th scope="row">{escape(title_of(label))}, mean</th>'
    return f'<tr class="mean">{head}{"".join(cells)}<td></td><td></td><td></td></tr>'


def seeds_cell(values: list) -> str:
    values = [value for value in values if number(value)]
    if not values:
        return '<td class="num">\u2013</td>'
    return (
        f'<td class="num"><span class="val">{percent(float(np.mean(values)))}</span>'
        f'<span class="ci">{percent(min(values))}\u2013{percent(max(values))}</span></td>'
    )


def slices(runs: list[Workdir]) -> str:
    """Greedy test accuracy by the slices of results.json, a table for each kind of slice."""
    found = [
        (f"{run.name}: {title_of(label)}" if len(runs) > 1 else title_of(label), as_dict(row.get("by")))
        for run in runs
        for label, row in run.results.items()
    ]
    out = []
    for tag in dict.fromkeys(tag for _, by in found for tag in by):
        parts = [(name, as_dict(by.get(tag))) for name, by in found]
        values = list(dict.fromkeys(value for _, part in parts for value in part))
        rows = [line(escape(n), (cell(as_dict(x.get(v)), "accuracy", "ci95") for v in values)) for n, x in parts]
        out.append(table(f"Test, greedy, by {tag.replace('_', ' ')}", ["Checkpoint", *values], rows, right=values))
    return "".join(out)


def stages(runs: list[Workdir]) -> str:
    """Where every stage of every run stands."""
    rows = []
    for run in runs:
        for stage in run.stages:
            columns = stage.columns
            step = last(columns, "step")
            checks = [key for key in sorted(columns) if plots.CHECK.fullmatch(key)]
            best = "".join(best_check(columns, key) for key in checks) or "\u2013"
            state = "done" if stage.done else ("under way or stopped" if columns else "not begun")
            times = columns.get("time", np.full(1, np.nan))
            spent = float(np.nanmax(times) - np.nanmin(times)) if np.isfinite(times).sum() > 1 else None
            numbers = (
                "\u2013" if step is None else f"{step:,.0f}",
                shown(last(columns, "epoch")),
                best,
                "\u2013" if spent is None else clock(spent),
            )
            cells = [f"<td>{escape(stage.settings.get('kind', '-'))}</td><td>{state}</td>", *map(numeric, numbers)]
            rows.append(line(escape(title_of(stage.name)), cells, run_cell(run, runs)))
    if not rows:
        return '<p class="empty">No stage has written metrics yet.</p>'
    right = ("Last step", "Epoch", "Best check", "From first to last line")
    return table("Stages", [*run_head(runs), "Stage", "Kind", "State", *right], rows, right=right)


def best_check(columns: dict, key: str) -> str:
    """The highest value of an accuracy, and where; a column has one value at least."""
    values, split = columns[key], plots.CHECK.fullmatch(key)[1]
    where = f"{escape(split)}, step {columns['step'][np.nanargmax(values)]:,.0f}"
    return f'{percent(float(np.nanmax(values)))}<span class="ci">{where}</span>'


def last_metrics(run: Workdir) -> str:
    """The last logged value of every metric of every stage."""
    having = [stage for stage in run.stages if stage.columns]
    keys = {key for stage in having for key in stage.columns} - {"time"}
    rows = [
        line(code(key), (numeric(shown(last(stage.columns, key))) for stage in having))
        for key in sorted(keys, key=lambda key: (key not in ("step", "epoch"), key))
    ]
    titles = [title_of(stage.name) for stage in having]
    return table(f"Last logged values: {run.name}", ["Metric", *titles], rows, "dense", titles) if rows else ""


def last(columns: dict, key: str) -> float | None:
    values = columns.get(key, np.zeros(0))
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else None


def shown(value) -> str:
    """A number as a table shows it: four significant digits, more before the point."""
    if not number(value):
        return "\u2013"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def config_difference(runs: list[Workdir]) -> str:
    """The settings in which the runs differ, a column for each run."""
    about = ("git_commit", "data_sha256")
    flat = [flatten(run.config) | {key: run.about.get(key) for key in about} for run in runs]
    missing = object()
    keys = [key for key in dict.fromkeys(key for one in flat for key in one)
            if len({repr(one.get(key, missing)) for one in flat}) > 1]  # fmt: skip
    if not keys:
        return '<p class="empty">The configs are equal, seeds included.</p>'
    rows = (line(code(key), (f"<td>{setting(one[key]) if key in one else '–'}</td>" for one in flat)) for key in keys)
    return table("Settings in which the runs differ", ["Setting", *(run.name for run in runs)], rows)


def setting(value) -> str:
    value = str(value) if not isinstance(value, float) else f"{value:g}"
    return code(value if len(value) <= 200 else value[:200] + " ...")


def config(run: Workdir) -> str:
    rows = (line(code(key), [f"<td>{setting(value)}</td>"]) for key, value in flatten(run.config).items())
    return table(f"Config: {run.name}", ["Setting", "Value"], rows, "dense") if run.config else ""


def code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def numeric(inside: str) -> str:
    return f'<td class="num">{inside}</td>'


def line(name: str, cells, first: str = "") -> str:
    """A row: what stands before its name, the name as HTML, its cells."""
    return f'<tr>{first}<th scope="row">{name}</th>{"".join(cells)}</tr>'


def table(caption: str, heads, rows, kind: str = "", right=()) -> str:
    """A table that scrolls sideways on its own where the page is narrow, and can be scrolled by keyboard. right: the heads of numbers."""
    what, num = f' class="{kind}"' if kind else "", ' class="num"'
    head = "".join(f'<th scope="col"{num if name in right else ""}>{escape(name)}</th>' for name in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{what}><caption>{escape(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def facts_of(run: Workdir) -> dict[str, str]:
    """Data set, model, commit, devices: what a reader wants to know first."""
    data, model = as_dict(run.config.get("data")), as_dict(run.config.get("model"))
    cot = {"program": "programs (P-CoT)", "nl": "natural language (N-CoT)"}.get(str(data.get("cot")), data.get("cot"))
    times = [stage.columns["time"] for stage in run.stages if "time" in stage.columns]
    end = max((float(np.nanmax(t)) for t in times if np.isfinite(t).any()), default=None)
    devices = run.about.get("devices")
    parts = {
        "data": data.get("name") or data.get("task"),
        "chain of thought": cot,
        "model": model.get("name"),
        "seed": run.config.get("seed"),
        "devices": f"{len(devices)} {run.about.get('device_kind', '')}" if isinstance(devices, list) else None,
        "commit": str(run.about["git_commit"])[:7] if run.about.get("git_commit") else None,
        "last line": when(end),
    }
    return {name: str(value) for name, value in parts.items() if value not in (None, "")}


def facts(runs: list[Workdir]) -> str:
    """The facts of one run as a line, those of several as a table."""
    found = [facts_of(run) for run in runs]
    names = list(dict.fromkeys(name for one in found for name in one))
    if len(runs) == 1:
        items = "".join(f"<div><dt>{name}</dt><dd>{escape(found[0][name])}</dd></div>" for name in names)
        return f'<dl class="facts">{items}</dl>' if items else ""
    rows = (
        line(escape(run.name), (f"<td>{escape(one.get(name, '–'))}</td>" for name in names))
        for run, one in zip(runs, found, strict=True)
    )
    return table("Runs", ["run", *names], rows, "dense")


def when(seconds: float | None) -> str | None:
    """A time in UTC, to the minute."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def notes(runs: list[Workdir], more: list[str]) -> str:
    """What could not be read, as a list; '' where all could."""
    entries = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in dict.fromkeys(run.notes)]
    entries += more
    if not entries:
        return ""
    listed = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    what = plural(len(entries), "note")
    return f'<section class="notes" aria-labelledby="h-notes"><h2 id="h-notes">{len(entries)} {what} on what was read</h2><ul>{listed}</ul></section>'
