from tests.oracles import advantages


def advantage(record, rollout):
    """s - mean of the question's scores, each less its response's KL where that is in the reward."""

    def of(scores):
        return [s - sum(scores) / len(scores) for s in scores]

    return advantages.of_responses(rollout, of, record.kl), None
