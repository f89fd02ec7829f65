"""Sampling speed, side by side: python benchmarks/rollout.py [--toy] [slots batch transformers]

One load for all: a Llama of 20M parameters (8 layers, dim 384, vocabulary 8,000, random), 256 prompts of 40 to 120 tokens,
at most 400 new ones, temperature 1, and 61 stop tokens, so that lengths are geometric with a mean of about 130. The samplers:

- slots: `sampling.engine`, 64 slots; what the stages use.
- batch: `sampling.decode`, 64 rows at a time, each batch as long as its longest response.
- transformers: `generate` of torch with the same weights, 64 rows at a time; skipped without torch.

Each runs in a process of its own, once to warm up (compile) and once timed. Prints one JSON line each: tokens of real
responses (with their end token) a second, seconds, steps, peak resident memory in MB (1e6 bytes).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

SIZES = dict(vocab_size=8000, dim=384, num_layers=8, num_heads=6, num_kv_heads=6, head_dim=64, ffn_dim=1024)
LOAD = dict(num=256, shortest=40, longest=120, max_new=400, rows=64, num_ends=61)
TOY = dict(num=24, shortest=4, longest=12, max_new=40, rows=8, num_ends=800)


def make_model():
    import jax

    from reft_jax import config, models

    arch = config.Arch(**SIZES, rope_theta=10000.0, norm_eps=1e-5, tie_embeddings=False, init_std=0.02)
    model = models.Model(arch)
    return model, models.init(model, jax.random.key(0))


def make_prompts(load):
    """Left-padded (tokens, mask), i32 and bool [num, longest]; no prompt holds a stop token."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = np.zeros((load["num"], load["longest"]), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row in range(load["num"]):
        length = rng.integers(load["shortest"], load["longest"] + 1)
        tokens[row, -length:] = rng.integers(load["num_ends"] + 1, SIZES["vocab_size"], length)
        mask[row, -length:] = True
    return tokens, mask


def ends(load):
    return tuple(range(1, load["num_ends"] + 1))


def slots(load, folder):
    import jax
    import numpy as np

    from reft_jax.sampling.engine import Engine
    from reft_jax.types import Prompts

    model, params = make_model()
    tokens, mask = make_prompts(load)
    engine = Engine(
        model, max_prompt=load["longest"], max_new=load["max_new"], num_slots=load["rows"], eos_ids=ends(load), pad_id=0
    )
    prompts = Prompts(tokens, mask, np.arange(len(tokens), dtype=np.int32))

    def sample():
        before = engine.counts["steps"]
        out = engine(params, prompts, jax.random.key(1))
        return int(out.mask.sum()), engine.counts["steps"] - before

    return sample


def batch(load, folder):
    import functools

    import jax
    import numpy as np

    from reft_jax.config import WHOLE
    from reft_jax.sampling import decode
    from reft_jax.types import Prompts

    model, params = make_model()
    tokens, mask = make_prompts(load)
    settings = dict(max_new=load["max_new"], sampling=WHOLE, eos_ids=ends(load), pad_id=0)
    draw = jax.jit(functools.partial(decode.sample, model, **settings))

    def sample():
        count = steps = 0
        for first in range(0, len(tokens), load["rows"]):
            part = slice(first, first + load["rows"])
            index = np.arange(first, first + len(tokens[part]), dtype=np.int32)
            mask_out = np.asarray(draw(params, Prompts(tokens[part], mask[part], index), jax.random.key(1)).mask)
            count, steps = count + int(mask_out.sum()), steps + int(mask_out.sum(1).max())
        return count, steps

    return sample


def transformers(load, folder):
    import torch
    from transformers import LlamaForCausalLM

    from reft_jax import models

    model, params = make_model()
    models.save_hf(folder, model, params)
    tokens, mask = (torch.tensor(x) for x in make_prompts(load))
    theirs = LlamaForCausalLM.from_pretrained(folder).eval()

    def sample():
        count = steps = 0
        for first in range(0, len(tokens), load["rows"]):
            part = slice(first, first + load["rows"])
            with torch.no_grad():
                out = theirs.generate(
                    tokens[part].long(),
                    attention_mask=mask[part].long(),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=load["max_new"],
                    eos_token_id=list(ends(load)),
                    pad_token_id=0,
                )
            new = out[:, load["longest"] :]
            count, steps = count + int((new != 0).sum()), steps + new.shape[1]
        return count, steps

    return sample


SAMPLERS = {"slots": slots, "batch": batch, "transformers": transformers}


def measure(name: str, toy: bool):
    import resource

    with tempfile.TemporaryDirectory() as folder:
        sample = SAMPLERS[name](TOY if toy else LOAD, folder)
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            count, steps = sample()
            times.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    first, again = times
    line = dict(sampler=name, tokens_per_s=round(count / again, 1), tokens=count, steps=steps, seconds=round(again, 2))
    print(
        json.dumps(line | dict(ms_per_step=round(1e3 * again / steps, 1), first_s=round(first, 2), peak_mb=round(peak)))
    )


def main(*arguments):
    if arguments and arguments[0] == "measure":
        return measure(arguments[1], "--toy" in arguments)
    toy = [argument for argument in arguments if argument == "--toy"]
    names = [argument for argument in arguments if argument != "--toy"] or list(SAMPLERS)
    if unknown := sorted(set(names) - set(SAMPLERS)):
        raise SystemExit(f"unknown samplers {', '.join(unknown)}; there are {', '.join(SAMPLERS)}")
    environment = os.environ | dict(JAX_PLATFORMS=os.environ.get("JAX_PLATFORMS", "cpu"))
    for name in names:
        subprocess.run([sys.executable, __file__, "measure", name, *toy], env=environment, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
