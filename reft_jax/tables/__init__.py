"""Which cells of the paper's tables a folder's finished runs fill; `python -m reft_jax.tables` prints them.

A run fills a cell if what was trained is what configs/paper.py, or a config of SMALL, says of that row, setting by setting and
back to the pretrained weights; how it was run (checks, logs, devices, precision) does not matter, and the seed may be any.
"""

import dataclasses
import functools
import importlib
import json
import math
import os
import pathlib
import statistics

from reft_jax import recipe
from reft_jax.config import renamed
from reft_jax.data import json_text
from reft_jax.run.lineage import outdated

CONFIG = "configs/paper.py"
# The tables of every method, small: what makes their runs.
SMALL = {"arithmetic": "configs/paper_small.py", "svamp_small": "configs/paper_text.py"}
SMALL_METRICS = ("maj", "rerank", "avg", "pass")  # their columns
# Settings that say how a run is watched, checked and laid out, not what it computes.
HOW = {
    "stage": (
        *("init_from", "sample_from", "continue_run", "eval_every", "eval_batch_size", "log_every", "log_samples"),
        *("save_every", "max_logp_gap", "accumulate", "sample_batch_size", "select_on"),
    ),
    "data": (
        *("name", "source", "train_file", "test_file", "seed", "tokenizer", "vocab_size", "pack"),
        *("prompt_buckets", "response_buckets"),
    ),
}
METRIC_NAMES = {"maj": "vote", "avg": "average", "pass": "pass", "rerank": "re-ranked"}
MOST_DIFFERENCES = 4  # that a note lists
ALONE, SHARED = "", "@"  # a row that trains everything itself, and one that begins with what others left


# ------------------------------------------------------------------ runs


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run: `config` is its filled tree, `labels` those of results.json."""

    path: pathlib.Path
    config: dict
    labels: dict
    commit: str | None

    @property
    def stages(self) -> dict:
        return self.config["stages"]


def as_dict(tree: dict) -> dict:
    """The checked config with every default filled in, as nested dicts."""
    filled = recipe.fill(renamed.modern(tree))
    recipe.build(filled, finished=True)
    return json.loads(json.dumps(filled))


def read_run(folder: pathlib.Path) -> Finished:
    """The run in a workdir; ValueError or KeyError with what is wrong with its files."""
    about, results = (json_text.read_object(folder / name, "restore it") for name in ("config.json", "results.json"))
    groups = [about, about["config"], results, results["stages"]]
    groups += results["stages"].values() if isinstance(results["stages"], dict) else []
    for group in groups:
        if not isinstance(group, dict):
            raise TypeError(f"{str(group)[:40]!r} where a group of values should be")
    for label, result in results["stages"].items():
        for name, value in {"accuracy": result["accuracy"], **figures(result)}.items():
            for number in (value, *interval_of(result, name)):
                if not isinstance(number, (int, float)) or not 0 <= number <= 1:
                    raise ValueError(f"{label}: {name} has {number!r}, which is no fraction")
        if not isinstance(result["num_questions"], int) or not isinstance(result["source"], str):
            raise TypeError(f"{label}: num_questions and source are not those of an evaluation")
    labels = {label: row for label, row in results["stages"].items() if not outdated(folder, row)}
    return Finished(folder, as_dict(about["config"]), labels, about.get("git_commit"))


def figures(result: dict) -> dict:
    """The accuracies of one label, by name."""
    return {
        name: value
        for name, value in result.items()
        if name == "accuracy" or name.partition("@")[0] in METRIC_NAMES and not name.endswith("_ci95")
    }


def interval_of(result: dict, name: str) -> tuple[float, float]:
    """The 95 % interval of one of the accuracies of a label."""
    low, high = result["ci95" if name == "accuracy" else f"{name}_ci95"]
    return low, high


def find_runs(root: pathlib.Path) -> tuple[list[Finished], list[str]]:
    """(finished runs under root, in order of their paths; a warning for each that cannot be read)."""
    runs, warnings = [], []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if "config.json" not in names or "tokenizer_config.json" in names:
            continue  # not a workdir (nor a Hugging Face directory, whose config.json is another thing)
        below.clear()
        if "results.json" not in names:
            continue
        try:
            runs.append(read_run(pathlib.Path(folder)))
        except (ValueError, KeyError, TypeError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
            warnings.append(f"{folder}/results.json or config.json: not a run's ({why}); left out")
    return runs, warnings


# ------------------------------------------------------------------ what was trained


def kept(tree: dict, kind: str) -> dict:
    """A group of settings without those of HOW, at any depth."""
    return {k: kept(v, kind) if isinstance(v, dict) else v for k, v in tree.items() if k not in HOW[kind]}


def lineage(run: Finished, name: str, find) -> dict:
    """What a stage computes: its settings, its data, and the same of what it begins with and samples from."""
    stage = begun = run.stages[name]
    while begun.get("continue_run"):
        begun = run.stages[begun["init_from"]]  # one run with its warm-up
    out = {"stage": kept(stage, "stage"), "data": kept(run.config["data"], "data")}
    for key in ("init_from", "sample_from"):
        if source := begun.get(key):
            out[key] = origin(run, source, find)
    return out


def origin(run: Finished, source: str, find):
    """What a stage's `init_from` names: a stage here or in another run, the pretrained weights, random ones, or something unknown."""
    if source in run.stages:
        return lineage(run, source, find)
    if source == run.config["model"]["directory"]:
        return "pretrained"
    found = None if source == "random" else find(source)
    return lineage(*found, find) if found else source


def signature(run: Finished, label: str, metric: str, find) -> dict:
    """All that a figure depends on but the seed."""
    model, result = run.config["model"], run.labels[label]
    out = {
        "model": dict(weights="pretrained" if model["directory"] else "random", lora=model["lora"], base=model["base"]),
        "policy": origin(run, result["source"], find),
        "num_questions": result["num_questions"],
    }
    if metric != "accuracy":
        evaluations = [s for s in run.stages.values() if s["kind"] == "evaluate" and label in dict(s["checkpoints"])]
        for evaluation in evaluations[:1]:
            out["samples"] = {key: evaluation[key] for key in ("num_samples", "num_questions", "sampling")}
            ranker = dict(evaluation["rerankers"]).get(label)
            if metric.startswith("rerank") and ranker:
                out["reranker"] = lineage(run, ranker, find)
    return json.loads(json.dumps(out))  # tuples are lists


def differences(ours, theirs, path="") -> dict:
    """{dotted path: (ours, theirs)} where two signatures differ; a part that only one has is a single difference."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        if ours == theirs:
            return {}
        return {path: tuple("its own stage" if isinstance(x, dict) else x for x in (ours, theirs))}
    out = {}
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        out |= differences(ours.get(key), theirs.get(key), f"{path}.{key}".lstrip("."))
    return out


def finder(runs: list[Finished], root: pathlib.Path):
    """A function: path of a stage's folder or checkpoint -> (run, stage) or None. Where ROOT was copied from another machine, paths
    are known by their last parts."""

    def find(source: str):
        path = pathlib.Path(source)
        while path.name.isdigit() or path.name == "checkpoints":
            path = path.parent
        for run in runs:
            tail = run.path.relative_to(root).parts
            known = run.path == path.parent or tail and path.parent.parts[-len(tail) :] == tail
            if known and path.name in run.stages:
                return run, path.name
        return None

    return find


# ------------------------------------------------------------------ the paper


def paper():
    """The module configs/paper.py."""
    return importlib.import_module("reft_jax.configs.paper")


def paper_small(table: str):
    """The module of a table of SMALL."""
    return importlib.import_module(f"reft_jax.configs.{pathlib.PurePath(SMALL[table]).stem}")


def preset_of(model: dict) -> str:
    """The preset that a run's model is, by its name or by its directory's, else that name."""
    by_hub = {hub.split("/")[1].lower(): preset for preset, hub in paper().MODELS.items()}
    name = pathlib.PurePath(model["name"]).name
    return by_hub.get(name.lower(), name)


@functools.cache
def planned(job: str, variant: str, runs: str) -> Finished:
    """A job's run as configs/paper.py has it."""
    extra = f",runs={runs}" if runs else ""
    tree = paper().get_config(f"row={job},variant={variant},model_dir=weights{extra}").to_dict()
    row = paper().ROWS[job]
    config = as_dict(tree)
    labels = {
        label: dict(source=source, num_questions=paper().TEST_SIZES[row.data])
        for label, source in config["stages"]["evaluate"]["checkpoints"].items()
    }
    return Finished(pathlib.Path(SHARED, job), config, labels, None)


@functools.cache
def expected(model: str, data: str, cot: str) -> list[tuple[str, str, str, dict]]:
    """(job, variant, metric, signature) of every figure that the paper's rows of a model, data set and CoT show."""
    out = {}
    for row in paper().ROWS.values():
        if (row.model, row.data, row.cot) != (model, data, cot):
            continue
        metric = paper().TABLES[row.table][1]
        for variant in paper().VARIANTS:
            job = paper().job(row.name, variant)
            for runs in (ALONE, SHARED):

                def find(source, variant=variant, runs=runs):
                    folder = pathlib.PurePath(source)
                    return planned(str(folder.parent.relative_to(SHARED)), variant, runs), folder.name

                run = planned(job, variant, runs)
                [label] = run.labels
                wanted = signature(run, label, metric, find)
                out[json.dumps([job, variant, metric, wanted])] = (job, variant, metric, wanted)
    return list(out.values())


def expected_small(data: dict, label: str) -> list[tuple[str, str, str, dict]]:
    """The same of the method `label` in the tables of SMALL, which have one variant, ""; none of other questions than theirs."""
    style = data["annotations"] if data["task"] == "arithmetic" else data["task"]
    entries = []
    for table in SMALL:
        if style in paper_small(table).STYLES:
            planned, found = small_entries(table, data["cot"], style)
            if kept(data, "data") == planned:
                entries += [entry for entry in found if entry[0].endswith(f"/{label}")]
    return entries


@functools.cache
def small_entries(table: str, cot: str, style: str):
    """(settings of the data, `expected_small`) of one cot and style (way of annotation, or data set) of a table of SMALL."""
    base = "" if table == "arithmetic" else ",base=pretrained"
    config = as_dict(paper_small(table).get_config(f"cot={cot},style={style}{base}").to_dict())
    evaluation = config["stages"]["evaluate"]
    num = config["data"]["num_test"] or paper().TEST_SIZES[config["data"]["task"]]
    labels = {label: dict(source=source, num_questions=num) for label, source in evaluation["checkpoints"].items()}
    run = Finished(pathlib.Path(SHARED, cot, style), config, labels, None)
    metrics = ("accuracy", *(f"{kind}@{evaluation['num_samples']}" for kind in SMALL_METRICS))
    entries = [
        (f"{table}/{cot}/{style}/{label}", "", metric, signature(run, label, metric, lambda source: None))
        for label in labels
        for metric in metrics
    ]
    return kept(config["data"], "data"), entries


# ------------------------------------------------------------------ cells


@dataclasses.dataclass(frozen=True)
class Figure:
    """One accuracy of one run. `job` and `variant`: the paper's that made it, or ""; then `note` may say what it is near to."""

    run: Finished
    name: str
    metric: str
    value: float
    interval: tuple[float, float]
    selected_on: str
    job: str = ""
    variant: str = ""
    note: str = ""
    label: str = ""


def figures_of(run: Finished, find) -> list[Figure]:
    """Every accuracy of a run."""
    model, data = preset_of(run.config["model"]), run.config["data"]
    out = []
    for label, result in run.labels.items():
        near = expected(model, data["task"], data["cot"]) + expected_small(data, label)
        for metric, value in figures(result).items():
            kind, at, k = metric.partition("@")
            name = f"{model}/{data['task']}/{data['cot']}/{label}"
            name += f" {METRIC_NAMES[kind]}{at}{k}" if at else ""
            interval, chosen_on = interval_of(result, metric), selected_on(run, label, find)
            figure = Figure(run, name, metric, value, interval, chosen_on, label=label)
            wanted = [entry for entry in near if entry[2] == metric]
            if wanted:
                ours = signature(run, label, metric, find)
                unlike = [(differences(ours, theirs), job, variant) for job, variant, _, theirs in wanted]
                least, job, variant = min(unlike, key=lambda entry: len(entry[0]))
                if not least:
                    figure = dataclasses.replace(figure, job=job, variant=variant)
                elif len(least) <= MOST_DIFFERENCES:
                    said = "; ".join(f"{key} is {a!r}, there {b!r}" for key, (a, b) in least.items())
                    note = f"{name} ({run.path}) is not {job}{variant and f' ({variant})'}: {said}"
                    figure = dataclasses.replace(figure, note=note)
            out.append(figure)
    return out


def selected_on(run: Finished, label: str, find) -> str:
    """The split on which the label's checkpoint was chosen, "last" if it was not, "-" of what no stage made."""
    result = run.labels[label]
    source, found = result["source"], None
    if source not in run.stages and source != run.config["model"]["directory"]:
        found = find(source)
    if found:  # a stage of another run, which says it of its own label
        results = [r for r in found[0].labels.values() if r["source"] == found[1]]
        result = results[0] if results else result
    if result.get("step") is None:
        return "-"
    return result.get("selected_on") or "last"


def by_seed(found: list[Figure]) -> tuple[list[Figure], list[str]]:
    """(one figure a seed, in order; warnings): of two runs with the same seed the later one counts."""
    seeds, warnings = {}, []
    for figure in sorted(found, key=lambda f: (f.run.path / "results.json").stat().st_mtime):
        seed = figure.run.config["seed"]
        if before := seeds.get(seed):
            paths = f"{before.run.path} and {figure.run.path}"
            warnings.append(f"{paths} have the same settings and the same seed, {seed}; the later one counts")
        seeds[seed] = figure
    return [seeds[seed] for seed in sorted(seeds)], warnings


def mean_interval(found: list[Figure]) -> tuple[float, tuple[float, float]]:
    """The mean over seeds and its 95 % interval: Wilson's over questions for one, Student's t for several. Fractions."""
    if len(found) == 1:
        return found[0].value, found[0].interval
    mean, half = student([figure.value for figure in found])
    return mean, (max(mean - half, 0.0), min(mean + half, 1.0))


def student(values: list[float]) -> tuple[float, float]:
    """(mean, half the width of Student's 95 % interval) of at least two values."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half
