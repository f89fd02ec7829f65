"""The divergence from the frozen reference in the loss, by an estimator (GRPO, arXiv 2402.03300, eq. 4; DeepSeek-V3.2, arXiv 2512.02556).

With d = ref_logp - logp of a token: k2 = d^2 / 2, k3 = e^d - d - 1, unbiased = exp(logp - old_logp) k3. Over the policy's own samples
unbiased and k2 have the gradient of KL(policy || reference); that of k3 is KL(reference || policy)'s. An advantage whose `kl.in` is loss has it
(`KL`).
"""

import dataclasses

import jax.numpy as jnp

from reft_jax.config.setting import setting


def estimate(logp, ref_logp, mask, estimator: str, old_logp=None):
    """f32[B, R] of k1, k2, k3 or unbiased; 0 where mask is False, whatever stands there."""
    ahead = jnp.where(mask, ref_logp - logp, 0.0)
    if estimator == "k1":
        return -ahead
    if estimator == "k2":
        return 0.5 * jnp.square(ahead)
    k3 = jnp.exp(ahead) - ahead - 1.0
    return k3 if estimator == "k3" else jnp.exp(jnp.where(mask, logp - old_logp, 0.0)) * k3


@dataclasses.dataclass(frozen=True)
class KL:
    """An advantage's setting: the divergence of the policy from the frozen reference.

    With d = log p_ref - log p of a token (Schulman, "Approximating KL divergence", 2020): k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1.

    reward: a token's reward is less coef x k1, k2 or k3. loss: coef times the mean of k2, k3 or, unbiased, k3 weighted by the ratio to the
    policy that sampled (arXiv 2512.02556) is added to the loss. unbiased is what pulls by the gradient of KL(policy || reference): in the
    reward, where the policy gradient is taken, k1.
    """

    where: str = setting(key="in", one_of=("reward", "loss", "off"), default="reward")
    coef: float = setting(0, default=0.01)
    estimator: str = setting(one_of=("unbiased", "k1", "k2", "k3"), default="unbiased")

    def check(self):
        if self.where == "loss" and self.estimator == "k1":
            yield "estimator", "the gradient of k1 in the loss is 0 on average; legal there are unbiased, k2, k3"

    @property
    def in_reward(self) -> bool:
        return self.where == "reward"

    @property
    def in_loss(self) -> bool:
        return self.where == "loss" and self.coef > 0

    @property
    def note(self) -> str:
        """What is said of it when a run begins; "" for nothing."""
        if not self.in_loss or self.estimator != "k3":
            return ""
        return (
            "kl.estimator=k3 in the loss, as in GRPO's paper, pulls by the gradient of KL(reference || policy); unbiased has that of "
            "KL(policy || reference)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """`weights` of the batch, where it has any, multiply each token's estimate, as they do the policy's loss."""

    coef: float = setting(0, default=0.04)
    estimator: str = setting(one_of=("unbiased", "k2", "k3"), default="unbiased")

    needs = ("logp",)
    reads = ("ref_logp", "old_logp")
    together = "token"

    def __call__(self, out, batch, mean):
        kl = estimate(out.logp, batch.ref_logp, batch.mask, self.estimator, batch.old_logp)
        told = {"ppo/kl_loss": mean.share(kl)}
        if getattr(batch, "weights", None) is not None:
            kl = kl * jnp.where(batch.mask, batch.weights, 0.0)
        return mean(kl), told
