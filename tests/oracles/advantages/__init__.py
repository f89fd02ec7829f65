import numpy as np

from tests import reference


def of_responses(rollout, of, *, kl_coef: float):
    """Every token of a response has what `of` makes of its question's scores, from each of which the response's KL is taken."""
    rewards = reference.token_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, kl_coef=kl_coef)
    scores, k, out = rewards.sum(1), rollout.group_size, np.zeros(rewards.shape)
    for first in range(0, len(scores), k):
        for i, a in enumerate(of(scores[first : first + k].tolist())):
            for t in reference.rows_of(rollout.mask)[first + i]:
                out[first + i, t] = a
    return out
