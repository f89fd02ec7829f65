"""One run: its config, folder, model, tokenizer and data in one record, and the keys of everything random."""

import dataclasses
import pathlib
import zlib

import jax

from reft_jax import models
from reft_jax.config.settings import Recipe
from reft_jax.data.records import Splits
from reft_jax.errors import Preempted, Stop
from reft_jax.mesh import distributed
from reft_jax.mesh.sharding import Layout
from reft_jax.run import checkpoint, lineage
from reft_jax.run.metrics import write_json

SAMPLE, PERMUTE, DROPOUT, INIT = range(4)  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: the checked config, its folder, the model, the tokenizer and the data."""

    config: Recipe
    workdir: pathlib.Path
    model: models.Model
    tokenizer: object  # a transformers fast tokenizer
    splits: Splits
    stop: Stop
    more_eos_ids: tuple[int, ...] = ()  # further tokens that end a response: an instruction-tuned model's end of a turn
    longer: tuple[str, ...] = ()  # stages that have begun with fewer epochs

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

    def begin(self, stage: str):
        """Makes a stage's folder, and writes once what the stage begins with."""
        folder, record = self.folder(stage), dict(self.config.stages)[stage]
        folder.mkdir(exist_ok=True)
        if not (folder / "BEGUN").exists():
            needed = lineage.needed(record, dict(self.config.stages))
            write_json(folder / "BEGUN", {source: lineage.given(self.workdir, source) for source in needed})
        distributed.barrier(f"{stage} is begun")

    def finish(self, stage: str, **facts):
        """Marks a stage as finished; `facts` say what it chose."""
        write_json(self.folder(stage) / "DONE", facts)
        distributed.barrier(f"{stage} is done")

    def resume(self, stage: str):
        """A finished stage is so no longer."""
        if distributed.is_primary():
            (self.folder(stage) / "DONE").unlink(missing_ok=True)
        distributed.barrier(f"{stage} goes on")

    def facts(self, stage: str) -> dict:
        return checkpoint.facts(self.folder(stage))

    def heard(self, bar, before: int = 0):
        """What long work calls with the number of parts done: the bar, on which `before` were done already, moves, and a stop that was asked
        for is obeyed."""

        def each(done: int):
            distributed.beat()
            bar.update(before + done)
            self.stop_if_asked()

        return each

    def stop_if_asked(self):
        """Raises Preempted after a signal; the caller has saved what it has to."""
        if self.stop.requested:
            raise Preempted


def key_of(seed: int, name: str, step: int, stream: int) -> jax.Array:
    """The key of a stream at a step: a function of its arguments alone, so that nothing random need be saved."""
    root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(jax.random.fold_in(root, step), stream)
