"""Supervised fine-tuning on (question, CoT): ReFT's warm-up, the SFT baseline, and pretraining from scratch (section 3.1).

With `continue_run` the stage goes on with an earlier sft stage's optimizer and data order, so that a warm-up and the
baseline that continues it are one run: the paper's warm-up is an early checkpoint of the full SFT run.
"""

from reft_jax.config.settings import SFT
from reft_jax.data import batching
from reft_jax.run.run import Run
from reft_jax.training import supervised


def run(name: str, stage: SFT, run: Run):
    train = batching.fit(run.tokenizer, run.splits.train, run.config.data, purpose="sft")
    supervised.learn(name, stage, run, train.encoded, goes_on_with=stage.init_from if stage.continue_run else "")
