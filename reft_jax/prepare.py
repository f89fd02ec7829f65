"""All that can be wrong with config, data, sizes and folder, found before a device is touched and before anything is written."""

import dataclasses
import json
import os
import pathlib

from reft_jax import models, recipe, tasks
from reft_jax.config import choices, settings
from reft_jax.data import batching, exact, prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import InputError
from reft_jax.mesh import distributed, sharding
from reft_jax.rewards import program, score
from reft_jax.run import begin, checkpoint, lineage, sources, trackers, workdirs
from reft_jax.run.run import Run
from reft_jax.training import memory

# ------------------------------------------------------------------ model, tokenizer, data


def build_tokenizer(config: settings.Recipe, splits, directory):
    """The model directory's tokenizer, or one built from the data (word level for generated problems, BPE for text)."""
    if directory is not None:
        return tokenizers.load(directory)
    if config.data.tokenizer == "word":
        task = choices.load("tasks", config.data.task)()
        if not hasattr(task, "words"):
            raise InputError(
                f"config.data.tokenizer: got 'word'; it is for tasks of a closed vocabulary, {config.data.task} needs 'bpe'"
            )
        return tokenizers.build_word(*task.words())
    texts = (
        text
        for record in splits.train
        for text in (prompts.prompt(record), prompts.target(record, docstring=config.data.docstring))
    )
    return tokenizers.build_bpe(texts, config.data.vocab_size)


def resolve_arch(config: settings.Recipe, tokenizer, directory) -> settings.Arch:
    """The architecture with its vocabulary size filled in; InputError if the tokenizer has more ids than the model."""
    arch = models.read_config(directory) if directory is not None else config.model.arch
    if arch.vocab_size == 0:
        arch = dataclasses.replace(arch, vocab_size=len(tokenizer))
    tokenizers.check_fits(tokenizer, arch.vocab_size, "config.model")
    return arch


def build_model(config: settings.Recipe, arch: settings.Arch, layout, num_ids: int = 0):
    """The config's model, without adapters, on that layout. num_ids: that its tokenizer has (0 = as many as the embedding has rows)."""
    names = "param_dtype", "compute_dtype", "remat", "logits_chunk", "slice_tokens", "vocab_multiple", "attention"
    num_ids = num_ids if num_ids < arch.vocab_size else 0
    return models.Model(arch, layout=layout, num_ids=num_ids, **{name: getattr(config.model, name) for name in names})


# ------------------------------------------------------------------ the run


def prepare(spec: str, workdir: str, overrides: list[tuple[str, str]], processes: dict, stop):
    """Everything up to the first write: (Run, what config.json is to say of it). Raises InputError."""
    config, tree = recipe.load(spec, overrides)
    check_files(config)
    trackers.check(config.logging)
    workdir = pathlib.Path(workdir).absolute()
    longer = workdirs.check(workdir, tree, recipe.binding)
    again = {name for name, kind in config.kinds if hasattr(choices.module("stages", kind), "refresh")}
    lineage.check(workdir, config.stages, again, longer)
    distributed.initialize(processes)
    if distributed.several():
        stop.agree = distributed.asked_to_stop

    directory = None
    if config.model.directory and (directory := models.resolve(config.model.directory)) is None:
        raise InputError(
            f"config.model.directory: {config.model.directory!r} is neither a directory with a config.json nor a GGUF file nor a shipped model"
        )
    check_sources(config)
    splits = tasks.load(config.data)
    tokenizer = build_tokenizer(config, splits, directory)
    own_bos = "on" if tokenizers.puts_bos(tokenizer) else "off"
    chosen = decide(config.data, workdirs.decided(workdir), splits, tokenizer, directory)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **chosen))
    tree = tree | {"data": tree["data"] | chosen}
    tokenizers.set_bos(tokenizer, config.data.bos == "on")
    ends = tokenizers.end_ids(tokenizer, directory)
    eos_ids = sources.begun_ends(workdir, ends)
    reads = sources.reads(config, recipe.used(tree), splits, tokenizer, eos_ids)
    sources.check(workdir, reads)
    arch = resolve_arch(config, tokenizer, directory)
    notes = check_data(config, tokenizer, splits)
    if eos_ids != ends:
        then, now = (tokenizers.spelt(tokenizer, ids) for ids in (eos_ids, ends))
        notes.append(f"ends: {then}, with which this run was begun; in a new folder responses end with any of {now}")

    if (config.data.bos, own_bos) == ("off", "on"):
        notes.append(
            f"bos: off, though the tokenizer itself begins a text with {tokenizer.bos_token}: as this run was told or begun (config.data.bos)"
        )
    layout = sharding.make_layout(config.mesh)
    check_batches(config, layout)
    check_checkpoints(config, workdir)
    check_sizes(config, arch)
    check_longer(config, workdir, longer)
    model = build_model(config, arch, layout, tokenizers.num_ids(tokenizer))
    check_adapters(config, model)
    unfinished = [name for name, _ in config.stages if not os.path.exists(workdir / name / "DONE")]
    needs = memory.check(config, model, unfinished)
    ways = dict(training=models.attention_path(model), decoding=models.attention_path(model, slots=True))
    if config.model.attention == "kernel":
        notes += [
            f"config.model.attention=kernel, but {what} takes xla: {why}" for what, (_, why) in ways.items() if why
        ]
    about = workdirs.describe(tree, layout) | {
        "tokenizer": tokenizers.special_ids(tokenizer) | {"more_eos_ids": eos_ids[1:]},
        "attention": {what: f"{way}: {why}" if why else way for what, (way, why) in ways.items()},
        "data_sha256": reads["run"]["read"]["data"]["records"],
        "own_files": recipe.own_files(tree),
        "reads": reads,
        "memory": memory.told(needs, layout),
        "notes": notes,
    }
    return Run(config, workdir, model, tokenizer, splits, stop, eos_ids[1:], tuple(longer)), about


def decide(data: settings.Data, begun: dict[str, str], splits, tokenizer, directory) -> dict[str, str]:
    """What `auto` means of config.data: what the run has begun with, else what the model's tokenizer asks for."""
    found = {}
    if data.bos == "auto":
        found["bos"] = begun.get("bos") or ("on" if tokenizers.puts_bos(tokenizer) else "off")
    if data.line_end == "auto":
        pretrained = begun.get("line_end") is None and directory is not None
        best = prompts.best_line_end(tokenizer, splits.train, data) if pretrained else "prefix"
        found["line_end"] = begun.get("line_end", best)
    tokenizers.bos_ids(tokenizer, data.bos)  # "on" needs one
    return found


def check_files(config: settings.Recipe):
    """InputError where a stage chooses by questions that no file has."""
    for name, stage in config.stages:
        by_test = getattr(stage, "select", "") == "best" and stage.select_on == "test"
        if by_test and config.data.source == "files" and not config.data.test_file:
            raise InputError(f"config.stages.{name}.select_on: got 'test'; it needs config.data.test_file")


def asks(config: settings.Recipe, stage) -> tuple[str, ...]:
    """The purposes (`data.prompts`) for which a stage reads training questions."""
    return stage.asks(config) if hasattr(stage, "asks") else ()


def check_data(config: settings.Recipe, tokenizer, splits) -> list[str]:
    """Tokenizes what the stages will use and grades the gold answers; returns notes for the user, raises InputError."""
    data, verifier, notes = config.data, config.verifier, list(splits.notes)
    purposes = {purpose for _, stage in config.stages for purpose in asks(config, stage)}
    uses = [("train", splits.train, purpose) for purpose in prompts.PURPOSES if purpose in purposes]
    uses += [(name, records, "ask") for name, records in (("dev", splits.dev), ("test", splits.test)) if records]
    read = {}  # which questions the model reads otherwise, told once
    for name, records, purpose in uses:
        fitted, where = batching.fit(tokenizer, records, data, purpose=purpose), f"{name} ({purpose})"
        notes += [f"{where}: {fitted.note}"] if fitted.note else []
        if config.model.directory and (note := exact.check(tokenizer, fitted, data, purpose=purpose, where=name)):
            read[name] = note
    notes += read.values()
    if data.cot == "program" and {kind for _, kind in config.kinds} != {"export"}:
        program.use_sandbox(verifier.sandbox)
    if any(getattr(stage, "learns_from_grades", False) for _, stage in config.stages):
        gold = [record for record in splits.train if record.cot and record.kind != "text"]
        texts = [prompts.target(record, docstring=data.docstring) for record in gold]
        failed = score.audit_gold(
            data.task,
            data.cot,
            texts,
            [r.gold for r in gold],
            [r.item_id for r in gold],
            matcher=data.matcher,
            **verifier.limits,
        )
        named = ", ".join(f"{item} ({grade.status}, extracted {grade.extracted})" for item, grade in failed[:5])
        if len(failed) > verifier.max_gold_failures * len(gold):
            raise InputError(
                f"{data.train_file or data.task}: {len(failed)} of {len(gold)} gold answers do not grade as correct ({named}); over "
                f"config.verifier.max_gold_failures={verifier.max_gold_failures}. Look at data.matcher, data.cot, verifier.timeout_s, or mend the "
                "records"
            )
        notes.append(
            f"gold check: {len(gold) - len(failed)} of {len(gold)} training answers grade as correct"
            + (f"; not: {named}" if failed else "")
        )
    return notes


def check_sources(config: settings.Recipe):
    """Every source that is no stage must exist, before anything is trained."""
    names = {"random", *(name for name, _ in config.stages)}
    for name, stage in config.stages:
        for key, source in stage.sources():
            if source not in names and models.resolve(source) is None and checkpoint.locate(source) is None:
                shipped = (
                    ", ".join(sorted(p.name for p in models.SHIPPED.iterdir() if p.is_dir()))
                    if models.SHIPPED.is_dir()
                    else "none"
                )
                why = f". {source} is {checkpoint.why_none(source)}" if pathlib.Path(source).is_dir() else ""
                raise InputError(
                    f"config.stages.{name}.{key}: got {source!r}; legal are random, an earlier stage, a Hugging Face directory, a GGUF file, "
                    f"a checkpoint directory, or a shipped model ({shipped}){why}"
                )


def check_checkpoints(config: settings.Recipe, workdir: pathlib.Path):
    """The checkpoints that unfinished stages will read, of finished stages and of directories, must be there and be what was saved."""
    names = [name for name, _ in config.stages]
    finished = {name for name in names if os.path.exists(workdir / name / "DONE")}
    results = workdir / "results.json"
    results = json.loads(results.read_text())["stages"] if os.path.exists(results) else {}
    folders = {}
    for name, stage in config.stages:
        evaluated = lineage.fresh(workdir, stage, names, results) if hasattr(stage, "checkpoints") else set()
        to_do = lineage.gone(workdir, name, stage) or evaluated < {
            label for label, _ in getattr(stage, "checkpoints", ())
        }
        if name in finished and not to_do:
            checkpoint.check_chosen(workdir / name)
            continue
        chosen, last = begin.read_by(config, name, evaluated)
        folders |= {checkpoint.selected(workdir / source): None for source in chosen if source in finished}
        folders |= {checkpoint.last(workdir / source): None for source in last if source in finished}
        for source in chosen:
            if source not in {"random", *names} and models.resolve(source) is None:
                folders[checkpoint.locate(source)] = None
    for folder in folders:
        checkpoint.check(folder)


def check_sizes(config: settings.Recipe, arch):
    """Every directory that a stage begins with must hold a whole model of the run's architecture, and what a model with learned
    positions reads and writes must have positions."""
    shapes = models.shapes(models.Model(arch, vocab_multiple=config.model.vocab_multiple))

    longest = config.data.max_prompt + config.data.max_response
    if arch.positions == "learned" and longest > arch.max_positions:
        raise InputError(
            f"config.data.max_prompt + max_response: got {longest}; the model has {arch.max_positions} positions: lower one of them"
        )
    names, checked = {name for name, _ in config.stages}, set()
    for name, stage in config.stages:
        for token in stage.sampling.forbidden if hasattr(stage, "sampling") else ():
            if token >= arch.vocab_size:
                raise InputError(
                    f"config.stages.{name}.sampling.forbidden: got {token}; the model has tokens 0 to {arch.vocab_size - 1}"
                )
        for key, source in stage.sources():
            folder = None if source in names else models.resolve(source)
            if folder is None and source not in names and source != "random":
                begin.check_stored(checkpoint.locate(source), f"config.stages.{name}.{key}={source}", shapes)
            if folder is None or folder in checked:
                continue
            if (other := models.read_config(folder)) != arch:
                raise InputError(
                    f"config.stages.{name}.{key}={source}: {begin.differing(other, arch)} between what it says and config.model"
                )
            models.check_hf(folder)
            checked.add(folder)


def check_adapters(config: settings.Recipe, model):
    """Adapters must adapt something, and a quantized base needs its library."""
    if config.model.lora is not None and not models.only_adapters(
        models.shapes(dataclasses.replace(model, lora=config.model.lora))
    ):
        raise InputError(
            f"config.model.lora.targets: got {config.model.lora.targets!r}; it matches no matrix of this model "
            f"({', '.join(settings.MATRICES)}; mlp.gate only where the feed-forward is gated)"
        )
    if config.model.base != "full":
        models.quantize.library()


def check_longer(config: settings.Recipe, workdir: pathlib.Path, longer: dict[str, float]):
    """The steps that a stage has made must have had the rates that they would have in one of more epochs (longer: {stage: its epochs so far})."""
    for name, before in longer.items():
        stage = dict(config.stages)[name]
        num, optim = 1000, stage.optim  # schedules are of fractions of a run
        rates = [optim.schedule(optim.lr, round(num * epochs / before)) for epochs in (before, stage.epochs)]
        if not optim.schedule_epochs and any(rates[0](i) != rates[1](i) for i in range(0, num, 20)):
            raise InputError(
                f"config.stages.{name}.epochs: there {before}, now {stage.epochs}; its learning rate was planned over {before} epochs, so that the "
                f"steps that were made would have had other rates: go on in a new folder, with --config.stages.{name}.init_from={workdir / name}"
            )


def check_batches(config: settings.Recipe, layout):
    """Rows must divide over the mesh, or some devices would hold copies of the work."""
    parts = layout.parts("batch")
    for name, stage in config.stages:
        sizes = stage.rows() if hasattr(stage, "rows") else {}
        for key, size in sizes.items():
            if size % parts:
                raise InputError(
                    f"config.stages.{name}.{key}: {size} rows at a time do not divide over data x fsdp = {parts} of config.mesh; use a multiple"
                )
