"""report.html: what is read, what is chosen, what stands on the page, and what never runs there."""

import base64
import hashlib
import json

import numpy as np
import pytest

from reft_jax import report, tasks
from reft_jax.errors import InputError
from reft_jax.report import __main__ as command
from reft_jax.report import choose, curves, page, pieces, plots, read, write
from reft_jax.run import sources
from tests import made_runs
from tests.made_runs import Page


def build(*workdirs, **kwargs) -> Page:
    return Page(report.build(workdirs, **kwargs)[0])


def test_the_page_of_a_run_has_its_numbers(tmp_path):
    made = report.build([made_runs.write(tmp_path / "one")])
    assert [path.name for path in made] == ["report.html", "accuracy.png", "reft.png", "results.png"]
    assert all(path.stat().st_size > 10_000 for path in made)
    found = Page(made[0])
    for words in (
        "85.1 81.0–88.0",
        "75.0 70.0–79.0",
        "70.0 65.0–75.0",
        "90.0 85.0–93.0",
        "best on dev",
        "step 150, epoch 15.0",
    ):
        assert words in found.text
    assert (
        "best on test" in found.text and "vote@4" in found.text and "400" in found.text and "not seen" not in found.text
    )
    assert "num ops" in found.text and "config.stages.reft.ppo.kl_coef" in found.text
    assert "273.0" not in found.text and "273" in found.text  # the last own_metric, in the table that needs no script
    charts = {chart["id"]: chart for chart in found.data["charts"]}
    assert {"accuracy", "reward/mean", "kl/mean", "ppo/value_loss", "sft/loss", "status:reft:ReFT"} <= set(charts)
    assert charts["my/own_metric"]["more"] and charts["my/own_metric"]["series"][0]["by"]["step"]["y"][-1] == 273
    samples = found.data["samples"][0]
    assert samples["total"] == len(samples["rows"]) == 160


def test_stages_of_any_name_are_in_the_report(tmp_path):
    made = report.build([made_runs.write_methods(tmp_path / "one")])
    assert [path.name for path in made[1:]] == ["accuracy.png", "grpo.png", "online.png", "results.png"]
    found = Page(made[0])
    charts = {chart["id"]: chart for chart in found.data["charts"]}
    names = plots.color_names(["base", "warmup", "grpo", "offline", "online", "pretrained"])
    assert names["grpo"] == "other0" and len(set(names.values())) == 6
    titles = {plots.title_of(name): name for name in names}
    begins = {"base model, test": 1, "warm-up, dev": 4, "grpo, dev": 7, "offline, dev": 5, "online, dev": 7}
    series = {one["label"]: one for one in charts["accuracy"]["series"]}
    assert {label: one["by"]["epoch"]["x"][0] for label, one in series.items() if one["points"]} == {
        f"{label}, greedy": begin for label, begin in begins.items()
    }
    assert {label for label, one in series.items() if one["thin"]} == {
        "grpo, its own samples",
        "online, its own samples",
    }
    assert all(one["color"] == names[titles[label.split(",")[0]]] for label, one in series.items())
    base, warmup = 32 * 30, 32 * 40  # sequences that they learnt
    assert series["offline, dev, greedy"]["by"]["seq"]["x"][0] == base + 32 * 20  # what it drew before is not learnt
    assert series["grpo, its own samples"]["by"]["seq"]["x"][0] == base + warmup + 16 * 4
    for key in ("reward/mean", "kl/mean"):
        assert {one["label"]: one["color"] for one in charts[key]["series"]} == {
            stage: names[stage] for stage in ("grpo", "online")
        }
    assert {"status:grpo:grpo", "status:online:online", "time:grpo:grpo", "time:online:online"} <= set(charts)
    assert "eval/test_accuracy" not in charts  # it is among the accuracies
    swatches = [attrs["class"] for tag, attrs in found.tags if "swatch" in attrs.get("class", "")]
    assert swatches == [f"swatch c-{names[label]}" for label in ("base", "grpo", "offline", "online", "pretrained")]
    assert [source["stage"] for source in found.data["samples"]] == ["grpo", "online"]
    assert found.data["predictions"][0]["labels"] == ["base model", "grpo", "offline", "online", "pretrained"]
    assert "53.0 test, step 30" in found.text and "58.0 dev, step 80" in found.text


def test_hostile_text_stays_text_and_nothing_comes_from_outside(tmp_path):
    run = made_runs.write(tmp_path / "one")
    made_runs.jsonl(run / "<b>x" / "metrics.jsonl", made_runs.sft_rows(1, 3))
    found = build(run)
    assert [tag for tag, _ in found.tags].count("script") == 1 + len(page.SCRIPTS)
    assert not {"img", "iframe", "link", "object", "b"} & {tag for tag, _ in found.tags}
    assert not any(name.startswith("on") or name in ("src", "style") for _, attrs in found.tags for name in attrs)
    assert all(attrs["href"].startswith("#") for _, attrs in found.tags if "href" in attrs)
    rows = found.data["samples"][0]["rows"]
    hostile = [row for row in rows if "".join(row["t"]) == made_runs.HOSTILE + "<eos>"]
    assert len(hostile) == 40 and any(made_runs.HOSTILE in row["q"] for row in rows)
    assert found.data["predictions"][0]["items"][0]["by"][0]["r"] == "def f():\n" + made_runs.HOSTILE
    raw = found.path.read_text()
    assert "<script>alert" not in raw and "onerror=alert(2)>" not in raw
    # the policy names every script and style by its hash and allows nothing else
    directives = dict(part.split(" ", 1) for part in found.policy.split("; "))
    assert directives["default-src"] == "'none'" and "unsafe" not in found.policy and "http" not in found.policy
    for tag, attrs, text in found.raw:
        if attrs.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in directives[f"{tag}-src"]


def test_embedded_json_cannot_end_its_element():
    value = {"a": "</script><!--\u2028\u2029&\ud800 \x00", "b": [1.5, None]}
    encoded = page.embedded(value)
    assert encoded.isascii() and not set("<>&") & set(encoded) and json.loads(encoded) == value
    with pytest.raises(ValueError):
        page.embedded(float("nan"))


def test_the_same_files_give_the_same_page(tmp_path):
    run = made_runs.write(tmp_path / "one")
    pages = [report.build([run], tmp_path / name)[0].read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    known = [0, 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # splitmix64's first outputs for the seed 0, after 0 itself
    assert choose.mix([0, 1, 2], [0, 0, 0]).tolist() == known


# ------------------------------------------------------------------ reading


def test_metrics_equal_the_parsed_lines_and_bad_ones_are_named(tmp_path):
    rows = made_runs.reft_rows(30)
    path = tmp_path / "reft" / "metrics.jsonl"
    made_runs.jsonl(
        path,
        [*rows[:10], {"epoch": 1}, [1], *rows[10:], {"step": 99, "a": 10**400, "b": True}],
        tail='{"step": 100, "k',
    )
    notes = []
    columns = read.metrics(path, notes)
    expected = [*rows, {"step": 99}]
    assert set(columns) == {key for row in expected for key in row}
    for key, column in columns.items():
        np.testing.assert_array_equal(column, [row.get(key, np.nan) for row in expected])
    assert notes == [
        "reft/metrics.jsonl: the last line is half-written and was left out",
        "reft/metrics.jsonl: 2 lines could not be read and were left out (11, 12)",
    ]


def test_the_scan_of_samples_finds_what_parsing_finds(tmp_path):
    rows = made_runs.samples(9)
    rows[5]["item_id"] = 'a "quoted" \\ id, \u00e9 \u2028'
    rows[7]["question"] = '", "status": "timeout", "step": 3'
    rows[8] = dict(reversed(rows[8].items()))  # keys in another order: parsed
    path = tmp_path / "reft" / "samples.jsonl"
    made_runs.jsonl(path, rows, tail='{"step": 10, "item_id": "svamp_1", "status": "corr')
    notes = []
    index = read.index_samples(path, notes)
    assert index.step.tolist() == [row["step"] for row in rows]
    assert [index.items[i] for i in index.item] == [row["item_id"] for row in rows]
    assert [index.statuses[i] for i in index.status] == [row["status"] for row in rows]
    assert index.place.tolist() == [i % 4 for i in range(36)]
    assert read.rows_at(path, index.offset) == rows
    assert notes == ["reft/samples.jsonl: the last line is half-written and was left out"]


def test_a_key_that_stands_twice_is_no_figure(tmp_path):
    run = made_runs.write(tmp_path / "one")
    (run / "results.json").write_text('{"stages": {"reft": {"accuracy": 0.1, "accuracy": 0.9}}}')
    found = read.run(run)
    assert found.results == {} and "the key 'accuracy' stands twice" in found.notes[-1]


def test_workdirs_with_nothing_to_read_are_refused(tmp_path, capsys):
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    foreign.mkdir()
    (foreign / "config.json").write_text('{"name": "another tool"}')
    (foreign / "notes.txt").write_text("x")
    for workdir, words in (
        (empty, "holds nothing"),
        (foreign, "holds nothing"),
        (tmp_path / "nowhere", "not a directory"),
    ):
        assert command.main([str(workdir)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: workdir: ") and str(workdir) in message and words in message
    assert list(empty.iterdir()) == []
    found = build(empty, made_runs.write(tmp_path / "one"), output=tmp_path / "out.html")
    assert f"{empty}: nothing in it can be read" in found.text
    with pytest.raises(InputError, match="there is no directory"):
        report.build([tmp_path / "one"], tmp_path / "no" / "out.html")


def test_a_run_killed_anywhere_shows_what_is_there(tmp_path):
    run = made_runs.write(tmp_path / "one")
    for path in (*run.glob("*/*.jsonl"), run / "results.json"):
        path.write_bytes(path.read_bytes()[:-20])
    (run / "reft" / "DONE").unlink()
    found = build(run)
    assert "5 notes" not in found.text and "notes on what was read" in found.text
    for words in (
        "reft/metrics.jsonl: the last line is half-written",
        "results.json was left out",
        "No stage has been evaluated yet",
    ):
        assert words in found.text
    assert "under way or stopped" in found.text and found.data["samples"][0]["total"] == 159
    (run / "config.json").write_text("{")
    found = build(run)  # stages are then the folders, in the order in which they began
    assert [c["label"] for c in found.data["charts"][0]["series"]] == [
        f"{s}, dev, greedy" for s in ("warm-up", "SFT", "ReFT")
    ] + ["ReFT, its own samples"]


@pytest.mark.parametrize(
    "results", ['{"stages": {"a": 3, "reft": {"accuracy": "x", "ci95": [1], "step": "y"}}}', "[]", '{"stages": []}']
)
def test_odd_results_do_not_stop_the_report(tmp_path, results):
    run = made_runs.write(tmp_path / "one")
    (run / "results.json").write_text(results)
    assert "Training curves" in build(run).text


@pytest.mark.parametrize(
    "config",
    [
        {"rewards": 1},
        {"rewards": {}, "data": {"name": "svamp"}, "stages": {"grpo": {"kind": "reft"}}},
        {"stages": {"grpo": {"init_from": ["warmup"], "batch_size": "x", "num_samples": None}, "online": 3}},
    ],
)
def test_odd_configs_do_not_stop_the_report(tmp_path, config):
    run = made_runs.write_methods(tmp_path / "one")
    (run / "config.json").write_text(json.dumps({"config": config}))
    found = build(run)
    assert "without their questions: config.json is not a run's (KeyError" in found.text
    assert {chart["id"] for chart in found.data["charts"]} >= {"accuracy", "status:grpo:grpo", "status:online:online"}
    assert {path.name for path in (run / "plots").iterdir()} >= {"accuracy.png", "grpo.png", "online.png"}


# ------------------------------------------------------------------ choosing


def big_index(steps=3000, per_step=16, items=700) -> read.Index:
    rng = np.random.default_rng(0)
    step = np.repeat(np.arange(1, steps + 1), per_step)
    place = np.tile(np.arange(per_step), steps)
    status = np.where(rng.random(len(step)) < 0.001, 2, rng.integers(0, 2, len(step)))
    item = rng.integers(0, items, len(step))
    names = [f"q_{i}" for i in range(items)]
    return read.Index(step * 0, step, place, item, status, names, ["correct", "wrong", "timeout"])


def test_the_choice_holds_the_ends_whole_questions_and_every_status():
    index = big_index()
    rows = choose.order(index)
    assert rows == choose.order(index) and len(rows) == len(set(rows)) == choose.MAX_SAMPLES
    steps, counts = np.unique(index.step[rows], return_counts=True)
    for step in (1, 2, 2999, 3000):
        assert counts[list(steps).index(step)] >= choose.PER_EDGE
    assert np.diff(steps).max() <= 40  # no long stretch of the run is left out
    assert (index.status[rows] == 2).sum() >= choose.PER_STATUS
    often = np.sort(np.bincount(index.item[rows]))[::-1]
    assert often[choose.WHOLE - 1] >= choose.PER_WHOLE
    most_asked = np.bincount(index.item).argmax()
    of_it = index.step[[row for row in rows if index.item[row] == most_asked]]
    assert of_it.min() < 300 and of_it.max() > 2700


def test_few_samples_are_all_kept_and_the_budget_is_obeyed(tmp_path):
    run = read.run(made_runs.write(tmp_path / "one"))
    whole = choose.samples(run, "reft", 10**9)
    assert len(whole["rows"]) == whole["total"] == 160
    assert [row["s"] for row in whole["rows"]] == sorted(row["s"] for row in whole["rows"])
    made_runs.jsonl(
        tmp_path / "one" / "reft" / "samples.jsonl",
        [row | {"question": "<\u4e2d" * 50} for row in made_runs.samples(40)],
    )
    some = choose.samples(run, "reft", 20_000)  # counted as they stand on the page, six characters for each of these
    assert 10 < len(some["rows"]) < 160 and len(page.embedded(some["rows"])) < 20_100
    assert {1, 2, 38, 39} & {row["s"] for row in some["rows"]}


def test_a_sample_keeps_its_numbers_and_long_ones_are_cut():
    row = made_runs.sample(3, 1, " ab\ncd")
    one = choose.sample(row)
    assert (one["s"], one["i"], one["st"], one["x"], one["r"]) == (3, "svamp_4", "wrong", "3", None)
    assert (
        one["lp"] == [-0.1, -0.2, -0.3] and one["a"] == [-1, 0, 1] and one["v"] == [0, 0.25, 0.5] and one["kl"] == 0.5
    )
    size = choose.MAX_TOKENS + 5
    long = made_runs.sample(3, 1) | {
        "tokens": ["x"] * size,
        "response": "x" * size,
        "logp": [-1.0] * size,
        "adv": [0.0],
    }
    one = choose.sample(long)
    assert len(one["t"]) == len(one["lp"]) == choose.MAX_TOKENS and one["cut"] == size and "a" not in one
    assert one["r"] == "x" * size
    odd = choose.sample({"step": 1.0, "tokens": "no list", "response": None, "logp": [float("nan"), 1], "kl": None})
    assert odd["t"] == [] and odd["r"] is None and "lp" not in odd and "kl" not in odd


def test_predictions_are_counted_over_all_lines(tmp_path):
    run = read.run(made_runs.write(tmp_path / "one"))
    found = choose.predictions(run, {"test_3": ("How many?", "3"), "test_4": ("Changed?", "4")}, 10**9)
    assert found["labels"] == ["SFT", "ReFT"] and len(found["items"]) == found["total"] == 24
    by_name = {item["i"]: item for item in found["items"]}
    assert [item["split"] for item in found["items"]] == ["test"] * 12 + ["dev"] * 12
    for i in range(12):
        for answer in by_name[f"test_{i}"]["by"]:
            assert (answer["right"], answer["of"]) == (min(i % 5, 4), 4) and [more["r"] for more in answer["more"]] == [
                "s0",
                "s1",
                "s2",
            ]
        assert by_name[f"dev_{i}"]["by"][0]["of"] == 0 and by_name[f"dev_{i}"]["gold"] == "3"
    assert by_name["test_3"]["q"] == "How many?" and by_name["test_4"]["q"] is None
    few = choose.chosen_questions({"a": {("test", f"q{i}"): {"status": "correct" if i % 50 else "wrong"} for i in range(1000)},
                                   "b": {("test", f"q{i}"): {"status": "correct"} for i in range(1000)}})  # fmt: skip
    assert len(few) == 100 and {f"q{i}" for i in range(0, 1000, 50)} <= {item for _, item in few}


def test_questions_come_from_the_runs_data_if_it_is_still_that(tmp_path, monkeypatch):
    run = read.run(made_runs.write(tmp_path / "one"))
    record = tasks.Record("test_3", "How many?", "3", "3", "number")
    splits = tasks.Splits((), (), (record,))
    monkeypatch.setattr(tasks, "load", lambda settings: splits)
    run.about["data_sha256"] = sources.of_records(splits)
    assert write.questions(run) == {"test_3": ("How many?", "3")} and run.notes == []
    run.about["data_sha256"] = "other"
    assert write.questions(run) == {} and "not those of the run" in run.notes[-1]
    monkeypatch.undo()
    assert write.questions(run) == {} and "without their questions" in run.notes[-1]  # this config names no file


# ------------------------------------------------------------------ curves


@pytest.mark.parametrize(("size", "most"), [(5, 10), (10, 10), (11, 10), (12, 10), (1000, 60), (997, 500)])
def test_thinned_curves_are_means_of_neighbours(size, most):
    rng = np.random.default_rng(size)
    x, y = np.cumsum(rng.random(size)), rng.normal(size=size)
    thin_x, thin_y = curves.thin(x, y, most)
    assert len(thin_x) == min(size, most)
    if size <= most:
        np.testing.assert_array_equal(thin_y, y)
        return
    edges = np.linspace(1, size - 1, most - 1).astype(int)
    expected = [y[0], *(np.mean(y[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)), y[-1]]
    np.testing.assert_allclose(thin_y, expected, rtol=1e-12)
    assert (np.diff(thin_x) > 0).all()


def test_a_band_is_mean_lowest_and_highest():
    one = curves.band([(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])), (np.array([1.0, 3]), np.array([3.0, 3]))], 100)
    assert one == {"x": [1, 2, 3], "y": [2, 2.5, 3], "lo": [1, 2, 3], "hi": [3, 3, 3]}
    short = curves.band([(np.array([1.0, 2]), np.array([1.0, 1])), (np.array([2.0, 4]), np.array([3.0, 5]))], 100)
    assert short["lo"] == [1, 1, 5] and short["hi"] == [1, 3, 5]  # a run counts where it has been, no farther
    assert curves.band([(np.zeros(0), np.zeros(0))], 10) == {}


def test_stages_stand_one_after_the_other_on_the_axes(tmp_path):
    run = read.run(made_runs.write(tmp_path / "one"))
    chart = curves.charts([("one", [run])])[0]
    series = {one["label"]: one["by"] for one in chart["series"]}
    assert series["warm-up, dev, greedy"]["epoch"]["x"] == [1, 2, 3, 4]
    assert series["SFT, dev, greedy"]["epoch"]["x"] == list(range(5, 16))  # it goes on with the warm-up's counting
    assert series["SFT, dev, greedy"]["seq"]["x"] == [320 * e for e in range(5, 16)]
    assert series["ReFT, dev, greedy"]["epoch"]["x"][:2] == [4, 4.75]  # where the warm-up ended
    assert series["ReFT, its own samples"]["seq"]["x"][:2] == [4 * 320 + 64, 4 * 320 + 128]
    assert series["ReFT, its own samples"]["seq"]["y"][:2] == [0.502, 0.504]


def test_status_shares_and_times_leave_out_what_is_no_step(tmp_path):
    run = read.run(made_runs.write(tmp_path / "one"))
    charts = {chart["id"]: chart for chart in curves.charts([("one", [run])])}
    times = {one["label"]: one["by"]["step"] for one in charts["time:reft:ReFT"]["series"]}
    assert times["sampling"] == {"x": list(range(1, 40)), "y": [0.5] * 39} and "dev check" not in times
    shares = {one["label"]: one["by"]["step"]["y"] for one in charts["status:reft:ReFT"]["series"]}
    assert shares == {"correct": [0.75] * 39, "wrong": [0.25] * 39}
    assert "time:sft:SFT" not in charts


def test_runs_that_differ_in_the_seed_are_one_band_and_others_stand_apart(tmp_path):
    dirs = [made_runs.write(tmp_path / f"s{i}" / "run", seed=i, shift=i / 10) for i in range(2)]
    dirs.append(made_runs.write(tmp_path / "other", kl_coef=0.5))
    found = build(*dirs)
    assert found.path == dirs[0] / "report.html" and len({*found.data["runs"]}) == 3
    (score,) = (chart for chart in found.data["charts"] if chart["id"] == "reward/mean")
    assert [one["label"] for one in score["series"]] == [
        "s0/run + 1 more seed: ReFT",
        "one/other: ReFT".replace("one", tmp_path.name),
    ]
    first = score["series"][0]["by"]["step"]
    np.testing.assert_allclose(np.array(first["hi"]) - first["lo"], 0.1, atol=1e-5)
    np.testing.assert_allclose(first["y"], [0.6 + t / 500 + 0.05 for t in range(1, 40)], atol=1e-5)
    assert "lo" not in score["series"][1]["by"]["step"]
    assert (
        "2 seeds base model" not in found.text
        and "2 seeds ReFT, mean" in found.text
        and "config.stages.reft.ppo.kl_coef" in found.text
    )
    assert "Settings in which the runs differ" in found.text
    (dev,) = (chart for chart in found.data["charts"] if chart["id"] == "accuracy")
    dashes = {(one["label"].split(": ")[1].split(",")[0], one["dash"]) for one in dev["series"]}
    assert dashes == {("ReFT", 0), ("SFT", 1), ("warm-up", 2)}
    assert len(curves.group([read.run(path) for path in dirs])) == 2


# ------------------------------------------------------------------ tokens


def test_token_texts_of_the_three_kinds_of_tokenizers():
    assert pieces.texts([" a", " b\n", "<eos>"], " a b\n") == [" a", " b\n", "<eos>"]
    assert pieces.texts(["The", "\u0120caf", "\u00c3", "\u00a9", "\u010a", "<|end|>"], "The caf\u00e9\n") == [
        "The",
        " caf",
        pieces.PENDING,
        "\u00e9",
        "\n",
        "<|end|>",
    ]
    assert pieces.texts(["\u2581The", "\u2581cat", "<0x0A>", "</s>"], "The cat\n") == [" The", " cat", "\n", "</s>"]
    assert pieces.texts(["\u2581x", "y"], "something else") == ["\u2581x", "y"]  # none fits: as stored
    assert pieces.texts([], "") == []


def test_byte_letters_are_those_of_a_byte_level_tokenizer():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(pieces.LETTERS) == set(ByteLevel.alphabet()) and sorted(pieces.LETTERS.values()) == list(range(256))
    pre = ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("\u00e9\u4e2d\n\t x", "\U0001f600 \x7f"):
        ((letters, _),) = pre.pre_tokenize_str(text)
        assert pieces.byte_level(letters).decode() == text
