"""The pictures, looked at through matplotlib's own objects: what is drawn is what was logged."""

import json

import numpy as np
import pytest

from reft_jax.errors import InputError
from reft_jax.report import plots

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


def test_accuracy_figure_draws_each_stage_and_the_samples():
    metrics = {"warmup": sft_rows(0, 5), "sft": sft_rows(4, 20), "reft": reft_rows(12)}
    (axes,) = plots.accuracy_figure(metrics).axes
    lines = {line.get_label().split(",")[0] + str(line.get_linewidth() < 1): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(lines["SFTFalse"][:, 0], range(4, 20))
    np.testing.assert_allclose(lines["SFTFalse"][:, 1], [0.5 + e / 100 for e in range(4, 20)])
    assert len(lines["warm-upFalse"]) == 5 and len(lines["ReFTFalse"]) == 3 and len(lines["ReFTTrue"]) == 12
    assert any("best 69.0%" in text.get_text() for text in axes.get_legend().get_texts())
    assert plots.accuracy_figure({"warmup": [], "sft": [], "reft": []}) is None


def test_reft_figure_has_a_panel_for_each_logged_key():
    figure = plots.reft_figure(reft_rows(40))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [title for _, title, _ in plots.REFT_PANELS] + ["Sampled responses"]
    names = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert names == ["correct", "wrong"]  # a status that never occurred takes no place in the legend
    some = [{"step": t, "kl/mean": 1.0, "status/correct": 0.5} for t in range(2)]
    assert len(plots.reft_figure(some).axes) == 2
    assert plots.reft_figure([{"step": 0, "epoch": 0}]) is None


def test_results_figure_bars_and_whiskers():
    (axes,) = plots.results_figure(RESULTS).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "datavalues")]
    assert heights == [[0.75, 0.8], [0.85, 0.9]]
    whiskers = [tuple(segment[:, 1]) for lines in axes.collections for segment in lines.get_segments()]
    expected = [(0.7, 0.79), (0.81, 0.88), (0.85, 0.93)]  # SFT's vote came without an interval
    np.testing.assert_allclose(sorted(whiskers), expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["greedy", "maj@16"]
    assert plots.results_figure({"reft": {"note": "not evaluated"}}) is None


def test_sampled_metrics_are_ordered_by_kind_then_k():
    row = {"accuracy": 0.5, "pass@4": 0.7, "maj@16": 0.6, "maj@4": 0.6, "avg@16": 0.4, "maj@16_ci95": [0.5, 0.7]}
    (axes,) = plots.results_figure({"a": row}).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["greedy", "avg@16", "maj@4", "maj@16", "pass@4"]


def test_labels_keep_their_colors_and_others_get_distinct_ones():
    row = {"accuracy": 0.5}
    (axes,) = plots.results_figure({"reft": row, "seed 1": row, "seed 2": row}).axes
    colors = [bars[0].get_facecolor() for bars in axes.containers]
    assert len(set(colors)) == 3
    (alone,) = plots.results_figure({"seed 1": row, "reft": row}).axes
    assert alone.containers[1][0].get_facecolor() == colors[0]
