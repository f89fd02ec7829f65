"""The pictures of a finished or running workdir: accuracy over epochs, sampling step by step, results with intervals.

Reads only what the run wrote (`config.json`, `<stage>/metrics.jsonl`, `results.json`), so it can be run at any time,
also while a run is under way; what is not there yet is left out.  What is drawn of a stage depends on what it logged,
not on its name.  accuracy.png corresponds to the training curves of the ReFT paper (arXiv 2401.08967).  Colours are
Okabe and Ito's for the recipe's stages, and for others ones that colour-blind readers tell from these and from each
other; a stage has the same one in every picture, and in report.html.

    python -c "from reft_jax.report import plots; print(*plots.make('runs/demo'), sep='\\n')"
"""

import json
import math
import os
import pathlib
import re
import sys

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reft_jax.errors import InputError
from reft_jax.report import read
from reft_jax.run import lineage

STAGE_COLORS = {"base": "#999999", "warmup": "#56B4E9", "sft": "#E69F00", "reft": "#0072B2", "self_train": "#009E73"}
OTHER_COLORS = tuple("#DE1A4F #557101 #2614B2 #A4799A #6C4F2F #634C71 #000000 #52202B #1D3700 #1B1C3E".split())
STAGE_NAMES = {"base": "base model", "warmup": "warm-up", "sft": "SFT", "reft": "ReFT", "self_train": "self-training"}
STATUS_COLORS = {
    "correct": "#0072B2",
    "wrong": "#E69F00",
    "no_answer": "#999999",
    "error": "#D55E00",
    "timeout": "#CC79A7",
    "blocked": "#000000",
}
# key in metrics.jsonl, title, unit
STEP_PANELS = (
    ("reward/mean", "Score", "mean per response"),
    ("kl/mean", "KL to the reference", "nats per response"),
    ("sample/length_mean", "Response length", "tokens"),
    ("entropy/mean", "Policy entropy", "nats per token"),
    ("ppo/value_loss", "Value loss", ""),
)
STATUS_PREFIX = "status/"  # followed by a status of `reft_jax.rewards.score.Grade`: its share of the sampled responses
CHECK = re.compile(r"eval/(.+)_accuracy")  # greedy accuracy on a split, dev or test, while the stage trains
DRAWN = {"step", "epoch", "reward/accuracy", *(key for key, *_ in STEP_PANELS)}
KINDS = (
    "avg",
    "maj",
    "vote",
    "rerank",
    "weighted",
    "pass",
    "oracle",
)  # of metrics of results.json, kind@k, as they come
INK, FAINT = "#333333", "#DDDDDD"


def make(workdir: str | os.PathLike) -> list[pathlib.Path]:
    """Draws `workdir`/plots/{accuracy,results}.png, and <stage>.png of each stage that samples, each if there is
    anything to show, and returns their paths.

    Raises InputError for a workdir that does not exist or a file in it that is no valid JSON.
    """
    workdir = read.folder(workdir)
    settings = read.stage_settings(workdir, read.json_object(workdir / "config.json", []))
    metrics = {stage: read_metrics(workdir / stage / "metrics.jsonl") for stage in settings}
    metrics = {stage: rows for stage, rows in metrics.items() if len(series(rows, "step", "step")[0])}
    results = read_results(workdir / "results.json")
    colors = colors_of([*metrics, *results])
    figures = {"accuracy.png": accuracy_figure(metrics, settings, colors)}
    figures |= {file_of(stage): steps_figure(rows, _text(stage), colors[stage]) for stage, rows in metrics.items()}
    figures["results.png"] = results_figure(results, colors)
    return [save(figure, workdir / "plots" / name) for name, figure in figures.items() if figure is not None]


def title_of(stage: str) -> str:
    return STAGE_NAMES.get(stage, stage)


def file_of(stage: str) -> str:
    """The picture of a stage's steps."""
    return f"{stage}-steps.png" if stage in ("accuracy", "results") else f"{stage}.png"


def color_names(labels) -> dict[str, str]:
    """Stage or label -> the name of its colour: its own name if it has one, else other0, other1, ... in their order."""
    others = [label for label in dict.fromkeys(labels) if label not in STAGE_COLORS]
    names = {label: f"other{i % len(OTHER_COLORS)}" for i, label in enumerate(others)}
    return {label: names.get(label, label) for label in labels}


def colors_of(labels) -> dict[str, str]:
    """Stage or label -> its colour."""
    colors = STAGE_COLORS | {f"other{i}": color for i, color in enumerate(OTHER_COLORS)}
    return {label: colors[name] for label, name in color_names(labels).items()}


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The logged steps of one stage, in order, with the keys that are drawn; none if the file is missing. A half-written last
    line is left out."""
    if not path.exists():
        return []
    rows, damaged = [], None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if damaged is not None:
                raise damaged
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:  # if it is the last: the stage writes it just now, or was killed then
                damaged = InputError(f"{path}:{number}: not a JSON object ({error.msg}); remove the damaged line")
                continue
            if not isinstance(row, dict):
                got = line.strip()[:40]
                raise InputError(f"{path}:{number}: expected a JSON object, got {got!r}; remove the damaged line")
            drawn = (key for key in row if key in DRAWN or key.startswith((STATUS_PREFIX, "eval/")))
            rows.append({sys.intern(key): row[key] for key in drawn})
    return rows


def read_results(path: pathlib.Path) -> dict[str, dict]:
    """Label -> its results (accuracies as fractions), in the file's order, without those of checkpoints that are no longer there; none if the
    file is missing."""
    if not path.exists():
        return {}
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
        if not all(isinstance(row, dict) for row in stages.values()):
            raise TypeError
        return {label: row for label, row in stages.items() if not lineage.outdated(path.parent, row)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected JSON with an object 'stages'; run the evaluate stage again") from error


def sampled_keys(results, kinds=KINDS) -> list[str]:
    """The metrics kind@k that some of the results have, in their order."""
    pattern = re.compile(rf"({'|'.join(kinds)})@(\d+)")
    found = {key: match for row in results for key in row if (match := pattern.fullmatch(key))}
    return sorted(found, key=lambda key: (KINDS.index(found[key][1]), int(found[key][2])))


def by_status(keys: set[str]) -> list[str]:
    """Keys of statuses in the order of their colours, others after them."""
    known = [STATUS_PREFIX + status for status in STATUS_COLORS]
    return [key for key in known if key in keys] + sorted(keys - set(known))


def series(rows: list[dict], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The two keys' values, f64[N] each, of the rows that hold both as finite numbers."""
    pairs = [(row[x], row[y]) for row in rows if read.number(row.get(x)) and read.number(row.get(y))]
    values = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean of f64[N]; at both ends the window shrinks to what there is, on the two sides alike."""
    half = np.minimum(window // 2, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)


def accuracy_figure(metrics: dict[str, list[dict]], settings: dict[str, dict], colors: dict[str, str]) -> Figure | None:
    """Greedy accuracy of each stage's checks over its epochs, and as a thin line the accuracy of its own samples.

    A stage counts its own epochs; it is drawn from where the stage that it begins with ended. `settings`: each stage's.
    """
    ends = {stage: series(rows, "epoch", "epoch")[0].max(initial=0.0) for stage, rows in metrics.items()}
    checked, sampled = [], []
    for stage, rows in metrics.items():
        begin = read.begins(stage, settings, ends)
        for key in filter(CHECK.fullmatch, sorted({key for row in rows for key in row})):
            x, y = series(rows, "epoch", key)
            if len(x):
                checked.append((stage, CHECK.fullmatch(key)[1], begin + x, y))
        x, y = series(rows, "epoch", "reward/accuracy")
        if len(x):
            sampled.append((stage, begin + x, y))
    if not checked and not sampled:
        return None
    few = len(checked) + len(sampled) <= 4  # then their names find room among the curves
    figure = new_figure(7.2 if few else 10.2, max(4.2, 0.22 * (len(checked) + len(sampled))))
    axes = figure.add_subplot()
    style(axes)
    for stage, split, x, y in checked:
        label = f"{_text(stage)}, {split}, greedy (best {y.max():.1%})"
        axes.plot(x, y, color=colors[stage], linewidth=2, marker="o", markersize=4.5, label=label)
    for stage, x, y in sampled:
        thin = {"color": colors[stage], "linewidth": 0.9, "alpha": 0.55, "zorder": 1}
        axes.plot(x, y, label=f"{_text(stage)}, its training samples", **thin)
    axes.set_xlabel("epoch (passes over the training questions)")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Accuracy during training", loc="left", fontsize=12, color=INK)
    where = {"loc": "best"} if few else {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    axes.legend(frameon=False, fontsize=9, **where)
    return figure


def steps_figure(rows: list[dict], title: str, color: str) -> Figure | None:
    """What a stage that samples does in each step: score, KL, length, entropy, value loss, statuses of responses."""
    shares = _status_shares(rows)
    if not shares and not len(series(rows, "step", "reward/mean")[0]):
        return None
    panels = [(name, unit, *series(rows, "step", key)) for key, name, unit in STEP_PANELS]
    panels = [panel for panel in panels if len(panel[2])]
    num_panels = len(panels) + bool(shares)
    columns = min(3, num_panels)
    grid = (math.ceil(num_panels / columns), columns)
    figure = new_figure(3.7 * grid[1], 2.8 * grid[0])
    for position, (name, unit, x, y) in enumerate(panels, start=1):
        axes = figure.add_subplot(*grid, position)
        style(axes)
        window = max(1, len(y) // 10)
        if window >= 3:
            axes.plot(x, y, color=color, linewidth=0.8, alpha=0.4)
            y = smooth(y, window)
        axes.plot(x, y, color=color, linewidth=1.8)
        _step_axis(axes, name, unit)
    if shares:
        axes = figure.add_subplot(*grid, num_panels)
        style(axes)
        steps = shares.pop("step")
        colors = [STATUS_COLORS.get(status, FAINT) for status in shares]
        labels = [status.replace("_", " ") for status in shares]
        axes.stackplot(steps, *shares.values(), colors=colors, labels=labels, linewidth=0)
        axes.set_ylim(0, 1)
        axes.margins(x=0)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        _step_axis(axes, "Sampled responses", "")
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=1)
    figure.suptitle(f"{title}, step by step", x=0.01, ha="left", fontsize=12, color=INK)
    return figure


def results_figure(results: dict[str, dict], colors: dict[str, str]) -> Figure | None:
    """Bars of each label's accuracies with their 95 % intervals: greedy, then avg@k, maj@k and pass@k as they come.

    The interval of `accuracy` is its `ci95`, that of another metric `<metric>_ci95`; a bar without one has no whisker.
    """
    results = {label: row for label, row in results.items() if read.number(row.get("accuracy"))}
    if not results:
        return None
    metrics = ["accuracy", *sampled_keys(results.values(), ("avg", "maj", "vote", "pass"))]
    figure = new_figure(max(5.0, 1.2 + 0.42 * len(metrics) * (len(results) + 0.6)), 4.2)
    axes = figure.add_subplot()
    style(axes)
    width = 0.84 / len(results)
    for i, (label, row) in enumerate(results.items()):
        shown = [(position, key) for position, key in enumerate(metrics) if read.number(row.get(key))]
        x = np.array([position + (i - (len(results) - 1) / 2) * width for position, _ in shown])
        height = np.array([row[key] for _, key in shown])
        bounds = [row.get("ci95" if key == "accuracy" else f"{key}_ci95") or (row[key], row[key]) for _, key in shown]
        whiskers = np.abs(np.array(bounds).T - height)
        axes.bar(x, height, width * 0.94, color=colors[label], label=_text(label))
        known = whiskers.sum(axis=0) > 0
        if known.any():
            sides = whiskers[:, known]
            for ink, thick in (("white", 2.6), (INK, 1.1)):  # seen on dark bars too
                look = {"fmt": "none", "ecolor": ink, "elinewidth": thick, "capthick": thick, "capsize": 3}
                axes.errorbar(x[known], height[known], sides, **look)
        for center, value, top in zip(x, height, height + whiskers[1], strict=True):
            above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{100 * value:.1f}", (center, top), fontsize=7.5, color=INK, **above)
    axes.set_xticks(range(len(metrics)), ["greedy" if key == "accuracy" else key for key in metrics])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_ylabel("accuracy")
    num_questions = {row["num_questions"] for row in results.values() if read.number(row.get("num_questions"))}
    title = "Results with 95 % intervals"
    if len(num_questions) == 1:
        title += f" (greedy: {num_questions.pop():,} questions)"
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=8 + 16 * math.ceil(len(results) / 6))
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0.2, "borderaxespad": 0.2}
    axes.legend(frameon=False, fontsize=9, ncols=6, handlelength=1, **above)
    return figure


def _status_shares(rows: list[dict]) -> dict[str, np.ndarray]:
    """'step' and each status that ever occurs -> f64[N]; empty if no row holds a status. A status not logged is 0."""
    rows = [row for row in rows if read.number(row.get("step")) and any(key.startswith(STATUS_PREFIX) for key in row)]
    present = {key for row in rows for key, share in row.items() if key.startswith(STATUS_PREFIX) and share > 0}
    if not present:
        return {}
    columns = {
        key.removeprefix(STATUS_PREFIX): np.array([float(row.get(key, 0.0)) for row in rows])
        for key in by_status(present)
    }
    return {"step": np.array([float(row["step"]) for row in rows])} | columns


def _text(label: str) -> str:
    """A label's title for matplotlib, which hides names that begin with _ and reads a formula between two $."""
    title = title_of(label).replace("$", r"\$")
    return f" {title}" if title.startswith("_") else title


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches that belongs to no window and to no global list, so nothing has to be closed."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.label.set(color=INK, fontsize=10)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)


def _step_axis(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes the PNG in one move, so that a viewer or a kill never meets half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)
    return path
