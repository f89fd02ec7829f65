from tests.oracles import advantages


def advantage(record, rollout):
    """s - the mean of the question's other scores, each less its response's KL."""

    def of(scores):
        return [s - (sum(scores) - s) / (len(scores) - 1) for s in scores]

    return advantages.of_responses(rollout, of, record.kl), None
