"""Writes a checkpoint as a Hugging Face directory, <stage>/hf: config.json, model.safetensors and the tokenizer's files."""

from reft_jax import models
from reft_jax.config import Export
from reft_jax.data import tokenizer as tokenizers
from reft_jax.stages import common


def run(name: str, stage: Export, run: common.Run):
    folder = run.folder(name) / "hf"
    models.save_hf(folder, run.model, common.initial_params(run, stage.init_from))
    tokenizers.save(run.tokenizer, folder)
    run.finish(name)
    print(f"{name}: wrote {folder}")
