"""What a workdir holds, read line by line, and what of it could not be read.

Metrics become columns of numbers; of samples and predictions only the place of each line is kept (a scan of its first
keys), so that a file of a million samples costs megabytes, and the few that are shown are parsed afterwards.
"""

import array
import dataclasses
import json
import math
import pathlib
import re

import numpy as np

from reft_jax.config.paths import expanded
from reft_jax.config.words import nearest
from reft_jax.data import json_text
from reft_jax.errors import InputError
from reft_jax.run import lineage

SAMPLE = re.compile(rb'\{"step": (\d{1,15}), "item_id": "((?:[^"\\]|\\.)*)"')
PREDICTION = re.compile(rb'\{"item_id": "((?:[^"\\]|\\.)*)", "k": (\d{1,9}),')
LEFT = (ValueError, RecursionError)  # what json.loads raises for text that is no JSON


@dataclasses.dataclass
class Stage:
    """One stage: its settings (of config.json), the numbers of metrics.jsonl by key, f64[N] with NaN where a step lacks one."""

    name: str
    settings: dict
    columns: dict[str, np.ndarray]
    done: bool


@dataclasses.dataclass
class Workdir:
    """What it holds: `about` is config.json, `results` label -> its part of results.json, `notes` what was left out."""

    path: pathlib.Path
    name: str
    about: dict
    results: dict[str, dict]
    stages: list[Stage]
    notes: list[str]

    @property
    def config(self) -> dict:
        return as_dict(self.about.get("config"))

    @property
    def readable(self) -> bool:
        files = (path for name in ("samples", "predictions") for path in self.path.glob(f"*/{name}.jsonl"))
        return bool(self.config or self.results or any(stage.columns for stage in self.stages) or any(files))


@dataclasses.dataclass
class Index:
    """Where the lines of a samples.jsonl are: byte offset, step, place within its step, question and status of each, [N]."""

    offset: np.ndarray
    step: np.ndarray
    place: np.ndarray
    item: np.ndarray  # into `items`
    status: np.ndarray  # into `statuses`
    items: list[str]
    statuses: list[str]


def folder(workdir) -> pathlib.Path:
    """The path of a run's folder. InputError where there is none, with the nearest name beside it."""
    path = expanded(workdir)
    if not path.is_dir():
        beside = [str(one) for one in path.parent.glob("*/")] if path.parent.is_dir() else []
        raise InputError(
            f"workdir: {path} is not a directory; {nearest(path, beside)}give one that reft_jax.main has written"
        )
    return path


def run(workdir: pathlib.Path) -> Workdir:
    """Reads everything but samples and predictions. Never fails for what a file holds: that becomes a note."""
    notes: list[str] = []
    about = json_object(workdir / "config.json", notes)
    results = as_dict(json_object(workdir / "results.json", notes).get("stages"))
    results = {label: row for label, row in results.items() if isinstance(row, dict)}
    for label in [label for label, row in results.items() if lineage.outdated(workdir, row)]:
        notes.append(f"results.json: {label} was left out: its figures are of a checkpoint that is no longer there")
        del results[label]
    stages = [
        Stage(name, settings, metrics(workdir / name / "metrics.jsonl", notes), (workdir / name / "DONE").exists())
        for name, settings in stage_settings(workdir, about).items()
    ]
    return Workdir(workdir, workdir.resolve().name or str(workdir), about, results, stages, notes)


def stage_settings(workdir: pathlib.Path, about: dict) -> dict[str, dict]:
    """Stage -> its settings: those of the config in its order, then {} for other folders with metrics.jsonl, in the
    order in which they began."""
    settings = as_dict(as_dict(about.get("config")).get("stages"))
    found = {path.parent.name for path in workdir.glob("*/metrics.jsonl")} - set(settings)
    began = sorted(found, key=lambda name: (first_time(workdir / name / "metrics.jsonl"), name))
    return {name: as_dict(settings.get(name)) for name in [*settings, *began]}


def first_time(path: pathlib.Path) -> float:
    """The `time` of the first line that has one; inf without any."""
    rows = (parsed(line) for _, line in lines(path))
    return next((row["time"] for row in rows if row is not None and number(row.get("time"))), math.inf)


def begins(stage: str, settings: dict[str, dict], ends: dict[str, float]) -> float:
    """Where on an axis a stage is drawn from, given where the own counting of each stage ends: where the stage that it
    begins with ended, or began, if it goes on with its counting; 0 if it begins with no stage here."""
    names, seen, begin = [*settings], [], 0.0
    while stage not in seen and (source := settings[stage].get("init_from")) in names:
        seen.append(stage)
        begin += 0.0 if settings[stage].get("continue_run") else ends.get(source, 0.0)
        stage = source
    return begin


def in_order(paths, names) -> list[pathlib.Path]:
    """Files of stages or labels (`<name>/<file>`) in the order of the names, others after them."""
    place = {name: i for i, name in reversed([*enumerate(names)])}
    return sorted(paths, key=lambda path: (place.get(path.parent.name, len(place)), path))


def as_dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def number(value) -> bool:
    """Whether it is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def json_object(path: pathlib.Path, notes: list[str]) -> dict:
    """The object that a JSON file holds; {} without the file, and with a note if it is damaged."""
    if not path.exists():
        return {}
    try:
        return json_text.read_object(path, "the rest is shown without it")
    except InputError as error:
        notes.append(f"{path.name} was left out: {error}")
        return {}


def metrics(path: pathlib.Path, notes: list[str]) -> dict[str, np.ndarray]:
    """metrics.jsonl as columns f64[N]; {} without a readable line. Lines that are no object with a step are left out."""
    columns: dict[str, array.array] = {}
    count, skips = 0, Skips(path, notes)
    for where, line in lines(path):
        row = parsed(line)
        if row is None or not number(row.get("step")):
            skips.add(where, line)
            continue
        for key, value in row.items():
            if number(value):
                column = columns.setdefault(key, array.array("d"))
                column.extend([math.nan] * (count - len(column)))
                column.append(value)
        count += 1
    skips.close()
    for column in columns.values():
        column.extend([math.nan] * (count - len(column)))
    return {key: np.frombuffer(column, dtype=np.float64) for key, column in columns.items()}


def lines(path: pathlib.Path):
    """(line number, bytes) of each line of a file; none where there is no file."""
    if path.is_file():
        with open(path, "rb") as file:
            yield from enumerate(file, start=1)


def parsed(line: bytes) -> dict | None:
    """The object of a line; None for one that is no object."""
    try:
        row = json.loads(line)
    except LEFT:
        return None
    return row if isinstance(row, dict) else None


class Skips:
    """Counts the lines of a file that could not be used, and says so in one note."""

    def __init__(self, path: pathlib.Path, notes: list[str]):
        self._where, self._notes, self._bad, self._half = f"{path.parent.name}/{path.name}", notes, [], False

    def add(self, where: int, line: bytes):
        if line.endswith(b"\n"):
            self._bad.append(where)
        else:
            self._half = True

    def close(self):
        if self._half:
            self._notes.append(f"{self._where}: the last line is half-written and was left out")
        if self._bad:
            few = ", ".join(map(str, self._bad[:5])) + (", ..." if len(self._bad) > 5 else "")
            what = "line" if len(self._bad) == 1 else "lines"
            self._notes.append(f"{self._where}: {len(self._bad)} {what} could not be read and were left out ({few})")


def index_samples(path: pathlib.Path, notes: list[str]) -> Index:
    """Finds the lines of a samples.jsonl without parsing those whose first keys are step and item_id, as ours are."""
    offsets, steps, places, items, statuses = (array.array("q") for _ in range(5))
    item_ids: dict[bytes, int] = {}
    status_ids: dict[bytes, int] = {}
    in_step: dict[int, int] = {}
    at, skips = 0, Skips(path, notes)
    for where, line in lines(path):
        start, at = at, at + len(line)
        found = SAMPLE.match(line)
        if found and line.endswith(b"}\n"):
            step, item, status = int(found[1]), found[2], status_of(line)
        else:
            row = parsed(line)
            if row is None or not number(row.get("step")) or not isinstance(row.get("item_id"), str):
                skips.add(where, line)
                continue
            step, status = int(row["step"]), str(row.get("status", "")).encode(errors="replace")
            item = json.dumps(row["item_id"])[1:-1].encode()
        offsets.append(start)
        steps.append(step)
        in_step[step] = place = in_step.get(step, -1) + 1
        places.append(place)
        items.append(item_ids.setdefault(item, len(item_ids)))
        statuses.append(status_ids.setdefault(status, len(status_ids)))
    skips.close()
    arrays = (np.frombuffer(column, np.int64) for column in (offsets, steps, places, items, statuses))
    return Index(*arrays, [unquote(item) for item in item_ids], [s.decode(errors="replace") for s in status_ids])


def status_of(line: bytes) -> bytes:
    """The value of the key status: quotes inside JSON strings are escaped, so no text can look like the key."""
    at = line.find(b'"status": "')
    return line[at + 11 : line.index(b'"', at + 11)] if at >= 0 else b""


def unquote(text: bytes) -> str:
    """A JSON string without its quotes, as the scan cut it out."""
    try:
        return json.loads(b'"' + text + b'"')
    except LEFT:
        return text.decode(errors="replace")


def rows_at(path: pathlib.Path, offsets) -> list[dict | None]:
    """The objects of the lines that begin at these byte offsets; None for one that is no object."""
    out = []
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(int(offset))
            out.append(parsed(file.readline()))
    return out
