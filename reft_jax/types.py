"""The records that flow between the parts, and the axis letters, once.

B batch, P prompt, R response, T query, S key, L layer, D model, N query heads, K kv heads, H head dim, F ffn, V vocab.
Prompts are left-padded and responses right-padded, so that every RL array is response-aligned, [B, R]: index t is
response token t and the state that emitted it. Masks are bool, True = real.
"""

import typing
from typing import Any

import flax.struct
import jax


class Prompts(flax.struct.PyTreeNode):
    tokens: jax.Array  # i32[B, P] left-padded
    mask: jax.Array  # bool[B, P]
    index: jax.Array  # i32[B] which question: with the step and seed it decides what is sampled
    given: jax.Array | None = None  # i32[B] how many of the last tokens are a response's beginning; None = none


class Sample(flax.struct.PyTreeNode):
    tokens: jax.Array  # i32[B, R] right-padded
    mask: jax.Array  # bool[B, R] True through the end-of-sequence token
    logp: jax.Array  # f32[B, R] under the distribution that it was drawn from


class Rollout(flax.struct.PyTreeNode):
    prompts: Prompts
    sample: Sample
    logp: jax.Array  # f32[B, R] of the policy that sampled, by the training forward
    ref_logp: jax.Array  # f32[B, R] of the frozen reference
    values: jax.Array | None  # f32[B, R]; None without a critic
    entropy: jax.Array  # f32[B, R] of the policy's next-token distribution, nats
    scores: jax.Array  # f32[B], or f32[B, R] where terms pay tokens
    group_size: int = flax.struct.field(pytree_node=False, default=1)  # rows of a question, one after the other

    @property
    def mask(self) -> jax.Array:
        """bool[B, R] of the responses' tokens."""
        return self.sample.mask


class Outputs(flax.struct.PyTreeNode):
    """What the model says of a batch; None where no loss needs it (`needs` names these fields)."""

    logp: jax.Array | None = None  # f32[B, R] of the response tokens
    entropy: jax.Array | None = None  # f32[B, R] of the next-token distribution, nats
    values: jax.Array | None = None  # f32[B, R] of the critic
    hidden: jax.Array | None = None  # [B, R, D] the states that emit the response tokens
    ref_logp: jax.Array | None = None  # f32[B, R] of the frozen reference, computed in the update
    ref_kl: jax.Array | None = None  # f32[B, R] KL(policy || reference) over the whole vocabulary
    # f32[B, R] with which the last response token looks at the response's: the last layer's weights, mean over heads
    attention_row: jax.Array | None = None
    right_logits: jax.Array | None = None  # f32[B] of "the answer is right"


class Column(typing.NamedTuple):
    axes: str  # letters as above; T = P + R, S = T
    dtype: str
    meaning: str


# What a batch may hold beside its sequences. Slicing, sharding, `compile` and the tests' random batches follow from it; sequences with inputs,
# positions or attention of their own do not share rows.
COLUMNS = {
    "old_logp": Column("BR", "float32", "log-probability by the policy that answered, of the training forward"),
    "old_values": Column("BR", "float32", "the critic's values before the step's updates"),
    "adv": Column("BR", "float32", "advantage, scaled as its estimator does"),
    "returns": Column("BR", "float32", "what the critic learns"),
    "weights": Column("BR", "float32", "a factor of each token's loss (importance, shares of a group)"),
    "ref_logp": Column("BR", "float32", "log-probability by the frozen reference"),
    "own": Column("B", "bool", "an own response, and not a gold one"),
    "right": Column("B", "bool", "the response's answer is right"),
    "inputs": Column("BR", "int32", "what is read in the targets' places, where that is not the targets"),
    "positions": Column("BT", "int32", "positions, where they do not count the real tokens before"),
    "attention": Column("BTS", "bool", "which earlier tokens each token sees, where that is not all real ones"),
}


class Batch(flax.struct.PyTreeNode):
    """What an update learns from; a column of COLUMNS is an attribute (`batch.adv`)."""

    prompts: Prompts | None  # None: `tokens` are whole sequences
    tokens: jax.Array  # i32[B, R] right-padded
    mask: jax.Array  # bool[B, R] which of them are learnt
    columns: dict[str, jax.Array] = flax.struct.field(default_factory=dict)

    @property
    def length(self) -> int:
        """Of a row, its prompt included."""
        return self.tokens.shape[1] + (0 if self.prompts is None else self.prompts.tokens.shape[1])

    def put(self, **columns):
        """The batch with these columns, beside its others or in their place."""
        return self.replace(columns=self.columns | columns)

    def __getattr__(self, name):
        if name in COLUMNS:
            return self.columns.get(name)  # None where the batch has it not
        raise AttributeError(f"{name!r} is no column of a batch; types.COLUMNS has {', '.join(COLUMNS)}")


class TrainState(flax.struct.PyTreeNode):
    """All that training changes. No random state is kept: keys are a function of (seed, step)."""

    step: jax.Array  # i32[] updates of the outer loop done
    params: Any
    opt_state: Any
