"""What the gold costs a pretrained model, by how its prompts begin and where programs are cut (`data/prompts.py`):

    python benchmarks/gold_nats.py DIR FILE TASK program|nl [records]

DIR: a Hugging Face directory, or what else `model=` takes. The first `records` (100) of FILE are asked as a rollout asks them, and one JSON line for
each config.data.bos and line_end that differ for DIR's tokenizer says what its gold has: tokens, and
negative log-likelihood in nats, EOS included.
"""

import dataclasses
import itertools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
LENGTH = 64  # prompt and gold are padded to a multiple of it


def main(directory, file, task, cot, records=100):
    import jax
    import numpy as np

    from reft_jax import models
    from reft_jax.config import choices, settings
    from reft_jax.data import files, prompts
    from reft_jax.data import tokenizer as tokenizers

    folder = models.resolve(directory)
    tokenizer, (model, params) = tokenizers.load(folder), models.load_hf(folder)
    data = settings.Data(task=task, cot=cot, bos="off", line_end="prefix")
    read = choices.load("tasks", task)().read(files.read_raw(file), data, split="train")[: int(records)]

    @jax.jit
    def logp(params, tokens, mask):
        hidden, _ = models.forward(model, params, tokens, models.positions_of(mask), mask)
        return models.token_logp(model, params, hidden[:, :-1], tokens[:, 1:])[0][0]

    begins = ("off", "on") if tokenizers.puts_bos(tokenizer) else ("off",)
    for bos, line_end in itertools.product(begins, ("prefix", "rest") if cot == "program" else ("prefix",)):
        num, nats = 0, 0.0
        for row in prompts.encode_all(
            tokenizer, read, dataclasses.replace(data, bos=bos, line_end=line_end), purpose="rollout"
        ):
            ids = row.prompt + row.response
            tokens = np.zeros((1, -(-len(ids) // LENGTH) * LENGTH), np.int32)
            tokens[0, : len(ids)] = ids
            found = logp(params, tokens, np.arange(tokens.shape[1])[None] < len(ids))
            nats -= float(np.asarray(found)[len(row.prompt) - 1 : len(ids) - 1].sum())
            num += len(row.response)
        line = dict(directory=directory, records=len(read), bos=bos, line_end=line_end, tokens_a_record=num / len(read))
        print(json.dumps(line | dict(nats_a_record=nats / len(read), nats_a_token=nats / num)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
