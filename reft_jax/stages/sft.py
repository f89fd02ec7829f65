"""Supervised fine-tuning on (question, CoT): ReFT's warm-up, the SFT baseline, and pretraining from scratch (section 3.1).

With `continue_run` the stage goes on with an earlier sft stage's optimizer and data order, so that a warm-up and the
baseline that continues it are one run: the paper's warm-up is an early checkpoint of the full SFT run.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax.config.records import choices_of, setting
from reft_jax.config.setting import divides
from reft_jax.config.settings import OUTPUTS, Checked, unmet, whole
from reft_jax.data import batching
from reft_jax.run.run import Run
from reft_jax.training import supervised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    """`continue_run`: `init_from` is a stage whose optimizer state and data order go on."""

    continue_run: bool = setting(default=False)
    accumulate: int = setting(1, default=1)  # parts that a batch is split into
    dropout: float = setting(0, 0.9, default=0.0)
    losses: tuple = choices_of("losses", default=dict(nll={}))
    reduce: str = setting(one_of=("token", "sequence"), default="token")

    def check(self):
        yield from super().check()
        yield from divides(self.accumulate, self.batch_size)
        yield from unmet(self.losses, OUTPUTS, (), "a batch of texts")
        yield from whole(self.losses, self.accumulate)

    def check_in(self, recipe, earlier):
        yield from super().check_in(recipe, earlier)
        if self.continue_run and not hasattr(earlier.get(self.init_from), "continue_run"):
            yield "continue_run", f"init_from must name an earlier sft stage to go on with; got {self.init_from!r}"
        elif self.continue_run and _kept(self.optim) != _kept(earlier[self.init_from].optim):
            told = (
                f"with continue_run it goes on with the optimizer's state of {self.init_from!r}, and this one's has another form: use, mu_dtype, "
                "rounding, whether gradients are clipped, and what else shapes it must be the same in both"
            )
            yield "optim", told

    def rows(self) -> dict:
        return {"batch_size": self.batch_size // self.accumulate, "eval_batch_size": self.eval_batch_size}

    def asks(self, recipe) -> tuple:
        return ("teach",)

    def programs(self, name: str, at):
        at.learns_texts(name, self)


def _kept(optim):
    """The form of an optimizer's state: its structure, and the shapes and types of its arrays, over matrices of several sizes."""
    sizes = (8, 32, 64, 128, 256)
    blocks = {f"of_{size}": {"kernel": jax.ShapeDtypeStruct((2, size, size), jnp.float32)} for size in sizes}
    norm = {"scale": jax.ShapeDtypeStruct((8,), jnp.float32)}
    state = jax.eval_shape(optim(1).init, {"blocks": blocks, "norm": norm})
    return jax.tree.structure(state), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]


def run(name: str, stage: Stage, run: Run):
    train = batching.fit(run.tokenizer, run.splits.train, run.config.data, purpose="teach")
    supervised.learn(name, stage, run, train.encoded, goes_on_with=stage.init_from if stage.continue_run else "")
