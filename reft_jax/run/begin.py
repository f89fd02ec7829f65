"""The parameters that a stage begins with: random, a stage's, a directory's or a checkpoint's."""

import dataclasses
import pathlib

import jax

from reft_jax import models
from reft_jax.config.settings import Recipe
from reft_jax.errors import InputError
from reft_jax.run import checkpoint
from reft_jax.run.run import INIT, Run, key_of


def frozen_and_trained(run: Run, name: str) -> tuple[dict, dict]:
    """({}, all parameters) that a training stage begins with; with adapters (the base, the adapters and a value head).

    Over a full base, the adapters of an earlier stage are merged into it and fresh ones begin. A quantized base stays what
    it was at the first stage, since a merged one would lose them when it is quantized again: there they are trained on.
    """
    source = _origin(run.config, name)
    if run.tuned.lora is None:
        return {}, initial_params(run, source)
    if run.tuned.base != "full" and source in dict(run.config.stages):
        return _quantized(run, source), _adapters(run, source)
    fresh = models.init_adapters(run.tuned, key_of(run.config.seed, "adapters", 0, INIT))
    if run.tuned.base == "full":
        params = initial_params(run, source)
        base = {key: params[key] for key in models.shapes(run.model)}
        return base, fresh | {key: node for key, node in params.items() if key not in base}
    return _quantized(run, source), fresh


def reference(run: Run, frozen: dict, params: dict) -> tuple[models.Model, dict]:
    """(model, parameters) of ReFT's frozen reference, given what `frozen_and_trained` gave: no second copy of the weights
    where there are adapters."""
    if run.tuned.lora is None:
        return run.model, {key: params[key] for key in models.shapes(run.model)}
    if run.tuned.base == "full":
        return run.model, frozen
    return run.tuned, models.join(frozen, models.only_adapters(params))


def _origin(config: Recipe, name: str) -> str:
    """What a training stage begins with; for one that goes on with another's run, what that began with."""
    stage = dict(config.stages)[name]
    return _origin(config, stage.init_from) if getattr(stage, "continue_run", False) else stage.init_from


def _quantized(run: Run, source: str) -> dict:
    """The base in few bits that a chain of stages has under its adapters: what its first stage began with."""
    while source in dict(run.config.stages):
        source = _origin(run.config, source)
    params = initial_params(run, source)
    return models.quantize_base(run.tuned, {key: params[key] for key in models.shapes(run.model)})


def _adapters(run: Run, stage: str) -> dict:
    """The adapters, and a value head, that a finished stage chose."""
    folder = checkpoint.selected(run.folder(stage))
    return checkpoint.read_params(folder, models.param_shardings(run.tuned, checkpoint.shapes(folder)))


def initial_params(run: Run, source: str) -> dict:
    """The decoder's parameters that `init_from` names, on the mesh, adapters merged; a value head or classifier comes along if it has
    one."""
    if source == "random":
        return models.init(run.model, key_of(run.config.seed, "init", 0, INIT))
    if source in dict(run.config.stages):
        if run.tuned.lora is None:
            return _read(run, checkpoint.selected(run.folder(source)), source)
        if run.tuned.base == "full":
            base = initial_params(run, _origin(run.config, source))
        else:
            base = models.restore_base(run.tuned, _quantized(run, source))
        return models.merge_adapters(
            run.tuned, {key: base[key] for key in models.shapes(run.model)}, _adapters(run, source)
        )
    if (folder := models.resolve(source)) is not None:
        model, params = models.load_hf(
            folder,
            param_dtype=run.model.param_dtype,
            compute_dtype=run.model.compute_dtype,
            shardings=models.param_shardings(run.model, models.shapes(run.model)),
            layout=run.layout,
            vocab_multiple=run.model.vocab_multiple,
        )
        if model.arch != run.model.arch:
            raise InputError(
                f"init_from={source}: {differing(model.arch, run.model.arch)} between what it says and config.model"
            )
        return params
    if (folder := checkpoint.locate(source)) is not None:
        return _read(run, folder, source)
    raise InputError(
        f"init_from={source!r}: {checkpoint.why_none(source)}. It is none of: random, a stage "
        f"({', '.join(n for n, _ in run.config.stages)}), a Hugging Face directory, "
        f"a GGUF file, a shipped model ({', '.join(sorted(p.name for p in models.hf.SHIPPED.iterdir() if p.is_dir()))}), a checkpoint directory"
    )


def check_stored(folder: pathlib.Path, where: str, ours: dict, *, classifier: bool = False) -> dict:
    """The shapes of a checkpoint's parameters; InputError unless they are a whole model's `ours`, with a value head or without; a
    re-ranker's, with its classifier, only if that is asked for."""
    stored = checkpoint.shapes(folder)
    if "classifier" in stored and not classifier:
        raise InputError(
            f"{where}: {folder} is a re-ranker, which answers no questions; name the checkpoint of another kind of stage"
        )
    if models.only_adapters(stored):
        raise InputError(
            f"{where}: {folder} holds adapters alone; merge them where their base is, by a stage of kind export, "
            "and begin with the directory that it writes"
        )
    decoder = {key: node for key, node in stored.items() if key not in ("value_head", "classifier")}
    if jax.tree.map(lambda x: x.shape, decoder) != jax.tree.map(lambda x: x.shape, ours):
        raise InputError(f"{where}: the parameters in {folder} have other shapes than config.model describes")
    return stored


def _read(run: Run, folder: pathlib.Path, source: str) -> dict:
    ranks = run.config.kind(source) == "reranker"
    stored = check_stored(folder, f"init_from={source}", models.shapes(run.model), classifier=ranks)
    return checkpoint.read_params(folder, models.param_shardings(run.model, stored))


def read_by(config: Recipe, name: str, evaluated=()) -> tuple[list[str], list[str]]:
    """What a stage will read, of earlier stages and of directories: (those of which the chosen checkpoint, those of which the last, which
    training goes on with). `evaluated`: labels that an evaluation has done before."""
    stages = dict(config.stages)
    stage, chosen = stages[name], []

    def reads(source: str):
        chosen.append(source)
        if config.model.lora is not None and source in stages:  # what its adapters are merged into
            reads(_origin(config, source))

    if getattr(stage, "continue_run", False):
        reads(_origin(config, name))
        return chosen, [stage.init_from]
    for key, source in (*stage.sources(), *getattr(stage, "rerankers", ())):
        if not (hasattr(stage, "checkpoints") and key in evaluated):
            reads(source)
    return chosen, []


def differing(a, b) -> str:
    """The fields in which two dataclasses of a kind differ, for messages."""
    return (
        ", ".join(
            f"{f.name} ({getattr(a, f.name)!r} and {getattr(b, f.name)!r})"
            for f in dataclasses.fields(a)
            if getattr(a, f.name) != getattr(b, f.name)
        )
        + " differ"
    )
