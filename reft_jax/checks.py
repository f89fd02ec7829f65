"""What a config alone cannot tell and no run should find out late: checked with the data, the sources' files, the architecture and the
mesh, before anything is written. Each raises InputError with the key, its value and what is legal."""

import dataclasses

from reft_jax import config as config_lib
from reft_jax.errors import InputError


def asks(config: config_lib.Config, stage) -> tuple[str, ...]:
    """The purposes (`data.prompts`) for which a stage reads training questions."""
    if stage.kind == "self_train":
        return "sft", config.purpose(stage.sample_from) if stage.mode == "offline" else "reft"
    if stage.kind == "reranker":
        return (config.purpose(stage.sample_from),)
    return (stage.kind,) if stage.kind in ("sft", "reft") else ()


def check_data(config: config_lib.Config, tokenizer, splits) -> list[str]:
    """Tokenizes what the stages will use and grades the gold answers; returns notes for the user, raises InputError."""
    from reft_jax.data import batching, prompts
    from reft_jax.rewards import program, score

    data, verifier, notes = config.data, config.rewards, list(splits.notes)
    kinds = {stage.kind for _, stage in config.stages}
    purposes = {purpose for _, stage in config.stages for purpose in asks(config, stage)}
    uses = [("train", splits.train, purpose) for purpose in ("sft", "reft", "evaluate") if purpose in purposes]
    uses += [(name, records, "evaluate") for name, records in (("dev", splits.dev), ("test", splits.test)) if records]
    for name, records, purpose in uses:
        if note := batching.fit(tokenizer, records, data, purpose=purpose).note:
            notes.append(f"{name} ({purpose}): {note}")
    if data.cot == "program" and kinds != {"export"}:
        program.use_sandbox(verifier.sandbox)
    if kinds & {"reft", "self_train", "reranker"}:  # those that learn from grades
        gold = [record for record in splits.train if record.cot and record.kind != "text"]
        texts = [prompts.target(record, docstring=data.docstring) for record in gold]
        failed = score.audit_gold(
            data.name,
            data.cot,
            texts,
            [r.answer for r in gold],
            [r.item_id for r in gold],
            matcher=data.matcher,
            **verifier.limits,
        )
        named = ", ".join(f"{item} ({grade.status}, extracted {grade.extracted})" for item, grade in failed[:5])
        if len(failed) > verifier.max_gold_failures * len(gold):
            raise InputError(
                f"{data.train_file or data.name}: {len(failed)} of {len(gold)} gold answers do not grade as correct ({named}); over "
                f"config.rewards.max_gold_failures={verifier.max_gold_failures}. Look at data.matcher, data.cot, rewards.timeout_s, or mend the "
                "records"
            )
        notes.append(
            f"gold check: {len(gold) - len(failed)} of {len(gold)} training answers grade as correct"
            + (f"; not: {named}" if failed else "")
        )
    return notes


def check_sources(config: config_lib.Config):
    """Every source that is no stage must exist, before anything is trained."""
    from reft_jax import checkpoint, models

    names = {"random", *(name for name, _ in config.stages)}
    for name, stage in config.stages:
        for key, source in config_lib.sources(stage):
            if source not in names and models.resolve(source) is None and checkpoint.locate(source) is None:
                shipped = (
                    ", ".join(sorted(p.name for p in models.SHIPPED.iterdir() if p.is_dir()))
                    if models.SHIPPED.is_dir()
                    else "none"
                )
                raise InputError(
                    f"config.stages.{name}.{key}: got {source!r}; legal are random, an earlier stage, a Hugging Face directory, "
                    f"a checkpoint directory, or a shipped model ({shipped})"
                )


def check_sizes(config: config_lib.Config, arch):
    """Every directory that a stage begins with must hold a whole model of the run's architecture, and what a model with learned
    positions reads and writes must have positions."""
    from reft_jax import checkpoint, models
    from reft_jax.stages import common

    shapes = models.shapes(models.Model(arch, vocab_multiple=config.model.vocab_multiple))

    longest = config.data.max_prompt + config.data.max_response
    if arch.positions == "learned" and longest > arch.max_positions:
        raise InputError(
            f"config.data.max_prompt + max_response: got {longest}; the model has {arch.max_positions} positions: lower one of them"
        )
    names, checked = {name for name, _ in config.stages}, set()
    for name, stage in config.stages:
        for token in () if stage.kind in ("sft", "export") else stage.sampling.forbidden:
            if token >= arch.vocab_size:
                raise InputError(
                    f"config.stages.{name}.sampling.forbidden: got {token}; the model has tokens 0 to {arch.vocab_size - 1}"
                )
        for key, source in config_lib.sources(stage):
            folder = None if source in names else models.resolve(source)
            if folder is None and source not in names and source != "random":
                common.check_stored(checkpoint.locate(source), f"config.stages.{name}.{key}={source}", shapes)
            if folder is None or folder in checked:
                continue
            if (other := models.read_config(folder)) != arch:
                raise InputError(
                    f"config.stages.{name}.{key}={source}: {common.differing(other, arch)} between its config.json and config.model"
                )
            models.check_hf(folder)
            checked.add(folder)


def check_adapters(config: config_lib.Config, model):
    """Adapters must adapt something, and a quantized base needs its library."""
    from reft_jax import models

    if config.model.lora is not None and not models.only_adapters(
        models.shapes(dataclasses.replace(model, lora=config.model.lora))
    ):
        raise InputError(
            f"config.model.lora.targets: got {config.model.lora.targets!r}; it matches no matrix of this model "
            f"({', '.join(config_lib.MATRICES)}; mlp.gate only where the feed-forward is gated)"
        )
    if config.model.base != "full":
        models.quantize.library()


def check_batches(config: config_lib.Config, layout):
    """Rows must divide over the mesh, or some devices would hold copies of the work."""
    parts = layout.parts("batch")
    for name, stage in config.stages:
        sizes = {
            "sft": lambda s: {"batch_size": s.batch_size // s.accumulate, "eval_batch_size": s.eval_batch_size},
            "reft": lambda s: {
                "batch_size": s.batch_size,
                "ppo.minibatch_size": s.ppo.part_size,
                "eval_batch_size": s.eval_batch_size,
            },
            "self_train": lambda s: {
                "batch_size": s.batch_size * (1 if s.mode == "offline" else s.num_samples + 1) // s.accumulate,
                "sample_batch_size": s.sample_batch_size,
                "eval_batch_size": s.eval_batch_size,
            },
            "reranker": lambda s: {
                "batch_size": s.batch_size // s.accumulate,
                "sample_batch_size": s.sample_batch_size,
            },
            "evaluate": lambda s: {"batch_size": s.batch_size},
            "export": lambda s: {},
        }[stage.kind](stage)
        for key, size in sizes.items():
            if size % parts:
                raise InputError(
                    f"config.stages.{name}.{key}: {size} rows at a time do not divide over data x fsdp = {parts} of config.mesh; use a multiple"
                )
