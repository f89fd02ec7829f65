"""The divergence from the frozen reference in the loss, by an estimator (GRPO, arXiv 2402.03300, eq. 4; DeepSeek-V3.2, arXiv 2512.02556).

With d = ref_logp - logp of a token: k2 = d^2 / 2, k3 = e^d - d - 1, unbiased = exp(logp - old_logp) k3. An advantage whose `kl.in` is loss
has it (`config.settings.KL`).
"""

import dataclasses

import jax.numpy as jnp

from reft_jax.config.records import setting


def estimate(logp, ref_logp, mask, estimator: str, old_logp=None):
    """f32[B, R] of k1, k2, k3 or unbiased; 0 where mask is False, whatever stands there."""
    ahead = jnp.where(mask, ref_logp - logp, 0.0)
    if estimator == "k1":
        return -ahead
    if estimator == "k2":
        return 0.5 * jnp.square(ahead)
    k3 = jnp.exp(ahead) - ahead - 1.0
    return k3 if estimator == "k3" else jnp.exp(jnp.where(mask, logp - old_logp, 0.0)) * k3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """`weights` of the batch, where it has any, multiply each token's estimate, as they do the policy's loss."""

    coef: float = setting(0, default=0.04)
    estimator: str = setting(one_of=("unbiased", "k2", "k3"), default="k3")

    needs = ("logp",)
    reads = ("ref_logp", "old_logp")
    together = "token"

    def __call__(self, out, batch, mean):
        kl = estimate(out.logp, batch.ref_logp, batch.mask, self.estimator, batch.old_logp)
        told = {"ppo/kl_loss": mean.share(kl)}
        if getattr(batch, "weights", None) is not None:
            kl = kl * jnp.where(batch.mask, batch.weights, 0.0)
        return mean(kl), told
