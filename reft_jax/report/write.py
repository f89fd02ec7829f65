"""What `report.build` writes: the page from what was read, chosen and drawn, and the plots."""

import dataclasses
import os
import pathlib

from reft_jax import tasks
from reft_jax.config import records, renamed
from reft_jax.config.settings import Data
from reft_jax.errors import InputError
from reft_jax.report import choose, curves, page, plots, read
from reft_jax.run import sources

BUDGET = 2_600_000  # bytes of samples and predictions in a page, about; charts and tables come to at most 2 MB more


def build(workdirs, output=None, *, watch: float = 0) -> list[pathlib.Path]:
    """`report.build`."""
    workdirs = [read.folder(workdir) for workdir in workdirs]
    runs = [read.run(workdir) for workdir in workdirs]
    notes = [f"{run.path}: nothing in it can be read" for run in runs if not run.readable]
    runs = [run for run in runs if run.readable]
    if not runs:
        where = ", ".join(map(str, workdirs))
        raise InputError(
            f"workdir: {where} holds nothing that a run wrote and that can be read; expected config.json, results.json or "
            "STAGE/metrics.jsonl, samples.jsonl, predictions.jsonl. Give the --workdir of reft_jax.main"
        )
    name_apart(runs)
    pictures = [path for run in runs for path in draw(run)]
    groups = curves.group(runs)
    runs = [run for _, members in groups for run in members]
    data = {
        "charts": curves.charts(groups),
        "samples": all_samples(runs),
        "predictions": [
            {"run": r, **found}
            for r, run in enumerate(runs)
            if (found := choose.predictions(run, questions(run), BUDGET // 3 // len(runs)))
        ],
        "runs": [run.name for run in runs],
        "watch": watch,
    }
    path = workdirs[0] / "report.html" if output is None else pathlib.Path(output)
    replace(path, page.render(groups, data, notes))
    return [path, *pictures]


def replace(path: pathlib.Path, text: str):
    """Replaces the file in one go, so that a browser never meets half a page."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(text.encode("utf-8", "replace"))
        os.replace(partial, path)
    except FileNotFoundError as error:
        raise InputError(f"--output={path}: there is no directory {path.parent}; make it first") from error


def name_apart(runs: list[read.Workdir]):
    """Runs of equal folder names are told apart by as much of their paths as it takes."""
    depth = 2
    while len({run.name for run in runs}) < len(runs) and depth < 12:
        for run in runs:
            run.name = "/".join(run.path.resolve().parts[-depth:])
        depth += 1


def draw(run: read.Workdir) -> list[pathlib.Path]:
    try:
        return plots.make(run.path)
    except (ValueError, TypeError) as error:  # InputError, or what an odd value in a file ends in
        run.notes.append(f"plots/ was not drawn: {error}")
        return []


def all_samples(runs: list[read.Workdir]) -> list[dict]:
    """[{"run", "stage", "total", "rows"}] of every samples.jsonl, which share the budget."""
    paths = [
        (r, path.parent.name)
        for r, run in enumerate(runs)
        for path in read.in_order(run.path.glob("*/samples.jsonl"), [stage.name for stage in run.stages])
    ]
    budget = 2 * BUDGET // 3 // max(1, len(paths))
    found = [(r, stage, choose.samples(runs[r], stage, budget)) for r, stage in paths]
    return [{"run": r, "stage": plots.title_of(stage), **samples} for r, stage, samples in found if samples]


def questions(run: read.Workdir) -> dict[str, tuple[str, str]]:
    """item_id -> (question, answer) of the run's dev and test data, which predictions.jsonl names by item_id alone; {} with a note
    where the data is not to be had any more, or is not what the run had."""
    if not any(run.path.glob("*/predictions.jsonl")) or not run.config:
        return {}
    try:
        settings = records.build(Data, renamed.modern(run.config)["data"], "config.data")
        if settings.source == "tfds":
            raise InputError("reading TensorFlow Datasets again could download them")
        generated = settings.source == "generated"  # then without the training questions, which can be a million
        splits = tasks.load(dataclasses.replace(settings, num_train=0) if generated else settings)
        if not generated and sources.of_records(splits) != run.about.get("data_sha256"):
            raise InputError("the data files are not those of the run any more")
        return {record.item_id: (record.question, record.gold) for record in (*splits.dev, *splits.test)}
    except (InputError, OSError) as error:
        why = str(error)
    except (KeyError, TypeError, AttributeError) as error:
        why = f"config.json is not a run's ({error!r})"
    run.notes.append(f"predictions are shown without their questions: {why}")
    return {}
