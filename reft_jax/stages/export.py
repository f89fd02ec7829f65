"""Writes a checkpoint as a Hugging Face directory, <stage>/hf, and reads it again: what is there gives the same logits."""

import dataclasses
import pathlib

import numpy as np

from reft_jax import models
from reft_jax.config.records import setting
from reft_jax.data import prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import RunError
from reft_jax.mesh import distributed
from reft_jax.run import begin
from reft_jax.run.metrics import write_json
from reft_jax.run.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    init_from: str = setting(path=True)

    leaves = ("hf",)  # what it has made: where that is gone, it is made again

    def sources(self) -> tuple:
        return (("init_from", self.init_from),)

    def programs(self, name: str, at):
        """None: it writes and reads files."""


def run(name: str, stage: Stage, run: Run):
    folder = run.folder(name) / "hf"
    params = begin.initial_params(run, stage.init_from)
    write(folder, run.model, params, run.tokenizer, run.eos_ids)
    texts = [prompts.prompt(record) for record in (run.splits.test or run.splits.train)[:8]]
    error = compare(folder, run.model, params, tokenizers.encode_batch(run.tokenizer, texts))
    run.finish(name, max_logit_error=error)
    print(f"{name}: wrote {folder}; read again, its logits differ by at most {error:.2g}")


def write(folder: pathlib.Path, model, params, tokenizer, eos_ids: tuple[int, ...]):
    """Weights, config.json, generation_config.json and the tokenizer's files: what transformers loads."""
    models.save_hf(folder, model, params)
    models.save_config(folder, model, tokenizer)
    write_json(folder / "generation_config.json", generation_config(tokenizer, eos_ids))
    if distributed.is_primary():
        tokenizers.save(tokenizer, folder)
    distributed.barrier(f"{folder} is written")


def generation_config(tokenizer, eos_ids: tuple[int, ...]) -> dict:
    ends = list(eos_ids) if len(eos_ids) > 1 else eos_ids[0]
    return {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id, "do_sample": False}


def compare(folder: pathlib.Path, model, params, prompts: list[list[int]]) -> float:
    """The largest difference of the next-token logits of some prompts, as a fraction of the largest logit, between `params`
    and what a fresh load of the folder gives. RunError if it is more than rounding."""
    model = dataclasses.replace(model, num_ids=0)  # of rows without a token too, which are written like the others
    shardings = model.layout and models.param_shardings(model, models.shapes(model))
    _, written = models.load_hf(
        folder,
        param_dtype=model.param_dtype,
        compute_dtype=model.compute_dtype,
        shardings=shardings,
        layout=model.layout,
    )
    length = max(map(len, prompts))
    tokens, mask = np.zeros((len(prompts), length), np.int32), np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
    a, b = (distributed.fetch(models.logits(model, tree, tokens, mask))[mask] for tree in (params, written))
    error = float(np.abs(a - b).max() / np.abs(a).max())
    if not error < 1e-3:
        raise RunError(
            f"{folder}: what was written gives other logits (by {error:.2g} of the largest); it is not usable"
        )
    return error
