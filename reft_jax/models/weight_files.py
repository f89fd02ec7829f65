"""Which files of a Hugging Face directory are its weights, and how others take their place.

A directory may hold several sets of weights: of two saves, of a converter, an adapter beside its base. Programs differ in which they read
(transformers takes model.safetensors where it is there, others the index), so here it is refused by the files' names. Pickled
pytorch_model.bin beside safetensors is left alone, as transformers does.

New weights are written into a folder `weights.making` inside the directory. Whole, it becomes `weights.made`, the old ones are removed, and
its files move up: a kill leaves the old ones whole, or the new ones.
"""

import contextlib
import pathlib
import re
import shutil

from reft_jax.data import json_text
from reft_jax.errors import InputError
from reft_jax.mesh import distributed

WHOLE, INDEX, HEADS = "model.safetensors", "model.safetensors.index.json", "heads.safetensors"
MAKING, MADE = "weights.making", "weights.made"
SHARD = re.compile(r"(.+)-\d+-of-(\d+)\.safetensors")
# What a save replaces: the weights of a model by the names that transformers and `save_hf` know.
REPLACED = re.compile(
    r"(model\.safetensors|pytorch_model\.bin)(\.index\.json)?|(pytorch_)?model-\d+-of-\d+\.\w+|heads\.safetensors"
)
ADAPTER = re.compile(r"adapter_(config\.json|model\b.*)")  # PEFT's


def find(directory: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files that are the directory's weights. InputError where there are none, several sets, or an adapter."""
    check_whole(directory)
    check_merged(directory)
    names = {path.name for path in directory.glob("*.safetensors") if path.name != HEADS}
    sets = _sets(directory, names)
    if len(sets) > 1:
        told = [_few(files) for files in sets.values()]
        remove = [_few(files | ({INDEX} if by == INDEX else set())) for by, files in sets.items()]
        raise InputError(
            f"{directory}: holds more than one set of weights: {'; '.join(told)}. Programs differ in which they read: remove {', or '.join(remove)}"
        )
    if INDEX in sets:
        if absent := sorted(name for name in sets[INDEX] if not (directory / name).is_file()):
            raise InputError(
                f"{directory}: {INDEX} names files that are not there: {', '.join(absent)}; fetch them, and run again"
            )
        names = sets[INDEX]
    if not names:
        raise InputError(f"{directory}: no *.safetensors there{_only_pickled(directory)}")
    return sorted(directory / name for name in names)


def _sets(directory: pathlib.Path, names: set[str]) -> dict:
    """The sets of weights among the files `names`, by what makes them one: the index, a number of shards, the one whole file. Without an
    index files of other names are parts of whatever is there."""
    sets, indexed = {}, set()
    if (directory / INDEX).is_file():
        weight_map = json_text.read_object(directory / INDEX, "mend it, or fetch it again").get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{directory / INDEX}: not an index of weights: it has no weight_map")
        sets[INDEX] = indexed = {str(name) for name in weight_map.values()}
    of = {found[1] for name in indexed if (found := SHARD.fullmatch(name))}
    for name in sorted(names - indexed):
        found = SHARD.fullmatch(name)
        if name == WHOLE or found and (not indexed or found[1] in of):
            sets.setdefault(found.groups() if found else WHOLE, set()).add(name)
    return sets


def _few(names: set[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if len(rest) > 1 else " and ".join([first, *rest])


def _only_pickled(directory: pathlib.Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if not pickled:
        return ""
    return (
        f", only {', '.join(pickled[:3])}: a pickled file may run any program when it is read. Convert it where you trust it: "
        f'python -c "from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(directory)!r}).save_pretrained(NEW)"'
    )


def check_merged(directory: pathlib.Path):
    """InputError for a directory with an adapter of PEFT's, which is a part of a model or changes the one that is there."""
    if names := {path.name for path in directory.iterdir() if ADAPTER.fullmatch(path.name)}:
        raise InputError(unmerged(directory, ", ".join(sorted(names))))


def unmerged(directory: pathlib.Path, what: str) -> str:
    return (
        f"{directory}: holds {what}: PEFT's adapters must be merged into their base first: python -c \"from peft import "
        f"AutoPeftModelForCausalLM as A; A.from_pretrained({str(directory)!r}).merge_and_unload().save_pretrained(NEW)\", the tokenizer's "
        "files beside it, and name NEW; or, where the base beside it is meant, remove it"
    )


def check_whole(directory: pathlib.Path):
    """InputError for a directory whose save was stopped while its files took their places."""
    if (made := directory / MADE).is_dir():
        raise InputError(
            f"{made}: a save was stopped while its files took their places. They are whole: move all in it one folder up and remove it "
            f"(mv {made}/* {directory}/ && rmdir {made}), or save again"
        )


@contextlib.contextmanager
def replacing(directory: pathlib.Path):
    """The folder into which a block writes a new set of weights, and other files beside it; they take the place of the old ones when it is
    through. InputError, before anything is written, for files that would be read together with the new ones. Of several processes the
    first moves files."""
    making, made = directory / MAKING, directory / MADE
    if directory.is_dir():
        check_merged(directory)
        if others := [path.name for path in directory.glob("*.safetensors") if not REPLACED.fullmatch(path.name)]:
            raise InputError(
                f"{directory}: holds {', '.join(sorted(others))}, which would be read together with the weights that are to be written; "
                "remove them, or name another folder"
            )
    if distributed.is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        if made.is_dir():  # of a save that was killed
            _move_up(made)
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
    try:
        yield making
        if distributed.is_primary():
            making.rename(made)
            for path in list(directory.iterdir()):
                if REPLACED.fullmatch(path.name):
                    path.unlink()
            _move_up(made)
    finally:
        if distributed.is_primary():
            shutil.rmtree(making, ignore_errors=True)  # which is there only if the block was not through


def _move_up(made: pathlib.Path):
    """The files of a folder into the one above, by which it is a model's first, and what names the others last."""
    for path in sorted(made.iterdir(), key=lambda path: (path.name != "config.json", path.name == INDEX)):
        path.replace(made.parent / path.name)
    made.rmdir()
