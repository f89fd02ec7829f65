"""Learning curves of a table of every method, small: dev accuracy over updates, the mean over seeds in a band from the lowest to the highest."""

import collections
import csv
import os
import pathlib

import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import PercentFormatter

from reft_jax.errors import InputError
from reft_jax.report import plots
from reft_jax.tables import Figure, by_seed

# The picture's rows, and a colour for each method in them (Okabe and Ito's).
ROWS = (
    ("methods", dict(sft="#E69F00", offline="#009E73", online="#CC79A7", reft="#0072B2")),
    ("ReFT and its parts", dict(reft="#0072B2", no_partial_reward="#56B4E9", no_kl="#D55E00", separate_critic="#000000")),
    ("without a critic", dict(reft="#0072B2", grpo="#D55E00", dr_grpo="#F0E442", rloo="#009E73", reinforce_pp="#CC79A7")),
)  # fmt: skip
COLUMNS = ("cot", "style", "method", "seed", "update", "dev_accuracy")


def write(table: str, found: list[Figure], root: pathlib.Path) -> list[pathlib.Path]:
    """Writes root/curves.csv and root/curves.png, and returns their paths; InputError if there is nothing to draw."""
    curves = gather(found)
    if not curves:
        makes = f"`bash launch/table.sh {table} ROOT` makes them"
        raise InputError(f"ROOT: {root} holds no run of the table {table}; {makes}")
    lines = [(*key, update, accuracy) for key, curve in curves.items() for update, accuracy in zip(*curve, strict=True)]
    with open(root / "curves.csv.tmp", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
    os.replace(root / "curves.csv.tmp", root / "curves.csv")
    return [root / "curves.csv", plots.save(draw(curves), root / "curves.png")]


def gather(found: list[Figure]) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
    """(cot, style, method, seed) -> (updates of the parameters since the base, dev accuracy)."""
    jobs = collections.defaultdict(list)
    for figure in found:
        if figure.metric == "accuracy":
            jobs[figure.job].append(figure)
    out = {}
    for job, figures in jobs.items():
        _, cot, style, method = job.split("/")
        for figure in by_seed(figures)[0]:
            x, y = curve(figure.run, figure.run.labels[figure.label]["source"])
            if len(x):
                out[cot, style, method, figure.run.config["seed"]] = x, y
    return out


def curve(run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A stage's checks, what it begins with before them."""
    if name not in run.stages:
        return np.zeros(0), np.zeros(0)
    stage = run.stages[name]
    x, y = plots.series(plots.read_metrics(run.path / name / "metrics.jsonl"), "step", "eval/dev_accuracy")
    if stage["kind"] == "reft":
        x = x * (stage["ppo"]["epochs"] * stage["batch_size"] * stage["num_samples"] // stage["ppo"]["minibatch_size"])
    before = curve(run, stage["init_from"])
    if not len(before[0]) or not len(x):
        return x, y
    if not stage.get("continue_run"):  # which counts on
        x = x + before[0][-1]
    first = int(x[0] == before[0][-1])  # where both looked, once
    return np.append(before[0], x[first:]), np.append(before[1], y[first:])


def mean_of(curves: list[tuple]) -> tuple[np.ndarray, ...]:
    """(updates, mean, least, most) over seeds, check by check; as many checks as all of them have."""
    num = min(len(x) for x, _ in curves)
    x, y = (np.stack([curve[i][:num] for curve in curves]) for i in range(2))
    return x.mean(0), y.mean(0), y.min(0), y.max(0)


def draw(curves: dict) -> Picture:
    """A column for each (cot, style) that has curves, a row for each of ROWS."""
    columns = list(dict.fromkeys(key[:2] for key in curves))
    picture = plots.new_figure(1.2 + 3.0 * len(columns), 2.5 * len(ROWS))
    grid = picture.subplots(len(ROWS), len(columns), squeeze=False, sharex="col", sharey="col")
    for axes_of_row, (title, colors) in zip(grid, ROWS, strict=True):
        for axes, (cot, style) in zip(axes_of_row, columns, strict=True):
            plots.style(axes)
            for method, color in colors.items():
                mine = [curve for key, curve in curves.items() if key[:3] == (cot, style, method)]
                if mine:
                    x, mean, least, most = mean_of(mine)
                    axes.plot(x, mean, color=color, linewidth=1.6, label=method)
                    axes.fill_between(x, least, most, color=color, alpha=0.15, linewidth=0)
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
            axes.set_title(f"{cot}, {style}: {title}", loc="left", fontsize=9, color=plots.INK)
            axes.legend(frameon=False, fontsize=7, loc="best")
    for axes in grid[-1]:
        axes.set_xlabel("updates since the base", fontsize=9)
    picture.suptitle("Greedy dev accuracy, mean and range over seeds", x=0.01, ha="left", fontsize=10)
    return picture
