"""Questions as a model is asked them, and what draws responses."""

import collections
import dataclasses

import numpy as np

from reft_jax.config.setting import num_parts
from reft_jax.config.settings import Sampling
from reft_jax.data import batching, packing
from reft_jax.data import tokenizer as tokenizers
from reft_jax.run.run import Run
from reft_jax.sampling.engine import Engine
from reft_jax.types import Prompts


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions as a purpose ("ask" or "rollout") asks them, and those too long to be asked, which count as wrong."""

    purpose: str
    fitted: batching.Fitted

    @property
    def records(self):
        return self.fitted.records

    @property
    def encoded(self):
        return self.fitted.encoded

    @property
    def num(self) -> int:
        return len(self.fitted.records) + len(self.fitted.too_long)


def ask(run: Run, records, purpose: str, limit: int = 0) -> Questions:
    """The first `limit` (0 = all) records, tokenized for sampling."""
    records = records[:limit] if limit else records
    return Questions(purpose, batching.fit(run.tokenizer, records, run.config.data, purpose=purpose))


def make_prompts(run: Run, encoded, rows) -> Prompts:
    """The prompts of those rows, left-padded to the bucket of the longest; host arrays. A question that stands there again has another
    index, so that its responses are drawn with other numbers."""
    tokens = [encoded[i].prompt for i in rows]
    length = batching.bucket(max(map(len, tokens)), run.config.data.prompt_buckets)
    padded, mask = batching.pad_left(tokens, length, run.tokenizer.pad_token_id)
    before = collections.Counter()
    index = []
    for row in rows:
        index.append(row + before[row] * len(encoded))
        before[row] += 1
    return Prompts(padded, mask, np.asarray(index, np.int32))


def pack(run: Run, prompts: Prompts, mask, groups, stage=None) -> list[packing.Packing | None]:
    """How each group's sequences share rows, on the mesh (`packing.pack`); None where config.data.pack is off. Host arrays."""
    if not run.config.data.pack:
        return [None] * len(groups)
    parts, multiple = 1, run.layout.parts("batch")
    if stage is not None:
        most = run.model.slice_tokens if stage.divisible else 0
        length, least = prompts.mask.shape[1] + mask.shape[1], stage.how["accumulate"]
        parts = num_parts(len(groups[0]), length, most, least=least, multiple=multiple)
    packings = packing.pack(prompts.mask, mask, groups, parts=parts, multiple=multiple)
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
