"""What every stage needs: the run's parts in one record, keys, batches, the starting parameters, and when to stop."""

import dataclasses
import json
import math
import pathlib
import zlib

import jax
import numpy as np

from reft_jax import checkpoint, distributed, models, steps
from reft_jax.config import Config, Sampling
from reft_jax.data import batching, mathqa, packing, prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.data.records import Splits
from reft_jax.errors import InputError, Preempted, RunError, Stop
from reft_jax.metrics import write_json
from reft_jax.rewards import matchers, monitors
from reft_jax.rewards import score as rewards
from reft_jax.rewards.score import Ahead
from reft_jax.sampling.engine import Engine
from reft_jax.sharding import Layout
from reft_jax.types import Prompts

SAMPLE, PERMUTE, DROPOUT, INIT = range(4)  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: the checked config, its folder, the model, the tokenizer and the data."""

    config: Config
    workdir: pathlib.Path
    model: models.Model
    tokenizer: object  # a transformers fast tokenizer
    splits: Splits
    stop: Stop
    more_eos_ids: tuple[int, ...] = ()  # further tokens that end a response: an instruction-tuned model's end of a turn

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos_token_id, *self.more_eos_ids)

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def tuned(self) -> models.Model:
        """The model as it is trained: with adapters if the config has them, over a base that may be quantized."""
        return dataclasses.replace(self.model, lora=self.config.model.lora, base=self.config.model.base)

    def folder(self, stage: str) -> pathlib.Path:
        return self.workdir / stage

    def done(self, stage: str) -> bool:
        return (self.folder(stage) / "DONE").exists()

    def finish(self, stage: str, **facts):
        """Marks a stage as finished; `facts` say what it chose."""
        write_json(self.folder(stage) / "DONE", facts)
        distributed.barrier(f"{stage} is done")

    def facts(self, stage: str) -> dict:
        return json.loads((self.folder(stage) / "DONE").read_text())

    def stop_if_asked(self):
        """Raises Preempted after a signal; the caller has saved what it has to."""
        if self.stop.requested:
            raise Preempted


def key_of(seed: int, name: str, step: int, stream: int) -> jax.Array:
    """The key of a stream at a step: a function of its arguments alone, so that nothing random need be saved."""
    root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(jax.random.fold_in(root, step), stream)


def make_prompts(run: Run, encoded, rows) -> Prompts:
    """The prompts of those rows, left-padded to the bucket of the longest; host arrays."""
    tokens = [encoded[i].prompt for i in rows]
    length = batching.bucket(max(map(len, tokens)), run.config.data.prompt_buckets)
    padded, mask = batching.pad_left(tokens, length, run.tokenizer.pad_token_id)
    return Prompts(padded, mask, np.asarray(rows, np.int32))


def pack(run: Run, prompts: Prompts, mask, groups, parts: int = 1) -> list[packing.Packing | None]:
    """How each group's sequences share rows, on the mesh (`packing.pack`); None where config.data.pack is off. Host arrays."""
    if not run.config.data.pack:
        return [None] * len(groups)
    packings = packing.pack(prompts.mask, mask, groups, parts=parts, multiple=run.layout.parts("batch"))
    return run.layout.batch(packings)


def make_sampler(run: Run, model, sampling: Sampling, num_slots: int, num_samples: int = 1) -> Engine:
    """What draws responses from `model` with `sampling`, num_slots of them at a time."""
    return Engine(
        model,
        max_prompt=run.config.data.max_prompt,
        max_new=sampling.max_new or run.config.data.max_response,
        num_slots=num_slots,
        eos_ids=run.eos_ids,
        pad_id=run.tokenizer.pad_token_id,
        num_samples=num_samples,
        sampling=sampling,
        text=lambda ids: tokenizers.decode(run.tokenizer, ids, ends=run.eos_ids),
        layout=run.config.mesh.decode,
    )


def grade(run: Run, records, texts, purpose: str, ahead: Ahead | None = None) -> list[rewards.Grade]:
    """A grade for each response, by the process whose row it is; `ahead` may have run those programs already."""
    data, verifier = run.config.data, run.config.rewards
    rows = [row for row in range(len(texts)) if distributed.mine(row)]
    grades = rewards.grade(
        data.name,
        data.cot,
        [prompts.completed(records[row], texts[row], data, purpose=purpose) for row in rows],
        [records[row].answer for row in rows],
        matcher=data.matcher,
        max_verifier_failures=verifier.max_verifier_failures,
        ahead=ahead,
        **verifier.limits,
    )
    shared = distributed.share([dataclasses.astuple(grade) for grade in grades], len(texts))
    return [rewards.Grade(*grade) for grade in shared]


def watch(run: Run, records, texts, grades, purpose: str) -> dict[str, float]:
    """The monitors (`rewards/monitors`) of graded responses; each process looks at those whose rows are its own."""
    data = run.config.data
    kind, program = rewards.answer_kind(data.name), matchers.get(data.matcher).program
    seen = []
    for row in filter(distributed.mine, range(len(texts))):
        record, text, grade = records[row], texts[row], grades[row]
        whole = prompts.completed(record, text, data, purpose=purpose)
        one = monitors.look(
            program(whole) if data.cot == "program" else whole,
            text,
            cot=data.cot,
            kind=kind,
            extracted=grade.extracted,
            correct=grade.correct,
            gold=record.answer,
            gold_cot=prompts.continuation(record, data, purpose=purpose),
            options=mathqa.option_numbers(record.question) if kind == "choice" else {},
        )
        seen.append(dataclasses.astuple(one))
    return monitors.summary([monitors.Seen(*one) for one in distributed.share(seen, len(texts))])


def programs_ahead(run: Run) -> Ahead | None:
    """What runs programs while others are still being sampled; None where responses are no programs."""
    if run.config.data.cot != "program":
        return None
    return Ahead(matcher=run.config.data.matcher, **run.config.rewards.limits)


def frozen_and_trained(run: Run, name: str) -> tuple[dict, dict]:
    """({}, all parameters) that a training stage begins with; with adapters (the base, the adapters and a value head).

    Over a full base, the adapters of an earlier stage are merged into it and fresh ones begin. A quantized base stays what
    it was at the first stage, since a merged one would lose them when it is quantized again: there they are trained on.
    """
    source = _origin(run, name)
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


def _origin(run: Run, name: str) -> str:
    """What a training stage begins with; for one that goes on with another's run, what that began with."""
    stage = dict(run.config.stages)[name]
    return _origin(run, stage.init_from) if getattr(stage, "continue_run", False) else stage.init_from


def _quantized(run: Run, source: str) -> dict:
    """The base in few bits that a chain of stages has under its adapters: what its first stage began with."""
    while source in dict(run.config.stages):
        source = _origin(run, source)
    params = initial_params(run, source)
    return models.quantize_base(run.tuned, {key: params[key] for key in models.shapes(run.model)})


def _adapters(run: Run, stage: str) -> dict:
    """The adapters, and a value head, that a finished stage chose."""
    folder = checkpoint.selected(run.folder(stage))
    return checkpoint.read_params(folder, steps.param_shardings(run.tuned, checkpoint.shapes(folder)))


def initial_params(run: Run, source: str) -> dict:
    """The decoder's parameters that `init_from` names, on the mesh, adapters merged; a value head or classifier comes along if it has
    one."""
    if source == "random":
        return models.init(run.model, key_of(run.config.seed, "init", 0, INIT))
    if source in dict(run.config.stages):
        if run.tuned.lora is None:
            return _read(run, checkpoint.selected(run.folder(source)), source)
        if run.tuned.base == "full":
            base = initial_params(run, _origin(run, source))
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
            shardings=steps.param_shardings(run.model, models.shapes(run.model)),
            layout=run.layout,
            vocab_multiple=run.model.vocab_multiple,
        )
        if model.arch != run.model.arch:
            raise InputError(
                f"init_from={source}: {differing(model.arch, run.model.arch)} between its config.json and config.model"
            )
        return params
    if (folder := checkpoint.locate(source)) is not None:
        return _read(run, folder, source)
    raise InputError(
        f"init_from={source!r}: it is none of: random, a stage ({', '.join(n for n, _ in run.config.stages)}), a Hugging Face directory, "
        f"a shipped model ({', '.join(sorted(p.name for p in models.hf.SHIPPED.iterdir() if p.is_dir()))}), a checkpoint directory"
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
    stage = dict(run.config.stages).get(source)
    ranks = stage is not None and stage.kind == "reranker"
    stored = check_stored(folder, f"init_from={source}", models.shapes(run.model), classifier=ranks)
    return checkpoint.read_params(folder, steps.param_shardings(run.model, stored))


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


def num_steps(epochs: float, batch_size: int, num_records: int) -> int:
    """Steps that see num_records epochs times."""
    return max(math.ceil(epochs * num_records / batch_size - 1e-9), 1)


def crossed(step: int, every_epochs: float, batch_size: int, num_records: int) -> bool:
    """Whether a multiple of every_epochs was reached by step `step` (from 1) and not by the one before; 0 = never."""
    if not every_epochs:
        return False
    count = [math.floor(s * batch_size / (num_records * every_epochs) + 1e-9) for s in (step - 1, step)]
    return count[1] > count[0]


def check_finite(name: str, step: int, metrics: dict):
    """Stops a run whose loss or gradient is no longer a number, before it is saved."""
    for key in ("sft/loss", "ppo/loss", "self_train/loss", "reranker/loss", "grad/norm"):
        if key in metrics and not math.isfinite(metrics[key]):
            raise RunError(
                f"{name}: {key} is {metrics[key]} at step {step}; the last checkpoint is from before. "
                "Lower optim.lr, or look at the step's samples"
            )


def host(metrics: dict) -> dict:
    """Device scalars as float32 on the host, in one transfer."""
    return {key: np.float32(value) for key, value in jax.device_get(metrics).items()}
