"""What ReFT learns from a step's graded responses (arXiv 2401.08967, section 3.2).

Log-probs and values by the training forward, of the policy and of the frozen reference -> KL-penalised rewards and advantages -> ppo.epochs
passes of clipped updates over fresh permutations of the responses.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax import masked
from reft_jax.config.setting import divides, setting
from reft_jax.losses import reads_reference
from reft_jax.losses.policy import importance
from reft_jax.training.scoring import make_score
from reft_jax.training.update import host, make_update, passes
from reft_jax.types import Batch, Rollout


@dataclasses.dataclass(frozen=True)
class PPO:
    """How the responses of a step are learnt: in passes over all of them, a minibatch at a time."""

    minibatch_size: int = setting(1)
    epochs: int = setting(1, default=2)
    accumulate: int = setting(1, default=1)
    # What is done about samples of another distribution than the trained policy's. none: such settings are refused; temper: the
    # policy (and the reference) is the tempered one in scoring too; importance: tokens are weighted by min(p / q, importance_cap).
    correction: str = setting(one_of=("none", "temper", "importance"), default="none")
    importance_cap: float = setting(above=0, default=2.0)

    def check(self):
        yield from divides(self.accumulate, self.minibatch_size, "minibatch_size")

    @property
    def part_size(self) -> int:
        """Sequences that are in the forward pass together."""
        return self.minibatch_size // self.accumulate


@dataclasses.dataclass(frozen=True)
class Learner:
    """The compiled functions of a step: `scoring.make_score`, `make_advantages` and `update.make_update`."""

    ppo: PPO
    score: Callable
    advantages: Callable
    update: Callable

    def minibatches(self, key, num_rows: int) -> np.ndarray:
        """i32[N, minibatch] rows: a permutation of all for each epoch."""
        orders = [jax.random.permutation(jax.random.fold_in(key, i), num_rows) for i in range(self.ppo.epochs)]
        return np.concatenate(orders).reshape(-1, self.ppo.minibatch_size)

    def learn(self, state, rollout: Rollout, minibatches, packings):
        """(state, Batch, kl f32[B], metrics on the host) of an update on each minibatch."""
        batch, seen, kl = self.advantages(rollout)
        state, learnt = passes(self.update, state, batch, minibatches, packings)
        return state, batch, kl, host(seen) | update_metrics(jax.device_get(learnt))


def make_learner(model, tx, params, stage, frozen, reference, *, length: int) -> Learner:
    """As a reft stage's settings say. params: what is trained; frozen: what else the policy has; reference: (model, parameters); length: how
    long a response may be."""
    ref_model, _ = reference
    score = make_score(model, ref_model, temperature=stage.temperature, most=stage.ppo.part_size)
    advantages = make_advantages(
        stage.advantage, importance_cap=stage.importance_cap, keep_reference=stage.keeps_reference
    )
    how = dict(name="ppo", length=length, frozen=frozen) | stage.how
    how |= dict(reference=reference) if reads_reference(stage.objective) else {}
    return Learner(stage.ppo, score, advantages, make_update(model, tx, params, stage.objective, **how))


def make_advantages(advantage, *, importance_cap: float = 0.0, keep_reference: bool = False):
    """Rollout -> (Batch, metrics, kl f32[B]) by a record of `advantages/`.

    importance_cap > 0: the batch has `policy.importance` as its weights. keep_reference: it has ref_logp, for losses that read it.
    """

    def advantages(rollout: Rollout):
        mask, scores, logp, ref_logp = rollout.mask, rollout.scores, rollout.logp, rollout.ref_logp
        adv, returns, told = advantage(rollout)
        kl = masked.total(logp - ref_logp, mask, axis=1)
        gap = jnp.where(mask, jnp.abs(rollout.sample.logp - logp), 0.0)
        metrics = {
            "reward/mean": (scores if scores.ndim == 1 else masked.total(scores, mask, axis=1)).mean(),
            "kl/mean": kl.mean(),
            "entropy/mean": masked.mean(rollout.entropy, mask),
            "sample/logp_gap_mean": masked.mean(gap, mask),
            "sample/logp_gap_max": gap.max(),
        } | told
        columns = dict(old_logp=logp, adv=adv)
        if returns is not None:
            columns |= dict(old_values=rollout.values, returns=returns)
        if keep_reference:
            columns["ref_logp"] = ref_logp
        if importance_cap:
            columns["weights"] = importance(logp, rollout.sample.logp, mask, cap=importance_cap)
            capped = (columns["weights"] >= importance_cap).astype(jnp.float32)
            metrics |= {
                "ppo/importance_mean": masked.mean(columns["weights"], mask),
                "ppo/importance_capped": masked.mean(capped, mask),
            }
        return Batch(rollout.prompts, rollout.sample.tokens, mask, columns), metrics, kl

    return jax.jit(advantages)


def update_metrics(updates: list[dict]) -> dict:
    """Means over the step's updates; the first update's ratio error is apart, since its ratios must be 1."""
    out = {key: float(np.mean([update[key] for update in updates])) for key in updates[0] if key != "ppo/ratio_error"}
    if "ppo/ratio_error" not in updates[0]:  # losses without a ratio
        return out
    errors = [float(update["ppo/ratio_error"]) for update in updates]
    return out | {"ppo/first_ratio_error": errors[0], "ppo/ratio_error_max": max(errors)}
