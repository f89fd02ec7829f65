"""What a run reads from outside its folder, and whether it is still what it was: records, tokenizer, model directories, checkpoints, code.

config.json keeps a SHA-256 of each under `reads`: of the whole run ("run": the data, the tokenizer, the model's directory, the task and the
matcher), and of each stage (the directories that it begins with, the files of its choices); of a model of the hub its commit too. A run that
goes on is refused where one has changed; what a stage that has not begun will read may change.
"""

import hashlib
import json
import os
import pathlib

from reft_jax import models
from reft_jax.config import choices
from reft_jax.config.settings import Recipe
from reft_jax.errors import InputError
from reft_jax.run import checkpoint

WEIGHTS = ".safetensors"
# of a Hugging Face directory: the tokenizer's files, its templates and all settings
READ = (WEIGHTS, ".json", ".txt", ".model", ".jinja")
MB = 2**20


def of_records(splits) -> str:
    """SHA-256 of the records: a data file that changed under a run would change its data order without a word."""
    digest = hashlib.sha256()
    for records in (splits.train, splits.dev, splits.test):
        digest.update(repr([(r.item_id, r.question, r.cot, r.answer, r.kind) for r in records]).encode())
    return digest.hexdigest()


def of_tokenizer(tokenizer, eos_ids: tuple[int, ...]) -> str:
    """SHA-256 of a tokenizer's vocabulary, and of what ends and pads."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr((vocabulary, eos_ids, tokenizer.pad_token_id)).encode()).hexdigest()


def of_file(path: pathlib.Path, *, weights: bool = False) -> str:
    """SHA-256 of a file; of one of weights with over 16 MB, of its size and of a megabyte at each end and at 14 places between."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        if not weights or size <= 16 * MB:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{size}\n".encode())
        for i in range(16):
            file.seek(i * (size - MB) // 15)
            digest.update(file.read(MB))
    return digest.hexdigest()


def of_directory(source: str) -> dict[str, str]:
    """{file: SHA-256} of a Hugging Face directory, of a GGUF file, or of the checkpoint that `source` means."""
    if (folder := models.resolve(source)) is not None:
        if folder.is_file():
            return {folder.name: of_file(folder, weights=True)}
        paths = [path for path in folder.iterdir() if path.suffix in READ and path.is_file()]
        return {path.name: of_file(path, weights=path.suffix == WEIGHTS) for path in sorted(paths)}
    folder = checkpoint.locate(source).resolve()
    paths = [path for path in (folder / "params").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): of_file(path, weights=True) for path in sorted(paths)}


def reads(config: Recipe, used: dict[str, list], splits, tokenizer, eos_ids: tuple[int, ...]) -> dict:
    """{"run" or a stage: {"read": {source: {file: SHA-256}}, "code": {choice: {file: SHA-256}}}}. used: {"run" or a stage: [(room, name)]} of the
    choices (`recipe.used`). Models of the hub have "commits" too: {name: commit}."""
    inside, seen = {"random", *(name for name, _ in config.stages)}, {}
    sources = {"run": [config.model.directory] if config.model.directory else []}
    sources |= {name: [source for _, source in stage.sources()] for name, stage in config.stages}
    out = {}
    for part, names in sources.items():
        outside = [source for source in names if source not in inside]
        seen |= {source: of_directory(source) for source in outside if source not in seen}
        code = {
            name if choices.is_path(name) else f"{room}/{name}": {
                file: of_file(path) for file, path in choices.files(room, name).items()
            }
            for room, name in used[part]
        }
        out[part] = {"read": {source: seen[source] for source in outside}, "code": code}
        if commits := {source: models.hub.snapshot(source).name for source in outside if models.hub.is_name(source)}:
            out[part]["commits"] = commits
    out["run"]["read"] |= {
        "data": {"records": of_records(splits)},
        "tokenizer": {"all": of_tokenizer(tokenizer, eos_ids)},
    }
    return out


def begun_ends(workdir: pathlib.Path, now: tuple[int, ...]) -> tuple[int, ...]:
    """The ends of responses in that folder: of a run that has begun those that its config.json has, since an older version may have known
    fewer of the same files; else those of `now`."""
    path = workdir / "config.json"
    about = json.loads(path.read_text()) if os.path.exists(path) else {}
    begun = any(os.path.exists(workdir / part) for part in about.get("reads") or {} if part != "run")
    known = about.get("tokenizer") or {}
    return (now[0], *known["more_eos_ids"]) if begun and "more_eos_ids" in known else now


def check(workdir: pathlib.Path, now: dict):
    """Refuses to go on with a run where what it reads is no longer what it was: of the whole run once a stage has begun, of a stage that has
    begun itself. The code of what is done may change: it is not run again."""
    path = workdir / "config.json"
    before = json.loads(path.read_text()).get("reads", {}) if os.path.exists(path) else {}
    stages = [part for part in before if part != "run" and os.path.exists(workdir / part)]
    done = [part for part in stages if os.path.exists(workdir / part / "DONE")]
    kinds = {part: ("read",) if part in done else ("read", "code") for part in stages}
    kinds = ({"run": ("read",) if len(done) == len(before) - 1 else ("read", "code")} if stages else {}) | kinds
    changed = {}  # file -> what is said of it; the run's before a stage's
    try:
        for part, groups in before.items():
            for kind in ("read", "code"):
                for source, old in groups[kind].items():
                    new = now.get(part, {}).get(kind, {}).get(source, old)
                    for file in sorted(old.keys() | new.keys()):
                        if old.get(file) != new.get(file) and kind in kinds.get(part, ()):
                            shown = f"{source}/{file}" if kind == "read" else file
                            changed.setdefault(shown, (part, old.get(file), new.get(file)))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: reads is damaged ({error!r}); restore the file, or choose another folder") from error
    if changed:
        (file, (part, *digests)), *others = changed.items()
        then, this = (f"SHA-256 {digest[:16]}..." if digest else "none" for digest in digests)
        again = "" if part == "run" else f"remove {workdir / part}, so that the stage is done again, "
        more = f" (and so have {len(others)} more files)" if others else ""
        raise InputError(
            f"--workdir={workdir}: its run was begun with another {file} (it has changed since: {then} then, {this} now){more}; "
            f"restore it, {again}or choose another folder"
        )
