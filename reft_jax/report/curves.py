"""The charts of a report: which keys of metrics.jsonl, of which stages, thinned so that a long run stays small.

Runs whose configs differ in nothing but the seed are one line with a band from the lowest to the highest of them.
"""

import json

import numpy as np

from reft_jax.report import plots, read
from reft_jax.report.plots import title_of
from reft_jax.report.read import Stage, Workdir, as_dict, number

# key, title, unit, what a reader may want to know of it
PANELS = (
    ("reward/mean", "Score", "mean per response", "What the reward function paid, without the KL penalty."),
    ("kl/mean", "KL to the reference", "nats per response", "Sum over a response of log p(policy) - log p(reference)."),
    ("sample/length_mean", "Response length", "tokens", "Mean over the step's sampled responses."),
    ("ppo/value_loss", "Value loss", "", "Clipped squared error of the value head."),
    ("ppo/explained_variance", "Explained variance", "", "1 is a perfect critic, 0 one that knows only the mean."),
    ("ppo/clip_fraction", "Clip fraction", "share of tokens", "Tokens whose ratio left the clip range."),
    ("entropy/mean", "Policy entropy", "nats per token", "Near 0 the policy hardly explores any more."),
    ("grad/norm", "Gradient norm", "", "Before clipping."),
    ("sft/loss", "SFT loss", "nats", "Negative log-likelihood of the gold chains of thought."),
    ("rate/sample_tokens_per_s", "Sampling speed", "tokens per second", ""),
)
TIMES = {"time/sample_s": "sampling", "time/reward_s": "grading", "time/update_s": "update", "time/eval_s": "dev check"}
NOT_CHARTED = ("step", "epoch", "time")
MAX_POINTS, MIN_POINTS, POINTS = 500, 60, 60_000  # of one curve, at most and at least, and of all together, about
MAX_MORE = 40  # further keys that are charted on demand


def charts(groups: list[tuple[str, list[Workdir]]]) -> list[dict]:
    """Charts as the page's script draws them. `groups`: name -> runs that differ in the seed alone (`group`)."""
    stages = [(g, name, stages_of(runs, name)) for g, (_, runs) in enumerate(groups) for name in stage_names(runs)]
    keys = {key for _, _, found in stages for _, stage in found for key in stage.columns}
    most = int(np.clip(POINTS // max(1, len(stages) * len(keys)), MIN_POINTS, MAX_POINTS))
    several = len(groups) > 1
    out = [accuracy(groups, stages, most)]
    for key, title, unit, text in PANELS:
        out.append(panel(groups, stages, key, title, unit, text, most))
    for g, (group_name, _) in enumerate(groups):
        for where, name, found in stages:
            if where == g:
                of = f"{title_of(name)}, {group_name}" if several else title_of(name)
                out.append(statuses(name, found, of, most))
                out.append(times(name, found, of, most))
    charted = {key for key, *_ in PANELS} | {key for key, _ in accuracies(keys)} | {*NOT_CHARTED}
    more = sorted(key for key in keys - charted if not key.startswith((plots.STATUS_PREFIX, "time/")))
    for key in more[:MAX_MORE]:
        out.append(panel(groups, stages, key, key, "", "", min(most, 200)) | {"more": True})
    return [chart for chart in out if chart["series"]]


def group(runs: list[Workdir]) -> list[tuple[str, list[Workdir]]]:
    """(name, runs) of each set of runs whose configs are equal but for the seeds; a run without a config is alone."""
    found: dict[str, list[Workdir]] = {}
    for i, run in enumerate(runs):
        found.setdefault(json.dumps(without_seed(run.config), sort_keys=True) if run.config else str(i), []).append(run)
    return [(group_name(runs), runs) for runs in found.values()]


def group_name(runs: list[Workdir]) -> str:
    names = [run.name for run in runs]
    return names[0] if len(names) == 1 else f"{names[0]} + {len(names) - 1} more {plural(len(names) - 1, 'seed')}"


def plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"


def without_seed(config: dict) -> dict:
    data = {key: value for key, value in as_dict(config.get("data")).items() if key != "seed"}
    return {key: value for key, value in config.items() if key != "seed"} | {"data": data}


def stage_names(runs: list[Workdir]) -> list[str]:
    return list(dict.fromkeys(stage.name for run in runs for stage in run.stages if stage.columns))


def stages_of(runs: list[Workdir], name: str) -> list[tuple[Workdir, Stage]]:
    return [(run, stage) for run in runs for stage in run.stages if stage.name == name and stage.columns]


def before(run: Workdir, stage: Stage, axis: str) -> float:
    """Where on the axis ('epoch' or 'seq') a stage begins."""
    along = {one.name: axis_values(one, axis) for one in run.stages if one.columns}
    ends = {name: float(np.max(values, initial=0.0, where=np.isfinite(values))) for name, values in along.items()}
    return read.begins(stage.name, {one.name: one.settings for one in run.stages}, ends)


def axis_values(stage: Stage, axis: str) -> np.ndarray:
    """f64[N]: epochs, or sequences trained on (drawn ones, where each step samples); empty if unknown."""
    if axis == "epoch":
        return stage.columns.get("epoch", np.zeros(0))
    samples = any(key.startswith(("reward/", plots.STATUS_PREFIX)) for key in stage.columns)
    size, k = stage.settings.get("batch_size"), stage.settings.get("num_samples", 1) if samples else 1
    return stage.columns["step"] * size * max(k, 1) if number(size) and number(k) else np.zeros(0)


def accuracies(keys) -> list[tuple[str, str]]:
    """(key, what it is of) of a stage's accuracy while it trains: its checks among `keys`, and its own samples."""
    checks = [(key, f"{plots.CHECK.fullmatch(key)[1]}, greedy") for key in sorted(keys) if plots.CHECK.fullmatch(key)]
    return [*checks, ("reward/accuracy", "its own samples")]


def accuracy(groups, stages, most: int) -> dict:
    """Accuracy of every stage's checks, and the accuracy of what it samples, over epochs and over sequences."""
    series = []
    for key, what in accuracies({key for _, _, found in stages for _, stage in found for key in stage.columns}):
        own = key == "reward/accuracy"
        for g, name, found in stages:
            style = styled(groups, g, name) | {"points": not own, "thin": own}
            label = f"{labelled(groups, g, name)}, {what}"
            parts = {}
            for axis in ("epoch", "seq"):
                curves = []
                for run, stage in found:
                    x = axis_values(stage, axis)
                    if key in stage.columns and len(x):
                        curves.append(finite(x + before(run, stage, axis), stage.columns[key]))
                if curved := band(curves, most):
                    parts[axis] = curved
            if parts:
                series.append({"label": label, **style, "by": parts})
    used = {axis for one in series for axis in one["by"]}
    axes = {axis: label for axis, label in {"epoch": "epoch", "seq": "sequences"}.items() if axis in used}
    text = (
        "Greedy accuracy on the questions of the stage's checks; the thin line is the share of right answers "
        "among its own samples. Sequences are gold examples trained on or, for a stage that samples, responses drawn."
    )
    return chart("accuracy", "Accuracy during training", text, "", series, axes=axes, percent=True)


def chart(ident, title, text, unit, series, *, kind="line", axes=None, percent=False) -> dict:
    """A chart as the page's script draws it; axes: by their keys in the series' "by", the step alone if None."""
    out = {"id": ident, "title": title, "text": text, "unit": unit, "percent": percent, "kind": kind}
    return out | {"axes": {"step": "step"} if axes is None else axes, "series": series}


def panel(groups, stages, key, title, unit, text, most) -> dict:
    """One key over the steps of every stage that logged it."""
    series = []
    for g, name, found in stages:
        curves = [finite(s.columns["step"], s.columns[key]) for _, s in found if key in s.columns]
        if curved := band(curves, most):
            style = styled(groups, g, name) | {"points": len(curved["x"]) <= 30, "thin": False}
            series.append({"label": labelled(groups, g, name), **style, "by": {"step": curved}})
    return chart(key, title, text, unit, series, percent=key == "ppo/clip_fraction")


def statuses(name, found, of, most) -> dict:
    keys = {key for _, stage in found for key in stage.columns if key.startswith(plots.STATUS_PREFIX)}
    series = [(key.removeprefix(plots.STATUS_PREFIX), key) for key in plots.by_status(keys)]
    title, text = f"What became of the responses: {of}", "Shares of the step's sampled responses."
    return stack(f"status:{name}:{of}", title, text, "", found, series, most) | {"percent": True}


def times(name, found, of, most) -> dict:
    online = any("time/sample_s" in stage.columns for _, stage in found)
    series = [(label, key) for key, label in TIMES.items()] if online else []
    text = "Seconds of wall clock; the first step of a process also compiles."
    return stack(f"time:{name}:{of}", f"Time of a step: {of}", text, "seconds", found, series, most)


def stack(ident, title, text, unit, found, series, most) -> dict:
    """Stacked shares of several keys, means over the group's runs; a step that did not log a key counts 0 of it."""
    out = []
    needed = [key for _, key in series if key != "time/eval_s"]  # a dev check alone (step 0) is no step
    for label, key in series:
        curves = []
        for _, stage in found:
            present = [np.isfinite(stage.columns[other]) for other in needed if other in stage.columns]
            if key in stage.columns and present:
                y = np.where(np.any(present, axis=0), np.nan_to_num(stage.columns[key]), np.nan)
                curves.append(finite(stage.columns["step"], y))
        if (curved := band(curves, most)) and any(curved["y"]):
            curved = {"x": curved["x"], "y": curved["y"]}
            out.append({"label": label.replace("_", " "), "color": label, "by": {"step": curved}})
    return chart(ident, title, text, unit, out, kind="stack")


def labelled(groups, g: int, name: str) -> str:
    return f"{groups[g][0]}: {title_of(name)}" if len(groups) > 1 else title_of(name)


def color_names(groups) -> dict[str, str]:
    """Stage or label -> the name of its colour; of a single run, the ones of its plots/."""
    runs = [run for _, members in groups for run in members]
    return plots.color_names([*stage_names(runs), *(label for run in runs for label in run.results)])


def styled(groups, g: int, name: str) -> dict:
    """Colour by stage in a report of one run (or its seeds); by run, and dashes by stage, the last one solid,
    in one of several."""
    if len(groups) == 1:
        return {"color": color_names(groups)[name], "dash": 0}
    names = stage_names([run for _, members in groups for run in members])
    return {"color": f"run{g % 6}", "dash": names[::-1].index(name)}


def finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that are finite, by x; of several at one x (a step logged twice) the last."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, last = np.unique(x[keep][::-1], return_index=True)
    return x, y[keep][::-1][last]


def thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: means over stretches of equally many neighbours; the first and the last point stay."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(1, len(x) - 1, most - 1).astype(int)  # most - 2 stretches between the two ends
    count = np.diff(edges)
    inner = [np.add.reduceat(z[: len(z) - 1], edges[:-1]) / count for z in (x, y)]
    return tuple(np.concatenate([z[:1], mid, z[-1:]]) for z, mid in zip((x, y), inner, strict=True))


def band(curves, most: int) -> dict:
    """One curve as it is, several as their mean with the lowest and the highest at each x; {} without any point."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return {}
    if len(curves) == 1:
        x, y = thin(*curves[0], most)
        return {"x": rounded(x), "y": rounded(y)}
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid if len(grid) <= most else np.linspace(grid[0], grid[-1], most)
    rows = np.array([np.interp(grid, *thin(x, y, most), left=np.nan, right=np.nan) for x, y in curves])
    some = np.isfinite(rows).any(0)
    grid, rows = grid[some], rows[:, some]
    parts = {"x": grid, "y": np.nanmean(rows, 0), "lo": np.nanmin(rows, 0), "hi": np.nanmax(rows, 0)}
    return {key: rounded(value) for key, value in parts.items()}


def rounded(values: np.ndarray) -> list[float]:
    """Five significant digits (eight before the point): more than a screen shows."""
    out = [float(f"{value:.5g}") if abs(value) < 1e5 else round(float(value)) for value in values]
    return [int(value) if value == int(value) else value for value in out]
