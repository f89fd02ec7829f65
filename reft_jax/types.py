"""The records that flow between the parts, and the axis letters, once.

B batch, P prompt, R response, T query, S key, L layer, D model, N query heads, K kv heads, H head dim, F ffn, V vocab.
Prompts are left-padded and responses right-padded, so that every RL array is response-aligned, [B, R]: index t is
response token t and the state that emitted it. Masks are bool, True = real.
"""

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
    """What the model says of a batch; None where no loss needs it."""

    logp: jax.Array | None = None  # f32[B, R] of the response tokens
    entropy: jax.Array | None = None  # f32[B, R]
    values: jax.Array | None = None  # f32[B, R]; None without a critic
    right_logits: jax.Array | None = None  # f32[B] of "the answer is right"


class SFTBatch(flax.struct.PyTreeNode):
    prompts: Prompts
    tokens: jax.Array  # i32[B, R] the target: CoT and end-of-sequence
    mask: jax.Array  # bool[B, R]


class PPOBatch(flax.struct.PyTreeNode):
    prompts: Prompts
    tokens: jax.Array  # i32[B, R]
    mask: jax.Array  # bool[B, R]
    old_logp: jax.Array  # f32[B, R]
    old_values: jax.Array | None  # f32[B, R]; None without a critic
    adv: jax.Array  # f32[B, R] scaled as the advantage does
    returns: jax.Array | None  # f32[B, R]; None without a critic
    weights: jax.Array | None = None  # f32[B, R] of the policy loss (truncated importance weights); None = 1
    ref_logp: jax.Array | None = None  # f32[B, R] of the frozen reference, where the loss has the KL to it


class TrainState(flax.struct.PyTreeNode):
    """All that training changes. No random state is kept: keys are a function of (seed, step)."""

    step: jax.Array  # i32[] updates of the outer loop done
    params: Any
    opt_state: Any
