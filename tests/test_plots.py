"""The pictures, looked at through matplotlib's own objects: what is drawn is what was logged."""

import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from reft_jax.errors import InputError
from reft_jax.report import page, plots, read
from tests import made_runs

PNG = b"\x89PNG\r\n\x1a\n"


def write_metrics(workdir, stage, rows, tail=""):
    (workdir / stage).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / stage / "metrics.jsonl").write_text(text + tail)


def sft_rows(first, last):
    return [{"step": 10 * e, "epoch": e, "eval/dev_accuracy": 0.5 + e / 100} for e in range(first, last)]


def reft_rows(num):
    return [
        {
            "step": t,
            "epoch": t / 4,
            "reward/mean": 0.6 + t / 100,
            "reward/accuracy": 0.5 + t / 100,
            "kl/mean": 0.1 * t,
            "sample/length_mean": 20 + t,
            "entropy/mean": 0.2,
            "ppo/value_loss": 1 / (t + 1),
            "status/correct": 0.75,
            "status/wrong": 0.25,
            "status/blocked": 0.0,
        }
        | ({"eval/dev_accuracy": 0.8} if t % 4 == 3 else {})
        for t in range(num)
    ]


RESULTS = {
    "sft": {"accuracy": 0.75, "ci95": [0.7, 0.79], "num_questions": 400, "maj@16": 0.8, "by_ops": {}},
    "reft": {"accuracy": 0.85, "ci95": [0.81, 0.88], "num_questions": 400, "maj@16": 0.9, "maj@16_ci95": [0.85, 0.93]},
}


def test_make_writes_three_whole_pictures(tmp_path):
    write_metrics(tmp_path, "warmup", sft_rows(0, 5))
    write_metrics(tmp_path, "sft", sft_rows(4, 20))
    write_metrics(tmp_path, "reft", reft_rows(40))
    (tmp_path / "results.json").write_text(json.dumps({"stages": RESULTS}))
    paths = plots.make(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "plots/accuracy.png",
        "plots/reft.png",
        "plots/results.png",
    ]
    assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 10_000 for path in paths)
    assert sorted((tmp_path / "plots").iterdir()) == sorted(paths)  # no half-written file is left


def test_make_leaves_out_what_is_not_there(tmp_path):
    assert plots.make(tmp_path) == []
    write_metrics(tmp_path, "warmup", sft_rows(0, 3))
    assert [path.name for path in plots.make(str(tmp_path))] == ["accuracy.png"]
    with pytest.raises(InputError, match="nowhere"):
        plots.make(tmp_path / "nowhere")


def test_read_metrics_forgives_only_the_last_line(tmp_path):
    write_metrics(tmp_path, "sft", sft_rows(0, 3), tail='{"step": 99, "epo')
    path = tmp_path / "sft" / "metrics.jsonl"
    assert [row["step"] for row in plots.read_metrics(path)] == [0, 10, 20]
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        plots.read_metrics(path)
    path.write_text('{"step": 0}\n7\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2.*'7'"):
        plots.read_metrics(path)


def test_damaged_results_are_named(tmp_path):
    for text in ("{", "[]", "{}"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(InputError, match=r"results\.json"):
            plots.make(tmp_path)


def test_series_takes_rows_with_both_finite_values():
    rows = [{"x": 0, "y": 1.0}, {"x": 1}, {"y": 2}, {"x": 2, "y": float("nan")}, {"x": 3, "y": None}, {"x": 4, "y": 5}]
    x, y = plots.series(rows, "x", "y")
    np.testing.assert_array_equal(x, [0, 4])
    np.testing.assert_array_equal(y, [1, 5])


@pytest.mark.parametrize("window", [1, 2, 5, 8, 100])
def test_smooth_equals_a_loop(window):
    values = np.random.default_rng(0).normal(size=23)
    expected = []
    for i in range(len(values)):
        half = min(window // 2, i, len(values) - 1 - i)
        expected.append(np.mean(values[i - half : i + half + 1]))
    np.testing.assert_allclose(plots.smooth(values, window), expected, atol=1e-12)


RECIPE = {
    "warmup": {"init_from": "tiny"},
    "sft": {"init_from": "warmup", "continue_run": True},
    "reft": {"init_from": "warmup"},
}


def test_accuracy_figure_draws_each_stage_and_the_samples():
    metrics = {"warmup": sft_rows(0, 5), "sft": sft_rows(4, 20), "reft": reft_rows(12)}
    (axes,) = plots.accuracy_figure(metrics, RECIPE, plots.colors_of(RECIPE)).axes
    lines = {line.get_label().split(",")[0] + str(line.get_linewidth() < 1): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(lines["SFTFalse"][:, 0], range(4, 20))
    np.testing.assert_allclose(lines["SFTFalse"][:, 1], [0.5 + e / 100 for e in range(4, 20)])
    assert len(lines["warm-upFalse"]) == 5 and len(lines["ReFTFalse"]) == 3 and len(lines["ReFTTrue"]) == 12
    np.testing.assert_allclose(lines["ReFTTrue"][:, 0], [4 + t / 4 for t in range(12)])  # where the warm-up ended
    assert any("best 69.0%" in text.get_text() for text in axes.get_legend().get_texts())
    assert plots.accuracy_figure({"warmup": [], "sft": [], "reft": []}, RECIPE, {}) is None


def test_steps_figure_has_a_panel_for_each_logged_key():
    figure = plots.steps_figure(reft_rows(40), "my stage", "#123456")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [title for _, title, _ in plots.STEP_PANELS] + ["Sampled responses"]
    assert figure.get_suptitle() == "my stage, step by step"
    assert {line.get_color() for axes in figure.axes for line in axes.lines} == {"#123456"}
    names = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert names == ["correct", "wrong"]  # a status that never occurred takes no place in the legend
    some = [{"step": t, "kl/mean": 1.0, "status/correct": 0.5} for t in range(2)]
    assert len(plots.steps_figure(some, "", "k").axes) == 2
    assert plots.steps_figure([{"step": 0, "epoch": 0}], "", "k") is None
    assert plots.steps_figure([{"step": 1, "entropy/mean": 0.5}], "", "k") is None  # a stage that does not sample


def test_results_figure_bars_and_whiskers():
    (axes,) = plots.results_figure(RESULTS, plots.colors_of(RESULTS)).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "datavalues")]
    assert heights == [[0.75, 0.8], [0.85, 0.9]]
    whiskers = {tuple(segment[:, 1]) for lines in axes.collections for segment in lines.get_segments()}
    expected = [(0.7, 0.79), (0.81, 0.88), (0.85, 0.93)]  # SFT's vote came without an interval
    np.testing.assert_allclose(sorted(whiskers), expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["greedy", "maj@16"]
    assert plots.results_figure({"reft": {"note": "not evaluated"}}, {}) is None


def test_sampled_metrics_are_ordered_by_kind_then_k():
    row = {"accuracy": 0.5, "pass@4": 0.7, "maj@16": 0.6, "maj@4": 0.6, "avg@16": 0.4, "maj@16_ci95": [0.5, 0.7]}
    (axes,) = plots.results_figure({"a": row}, {"a": "k"}).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["greedy", "avg@16", "maj@4", "maj@16", "pass@4"]


# ------------------------------------------------------------------ stages of any name


def figures_of(workdir, monkeypatch) -> dict:
    """File name -> figure of what `make` draws, in its order."""
    found = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: found.setdefault(path.name, figure))
    plots.make(workdir)
    return found


def test_stages_are_drawn_by_what_they_logged_whatever_their_names(tmp_path, monkeypatch):
    figures = figures_of(made_runs.write_methods(tmp_path / "one"), monkeypatch)
    assert list(figures) == ["accuracy.png", "grpo.png", "online.png", "results.png"]
    (axes,) = figures["accuracy.png"].axes
    lines = {line.get_label().split(" (")[0]: line for line in axes.lines}
    begins = {
        "base model, test, greedy": 1,
        "warm-up, dev, greedy": 3 + 1,  # base ended at 3
        "grpo, dev, greedy": 3 + 4,  # and the warm-up 4 later
        "offline, dev, greedy": 3 + 2,
        "online, dev, greedy": 3 + 4,
        "grpo, its training samples": 3 + 4 + 1 / 4,
        "online, its training samples": 3 + 4 + 1 / 4,
    }
    assert {label: line.get_xdata()[0] for label, line in lines.items()} == begins
    assert list(lines) == list(begins)  # in the config's order
    panels = ["Score", "KL to the reference", "Value loss", "Sampled responses"]
    for stage, titles in (("grpo", panels), ("online", [title for title in panels if title != "Value loss"])):
        figure = figures[f"{stage}.png"]
        assert [axes.get_title(loc="left") for axes in figure.axes] == titles
        assert figure.get_suptitle() == f"{stage}, step by step"
        (color,) = {line.get_color() for axes in figure.axes for line in axes.lines}
        assert (
            color == lines[f"{stage}, dev, greedy"].get_color() == lines[f"{stage}, its training samples"].get_color()
        )
    bars = {
        bars.get_label(): bars[0].get_facecolor()
        for bars in figures["results.png"].axes[0].containers
        if len(bars) == 2
    }
    for stage in ("base model", "grpo", "offline", "online"):
        (line,) = (line for label, line in lines.items() if label.startswith(f"{stage}, ") and "greedy" in label)
        assert to_rgba(line.get_color()) == bars[stage]
    assert len(set(bars.values())) == 5  # one of them a label that is no stage


def test_without_a_config_stages_are_the_folders_in_the_order_in_which_they_began(tmp_path, monkeypatch):
    for i, stage in enumerate(("zebra", "ape", "sft", "grpo")):
        rows = sft_rows(1, 4) if stage != "grpo" else reft_rows(8)
        write_metrics(tmp_path, stage, [row | {"time": 1e9 + 100 * i + t} for t, row in enumerate(rows)])
    for text in (None, "{", '{"config": {"stages": []}}'):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        figures = figures_of(tmp_path, monkeypatch)
        assert list(figures) == ["accuracy.png", "grpo.png"]
        names = [line.get_label().split(", ")[0] for line in figures["accuracy.png"].axes[0].lines]
        assert names == ["zebra", "ape", "SFT", "grpo", "grpo"]


def test_a_stage_called_as_another_picture_overwrites_none(tmp_path, monkeypatch):
    for stage in ("accuracy", "results", "other"):
        write_metrics(tmp_path, stage, reft_rows(8))
    assert sorted(figures_of(tmp_path, monkeypatch)) == [
        "accuracy-steps.png",
        "accuracy.png",
        "other.png",
        "results-steps.png",
    ]


def test_a_stage_begins_where_the_one_that_it_begins_with_ended():
    settings = {
        "base": {"init_from": "random"},
        "warmup": {"init_from": "base"},
        "sft": {"init_from": "warmup", "continue_run": True},
        "a": {"init_from": "sft"},
        "b": {"init_from": "a"},
        "odd": {"init_from": ["a"]},
        "x": {"init_from": "y"},
        "y": {"init_from": "x"},
    }
    ends = {"base": 10.0, "warmup": 2.0, "sft": 5.0, "a": 0.5, "x": 1.0, "y": 1.0}
    begins = {stage: read.begins(stage, settings, ends) for stage in settings}
    assert begins["base"] == begins["odd"] == 0 and begins["warmup"] == begins["sft"] == 10
    assert begins["a"] == 10 + 5 and begins["b"] == 10 + 5 + 0.5  # sft counts the warm-up's epochs on
    assert begins["x"] == begins["y"] == 2  # a circle, which no run can have, ends


def test_names_that_matplotlib_reads_otherwise_are_shown_as_they_are(tmp_path, monkeypatch):
    for stage in ("_mine", "a$_$b^$"):
        write_metrics(tmp_path, stage, reft_rows(8))
    row = {"accuracy": 0.5}
    (tmp_path / "results.json").write_text(json.dumps({"stages": {"_mine": row, "a$_$b^$": row}}))
    figures = figures_of(tmp_path, monkeypatch)
    for name in ("accuracy.png", "results.png"):
        shown = [text.get_text().split(",")[0] for text in figures[name].axes[0].get_legend().get_texts()]
        assert sorted(set(shown)) == [" _mine", r"a\$_\$b^\$"]
    monkeypatch.undo()
    assert len(plots.make(tmp_path)) == 4


# ------------------------------------------------------------------ colours


def test_labels_keep_their_colors_and_others_get_distinct_ones():
    others = [f"seed {i}" for i in range(len(plots.OTHER_COLORS))]
    colors = plots.colors_of([others[0], "reft", *others, "sft"])
    assert colors["reft"] == plots.STAGE_COLORS["reft"] and colors["sft"] == plots.STAGE_COLORS["sft"]
    assert len(set(colors.values())) == len(others) + 2
    assert plots.colors_of(["reft", "seed 0"])["seed 0"] == colors["seed 0"]


def css_colors(theme: int) -> dict[str, str]:
    """Name -> colour of report.css, of the light theme (0) or the dark one (1)."""
    text = (page.ASSETS / "report.css").read_text()
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", text.split("}")[theme]))


def test_the_report_has_every_color_in_both_themes():
    names = [*plots.STAGE_COLORS, *(f"other{i}" for i in range(len(plots.OTHER_COLORS)))]
    text = (page.ASSETS / "report.css").read_text()
    for name in names:
        assert name in css_colors(0) and name in css_colors(1) and f".c-{name} {{ color: var(--{name}); }}" in text
    assert [css_colors(0)[name] for name in names[5:]] == [color.lower() for color in plots.OTHER_COLORS]


# Machado, Oliveira and Fernandes (2009): what eyes without the first and without the second cone make of linear RGB
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(color: str, eyes) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(eyes @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["png", "light", "dark"])
def test_colors_are_told_apart_by_colour_blind_readers(theme):
    known, others = [*plots.STAGE_COLORS.values()], [*plots.OTHER_COLORS]
    if theme != "png":
        colors = css_colors(theme == "dark")
        known = [colors[name] for name in plots.STAGE_COLORS]
        others = [colors[f"other{i}"] for i in range(len(plots.OTHER_COLORS))]
    for eyes in (np.eye(3), np.array(PROTAN), np.array(DEUTAN)):
        places = {color: lab(color, eyes) for color in [*known, *others]}
        apart = {pair: np.linalg.norm(places[pair[0]] - places[pair[1]]) for pair in itertools.combinations(places, 2)}
        assert min(apart.values()) > 11, min(apart, key=apart.get)  # Okabe and Ito's grey and green: 11.9
