"""What stages and figures stand on: the fingerprint of the checkpoint that a stage chose, and who began with it or was measured on it.

A stage's DONE has the fingerprint of what it gives; its BEGUN, written before anything else, has those of the stages that it begins with. Each
label of results.json has under `measured` those of the checkpoints that its figures are of.
"""

import os
import pathlib

from reft_jax.config.words import listed
from reft_jax.data import json_text
from reft_jax.errors import InputError


def facts(folder: pathlib.Path, word: str = "DONE") -> dict | None:
    """What a stage's DONE (or BEGUN) says; None without the file. Raises InputError if it cannot be read."""
    path = folder / word
    remedy = f"restore it, or remove {folder} and the same command does the stage again"
    return json_text.read_object(path, remedy) if os.path.exists(path) else None


def given(workdir: pathlib.Path, stage: str) -> str | None:
    """The fingerprint of what a finished stage gives; None of another, and of one that an older version finished."""
    return (facts(workdir / stage) or {}).get("fingerprint")


def needed(stage, names) -> list[str]:
    """The stages that a stage begins with or looks at."""
    sources = dict.fromkeys(source for _, source in (*stage.sources(), *getattr(stage, "rerankers", ())))
    return [source for source in sources if source in names]


def check(workdir: pathlib.Path, stages, looks_itself, longer=()):
    """Refuses to go on where a stage has begun from another that has been removed since, done anew, or is to go on itself (`longer`). looks_itself:
    the names of stages that see to that themselves, since they lose nothing by it."""
    names, stale = [name for name, _ in stages], {}
    for name, stage in stages:
        folder = workdir / name
        if name in looks_itself or not any(os.path.exists(folder / one) for one in ("BEGUN", "DONE", "checkpoints")):
            continue
        before = facts(folder, "BEGUN") or {}
        for source in needed(stage, names):
            if (
                source in stale
                or source in longer
                or facts(workdir / source) is None
                or given(workdir, source) != before.get(source)
            ):
                stale.setdefault(name, source)
    if stale:
        first = [source for source in dict.fromkeys(stale.values()) if source not in stale]
        raise InputError(
            f"--workdir={workdir}: {listed(stale)} began with {listed(first)}, which was removed, done anew or made longer since; restore it, or "
            f"remove also what stands on it, so that all of it is done again: rm -r {' '.join(str(workdir / name) for name in stale)}"
        )


def gone(workdir: pathlib.Path, name: str, stage) -> list[pathlib.Path]:
    """What a stage leaves beside checkpoints (`leaves`), and is not there."""
    paths = [workdir / name / one for one in getattr(stage, "leaves", ())]
    return [path for path in paths if not os.path.exists(path)]


def fresh(workdir: pathlib.Path, stage, names, results: dict) -> set[str]:
    """The labels of an evaluation whose figures in `results` (label -> row) are of the checkpoints that are there now."""
    return {
        label
        for label, source in stage.checkpoints
        if label in results and results[label].get("measured", {}) == measured(workdir, stage, names, label, source)
    }


def measured(workdir: pathlib.Path, stage, names, label: str, source: str) -> dict[str, str] | None:
    """{stage: fingerprint} of what a label of an evaluation looks at, as it is now; None where that is still to be done. Stages
    that an older version finished are left out."""
    looked_at = [one for one in (source, dict(stage.rerankers).get(label)) if one in names]
    if any(facts(workdir / one) is None for one in looked_at):
        return None
    return {one: given(workdir, one) for one in looked_at if given(workdir, one) is not None}


def outdated(workdir: pathlib.Path, row: dict) -> bool:
    """Whether a label's figures are not of the checkpoint that its stage chose: the stage's folder is there and says another one, or
    none yet. Where the folder was left behind when results were copied, nothing speaks against them."""
    measured = row.get("measured")
    if not isinstance(measured, dict):
        return False
    try:
        return any((workdir / stage).is_dir() and given(workdir, stage) != was for stage, was in measured.items())
    except InputError:  # a damaged DONE
        return False
