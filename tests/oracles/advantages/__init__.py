import math

import numpy as np

from tests import reference


def paid(rollout, kl):
    """The score at the last token; where the KL is in the reward, less coef times k1, k2 or k3 of each token (Schulman 2020)."""
    rewards = reference.token_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, kl_coef=0.0)
    for b, real in enumerate(reference.rows_of(rollout.mask) if kl.where == "reward" else ()):
        for t in real:
            log_r = float(rollout.ref_logp[b, t]) - float(rollout.logp[b, t])
            k1, k2, k3 = -log_r, log_r**2 / 2, math.exp(log_r) - 1 - log_r
            rewards[b, t] -= kl.coef * {"unbiased": k1, "k1": k1, "k2": k2, "k3": k3}[kl.estimator]
    return rewards


def of_responses(rollout, of, kl=None):
    """Every token of a response has what `of` makes of its question's scores, from each of which the response's KL is taken."""
    rewards = (
        reference.token_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, kl_coef=0.0)
        if kl is None
        else paid(rollout, kl)
    )
    scores, k, out = rewards.sum(1), rollout.group_size, np.zeros(rewards.shape)
    for first in range(0, len(scores), k):
        for i, a in enumerate(of(scores[first : first + k].tolist())):
            for t in reference.rows_of(rollout.mask)[first + i]:
                out[first + i, t] = a
    return out
