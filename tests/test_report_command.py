"""The report from the command line, at the end of a run, and for a long one; samples in the terminal."""

import json
import re
import subprocess
import sys
import time

import pytest

from reft_jax import main, report
from reft_jax.report import __main__ as command
from tests import made_runs
from tests.made_runs import Page


def shown(capsys, *argv) -> str:
    assert command.main(["samples", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_samples_in_the_terminal(tmp_path, capsys):
    run = made_runs.write(tmp_path / "one")
    out = shown(capsys, run, "--step=3", "--stage=reft")
    assert re.findall(r"^reft step 3  (\S+)  (\S+)", out, re.M) == [
        (f"svamp_{(3 + p) % 7}", made_runs.STATUSES[p]) for p in range(4)
    ]
    assert (
        "     3 + 0\n    = 3" in out and '  answer    "3"' in out and "  answer    null" in out and "4 samples" in out
    )
    assert len(re.findall(r"^reft step", shown(capsys, run), re.M)) == 20
    everything = [row for row in made_runs.samples(40)]
    for argv, wanted in (
        (["--status=timeout"], [row for row in everything if row["status"] == "timeout"]),
        (["--item=svamp_2"], [row for row in everything if row["item_id"] == "svamp_2"]),
        (["--step=38:"], [row for row in everything if row["step"] >= 38]),
        (
            ["--step=:2", "--grep=^ \\d \\+ 3"],
            [row for row in everything if row["step"] <= 2 and re.search(r"^ \d \+ 3", row["response"])],
        ),
    ):
        out = shown(capsys, run, *argv, "--limit=0")
        assert re.findall(r"^reft step (\d+)  (\S+)", out, re.M) == [
            (str(row["step"]), row["item_id"]) for row in wanted
        ]
        assert f"{len(wanted)} samples" in out
    (run / "reft" / "samples.jsonl").write_text(json.dumps(made_runs.sample(1, 0, "\x1b[31mred\r\n")) + "\n" + '{"st')
    out = shown(capsys, run)
    assert "\x1b" not in out and "\\x1b[31mred\\x0d" in out


def test_samples_come_in_the_order_of_the_configs_stages(tmp_path, capsys):
    run = made_runs.write_methods(tmp_path / "one")
    made_runs.jsonl(run / "base" / "samples.jsonl", made_runs.samples(1))
    stages = re.findall(r"^(\w+) step", shown(capsys, run, "--limit=0"), re.M)
    assert list(dict.fromkeys(stages)) == ["base", "grpo", "online"]
    config = made_runs.methods()
    config["stages"] = dict(reversed(config["stages"].items()))
    (run / "config.json").write_text(json.dumps({"config": config}))
    stages = re.findall(r"^(\w+) step", shown(capsys, run, "--limit=0"), re.M)
    assert list(dict.fromkeys(stages)) == ["online", "grpo", "base"]


def test_bad_filters_are_named(tmp_path, capsys):
    run = made_runs.write(tmp_path / "one")
    for argv, words in (
        ([run, "--step=a"], "--step: got 'a'"),
        ([run, "--step=:"], ""),
        ([run, "--grep=("], "--grep: got '('"),
        ([run, "--stage=sft"], "--stage='sft': legal are 'reft'"),
        ([tmp_path / "no"], "not a directory"),
        ([tmp_path], "no stage has written samples.jsonl"),
    ):
        assert command.main(["samples", *map(str, argv)]) == (2 if words else 0)
        assert words in capsys.readouterr().err
    for argv, words in (
        (["--watch=0", str(run)], "--watch: got '0'; expected seconds, from 1 to 86400"),
        (["samples", str(run), "--limit=-1"], "--limit: got '-1'; it must be a whole number from 0"),
        ([], "WORKDIR is missing"),
        (["sample", str(run)], "sample: there is no such folder; did you mean 'samples'?"),
        ([str(run.parent / "noe")], f"did you mean '{run}'?"),
        ([str(run.parent)], "holds nothing that a run wrote"),
    ):
        assert command.main(argv) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("error: ") == 1 and words in said


def test_watch_builds_when_something_changed_and_ends_when_all_is_done(tmp_path, monkeypatch, capsys):
    run = made_runs.write(tmp_path / "one")
    (run / "evaluate" / "DONE").unlink()
    pages, waits = [], []

    def sleep(seconds):
        waits.append(seconds)
        pages.append(Page(run / "report.html").data["watch"])
        if len(waits) == 2:  # nothing changed in the first wait
            (run / "evaluate" / "DONE").write_text("{}")

    monkeypatch.setattr(time, "sleep", sleep)
    assert command.main(["--watch=5", str(run)]) == 0
    out = capsys.readouterr().out
    assert waits == [5, 5] and pages == [5, 5] and out.count("report.html") == 2 and "all stages are done" in out
    assert Page(run / "report.html").data["watch"] == 0


def test_a_report_that_fails_is_a_warning_at_the_end_of_a_run(tmp_path, monkeypatch, capsys):
    run = made_runs.write(tmp_path / "one")
    main.show(run)
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out

    def fail(workdirs):
        raise KeyError("no such thing")

    monkeypatch.setattr(report, "build", fail)
    main.show(run)
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("warning: no report (KeyError") and "the run is complete" in said.err


BUILD = """
import sys
from reft_jax import report
size = report.build(sys.argv[1:])[0].stat().st_size
# of this process alone: getrusage() would begin with its parent's
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(size, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process's own peak of memory is read from /proc")
def test_a_long_run_is_read_in_little_memory(tmp_path):
    """100,000 logged steps and 1,000,000 samples (12 s on one x86 core): with less than a gigabyte, into less than 5 MB."""
    run = made_runs.write(tmp_path / "one")
    keys = [f"more/metric_{i}" for i in range(25)]
    with open(run / "reft" / "metrics.jsonl", "w") as file:
        row = made_runs.reft_rows(2)[1] | dict.fromkeys(keys, 0.123456789) | {"step": "STEP", "epoch": "STEP"}
        template = json.dumps(row)
        file.writelines(template.replace('"STEP"', str(step)) + "\n" for step in range(1, 100_001))
    with open(run / "reft" / "samples.jsonl", "w") as file:
        template = json.dumps(made_runs.sample(1, 1) | {"step": "STEP", "item_id": "ITEM"})
        for i in range(1_000_000):
            file.write(template.replace('"STEP"', str(1 + i // 10)).replace("ITEM", f"svamp_{i * 7919 % 3000}") + "\n")
    done = subprocess.run([sys.executable, "-c", BUILD, str(run)], check=True, capture_output=True, text=True)
    size, kilobytes = map(int, done.stdout.split())
    assert kilobytes < 2**20 and size < 5e6, (kilobytes, size)
    found = Page(run / "report.html").data["samples"][0]
    assert found["total"] == 1_000_000 and len(found["rows"]) > 500
