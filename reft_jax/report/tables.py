"""The tables of a report as HTML, made here and not in the page's script: they are there without JavaScript too."""

import datetime
import html
import math
import re

import numpy as np

from reft_jax.config.records import flatten
from reft_jax.report import plots
from reft_jax.report.curves import color_names, plural
from reft_jax.report.plots import title_of
from reft_jax.report.read import Workdir, as_dict, number
from reft_jax.run.progress import clock

SAMPLED = re.compile(r"(avg|maj|vote|pass|rerank|weighted|oracle)@(\d+)")
KINDS = ("avg", "maj", "vote", "rerank", "weighted", "pass", "oracle")
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


def sampled_keys(groups) -> list[str]:
    keys = {
        key
        for _, runs in groups
        for run in runs
        for row in run.results.values()
        for key in row
        if SAMPLED.fullmatch(key)
    }
    return sorted(keys, key=lambda key: (KINDS.index(SAMPLED.fullmatch(key)[1]), int(SAMPLED.fullmatch(key)[2])))


def headline(groups: list[tuple[str, list[Workdir]]]) -> str:
    """Accuracies with intervals, in %: a row for each evaluated label of each run, and the mean over seeds."""
    keys = sampled_keys(groups)
    several = sum(len(runs) for _, runs in groups) > 1
    heads = [*(["Run"] if several else []), "Checkpoint", "Test, greedy", "", "Dev", *map(sampled_name, keys)]
    heads += ["Questions", "Chosen", "Matcher"]
    colors = color_names(groups)
    axis = axis_of([row for _, runs in groups for run in runs for row in run.results.values()])
    rows = []
    for _, runs in groups:
        labels = list(dict.fromkeys(label for run in runs for label in run.results))
        for label in labels:
            having = [run for run in runs if label in run.results]
            for run in having:
                first = [f'<td class="run">{escape(run.name)}</td>'] if several else []
                cells = result_cells(run.results[label], label, colors[label], keys, axis)
                rows.append("<tr>" + "".join(first) + cells + "</tr>")
            if len(having) > 1:
                rows.append(seed_row(label, [run.results[label] for run in having], keys))
    if not rows:
        return '<p class="empty">No stage has been evaluated yet: results.json is missing or empty.</p>'
    head = "".join(f'<th scope="col"{num(h)}>{escape(h) or f"{axis[0]} to {axis[1]} %"}</th>' for h in heads)
    caption = "Accuracy in % with 95 % intervals"
    if any(len(runs) > 1 for _, runs in groups):
        caption += "; in rows of several seeds their mean, and the lowest and the highest"
    return table(caption, f"<tr>{head}</tr>", "".join(rows), "headline")


def num(head: str) -> str:
    return ' class="num"' if head in ("Test, greedy", "Dev", "Questions") or "@" in head else ""


def sampled_name(key: str) -> str:
    kind, k = key.split("@")
    return f"{NAMES.get(kind, kind)}@{k}"


def result_cells(row: dict, label: str, color: str, keys: list[str], axis: tuple[int, int]) -> str:
    out = [f'<th scope="row"><span class="swatch c-{color}"></span>{escape(title_of(label))}</th>']
    out += [cell(row, "accuracy", "ci95"), whisker(row, color, axis), cell(as_dict(row.get("dev")), "accuracy", "ci95")]
    out += [cell(row, key, f"{key}_ci95") for key in keys]
    questions = f"{row['num_questions']:,}" if number(row.get("num_questions")) else "\u2013"
    if keys and number(row.get("num_sampled_questions")):
        questions += f'<span class="ci">{row["num_sampled_questions"]:,} sampled</span>'
    matcher = escape(row["matcher"]) if row.get("matcher") else "\u2013"
    return "".join(out) + f'<td class="num">{questions}</td><td>{chosen(row)}</td><td>{matcher}</td>'


def chosen(row: dict) -> str:
    """Which checkpoint it is, and on which split it was picked."""
    if not number(row.get("step")):
        return "\u2013"
    how = f"best on {escape(row['selected_on'])}" if row.get("selected_on") else "last"
    epoch = f", epoch {row['epoch']:.1f}" if number(row.get("epoch")) else ""
    return f'{how}<span class="ci">step {row["step"]:,}{epoch}</span>'


def seed_row(label: str, rows: list[dict], keys: list[str]) -> str:
    """The mean over seeds, and the lowest and the highest of them."""
    cells = []
    for get in (lambda r: r.get("accuracy"), None, lambda r: as_dict(r.get("dev")).get("accuracy")):
        cells.append("<td></td>" if get is None else seeds_cell([get(row) for row in rows]))
    cells += [seeds_cell([row.get(key) for row in rows]) for key in keys]
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
    out = []
    tags = dict.fromkeys(tag for run in runs for row in run.results.values() for tag in as_dict(row.get("by")))
    for tag in tags:
        parts = {
            (run, label): as_dict(as_dict(row.get("by")).get(tag))
            for run in range(len(runs))
            for label, row in runs[run].results.items()
        }
        values = list(dict.fromkeys(value for part in parts.values() for value in part))
        rows = []
        for (run, label), part in parts.items():
            name = f"{runs[run].name}: {title_of(label)}" if len(runs) > 1 else title_of(label)
            cells = "".join(cell(as_dict(part.get(value)), "accuracy", "ci95") for value in values)
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
        head = "".join(f'<th scope="col" class="num">{escape(value)}</th>' for value in values)
        out.append(
            table(
                f"Test, greedy, by {tag.replace('_', ' ')}",
                f'<tr><th scope="col">Checkpoint</th>{head}</tr>',
                "".join(rows),
            )
        )
    return "".join(out)


def stages(runs: list[Workdir]) -> str:
    """Where every stage of every run stands."""
    rows = []
    for run in runs:
        for stage in run.stages:
            columns = stage.columns
            first = [f'<td class="run">{escape(run.name)}</td>'] if len(runs) > 1 else []
            step = last(columns, "step")
            checks = [key for key in sorted(columns) if plots.CHECK.fullmatch(key)]
            best = "".join(best_check(columns, key) for key in checks) or "\u2013"
            state = "done" if stage.done else ("under way or stopped" if columns else "not begun")
            times = columns.get("time", np.full(1, np.nan))
            spent = float(np.nanmax(times) - np.nanmin(times)) if np.isfinite(times).sum() > 1 else None
            rows.append(
                f'<tr>{"".join(first)}<th scope="row">{escape(title_of(stage.name))}</th>'
                f"<td>{escape(stage.settings.get('kind', '-'))}</td><td>{state}</td>"
                f'<td class="num">{"–" if step is None else f"{step:,.0f}"}</td><td class="num">{shown(last(columns, "epoch"))}</td>'
                f'<td class="num">{best}</td><td class="num">{"–" if spent is None else clock(spent)}</td></tr>'
            )
    if not rows:
        return '<p class="empty">No stage has written metrics yet.</p>'
    heads = [
        *(["Run"] if len(runs) > 1 else []),
        "Stage",
        "Kind",
        "State",
        "Last step",
        "Epoch",
        "Best check",
        "From first to last line",
    ]
    right = ("Last step", "Epoch", "Best check", "From first to last line")
    head = "".join(f'<th scope="col"{" class=num" if h in right else ""}>{h}</th>' for h in heads)
    return table("Stages", f"<tr>{head}</tr>", "".join(rows))


def best_check(columns: dict, key: str) -> str:
    """The highest value of an accuracy, and where; a column has one value at least."""
    values, split = columns[key], plots.CHECK.fullmatch(key)[1]
    where = f"{escape(split)}, step {columns['step'][np.nanargmax(values)]:,.0f}"
    return f'{percent(float(np.nanmax(values)))}<span class="ci">{where}</span>'


def last_metrics(run: Workdir) -> str:
    """The last logged value of every metric of every stage."""
    having = [stage for stage in run.stages if stage.columns]
    keys = sorted(
        {key for stage in having for key in stage.columns} - {"time"},
        key=lambda key: (key not in ("step", "epoch"), key),
    )
    if not keys:
        return ""
    head = "".join(f'<th scope="col" class="num">{escape(title_of(stage.name))}</th>' for stage in having)
    rows = (
        f'<tr><th scope="row"><code>{escape(key)}</code></th>'
        + "".join(f'<td class="num">{shown(last(stage.columns, key))}</td>' for stage in having)
        + "</tr>"
        for key in keys
    )
    return table(
        f"Last logged values: {run.name}", f'<tr><th scope="col">Metric</th>{head}</tr>', "".join(rows), "dense"
    )


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
    flat = [
        flatten(run.config) | {"git_commit": run.about.get("git_commit"), "data_sha256": run.about.get("data_sha256")}
        for run in runs
    ]
    missing = object()
    keys = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if len({repr(one.get(key, missing)) for one in flat}) > 1
    ]
    if not keys:
        return '<p class="empty">The configs are equal, seeds included.</p>'
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    rows = (
        f'<tr><th scope="row"><code>{escape(key)}</code></th>'
        + "".join(f"<td>{setting(one[key]) if key in one else '–'}</td>" for one in flat)
        + "</tr>"
        for key in keys
    )
    return table("Settings in which the runs differ", f'<tr><th scope="col">Setting</th>{head}</tr>', "".join(rows))


def setting(value) -> str:
    value = str(value) if not isinstance(value, float) else f"{value:g}"
    return f"<code>{escape(value if len(value) <= 200 else value[:200] + ' ...')}</code>"


def config(run: Workdir) -> str:
    rows = (
        f'<tr><th scope="row"><code>{escape(key)}</code></th><td>{setting(value)}</td></tr>'
        for key, value in flatten(run.config).items()
    )
    head = '<tr><th scope="col">Setting</th><th scope="col">Value</th></tr>'
    return table(f"Config: {run.name}", head, "".join(rows), "dense") if run.config else ""


def table(caption: str, head: str, rows: str, kind: str = "") -> str:
    """A table that scrolls sideways on its own where the page is narrow, and can be scrolled by keyboard."""
    what = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{what}><caption>{escape(caption)}'
        f"</caption><thead>{head}</thead><tbody>{rows}</tbody></table></div>"
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
    head = "".join(f'<th scope="col">{name}</th>' for name in ("run", *names))
    rows = (
        f'<tr><th scope="row">{escape(run.name)}</th>'
        + "".join(f"<td>{escape(one.get(name, '–'))}</td>" for name in names)
        + "</tr>"
        for run, one in zip(runs, found, strict=True)
    )
    return table("Runs", f"<tr>{head}</tr>", "".join(rows), "dense")


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
