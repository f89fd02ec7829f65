"""Sampling speed, side by side: python benchmarks/rollout.py [--toy] [slots batch transformers tunix vllm]

One load for all: a Llama of 20M parameters (8 layers, dim 384, vocabulary 8,000, random), 256 prompts of 40 to 120
tokens, at most 400 new ones, temperature 1, and 61 stop tokens, so that lengths are geometric with a mean of about 130.
The samplers:

- slots: `sampling.engine`, 64 slots; what the stages use.
- batch: `sampling.decode`, 64 rows at a time, each batch as long as its longest response.
- transformers: `generate` of torch with the same weights, 64 rows at a time; skipped without torch.
- tunix: google-tunix's own sampler (`tunix.generate.sampler`) on its Llama 3 class with the same weights, 64 rows at a
  time, the same stop tokens (it takes several); its class has a fixed RoPE base of 1e6, so it draws other tokens.
  Skipped without the package.
- vllm: vLLM with random weights of its own (`vllm_peer.py`), at most 64 rows at a time; runs with the Python that
  `--vllm=PATH` names, and is skipped without.

`--size=codellama_7b` (any preset), `--dtype=bfloat16`, `--slots=256` (rows at a time for the others), `--num=1024`
prompts, `--prompts=train.jsonl` (prompts from its questions: their tokens under a vocabulary learned from the file;
with --size, random tokens in as many). A preset above 1e9 parameters has random weights of torch's own on its side.
JAX_PLATFORMS=cuda in the environment: on that accelerator, torch too; else on the CPU.

Each runs in a process of its own, once to warm up and once timed. Prints one JSON line each: tokens of real responses
(with their end token) a second, seconds, steps, compile_s (the first run less the second), peak memory in MB (1e6
bytes; the device's, or what was resident where that is a CPU). For slots and batch the roofline of decoding too:
bytes_per_step that must move (all weights once, the keys and values of live positions; `common.decode_bytes`), the
memory's bandwidth as measured in the same process, and the part of it that the whole run reached: bytes_per_step /
bandwidth / seconds per step.
"""

import functools
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks import common  # noqa: E402

# Each sampler is a function (given, load, folder) -> sample, and sample() -> (tokens, mask [num, max_new], steps).


def make_engine(model, load):
    from reft_jax.sampling.engine import Engine

    settings = dict(max_prompt=load.tokens.shape[1], max_new=load.max_new, eos_ids=load.ends, pad_id=0)
    return Engine(model, num_slots=load.slots, **settings)


def prompts_of(load):
    from reft_jax.types import Prompts

    return Prompts(load.tokens, load.mask, np.arange(len(load.tokens), dtype=np.int32))


def slots(given, load, folder):
    import jax

    model, params = common.make_model(given)
    engine = make_engine(model, load)

    def sample():
        before = engine.counts["steps"]
        out = engine(params, prompts_of(load), jax.random.key(1))
        return out.tokens, out.mask, engine.counts["steps"] - before

    return sample


def batch(given, load, folder):
    import jax

    from reft_jax.config.settings import WHOLE
    from reft_jax.sampling import decode

    model, params = common.make_model(given)
    settings = dict(max_new=load.max_new, sampling=WHOLE, eos_ids=load.ends, pad_id=0)
    draw = jax.jit(functools.partial(decode.sample, model, **settings))

    def one(part):
        prompts = jax.tree.map(lambda x: x[part], prompts_of(load))
        out = jax.device_get(draw(params, prompts, jax.random.key(1)))
        return out.tokens, out.mask, int(out.mask.sum(1).max())

    return functools.partial(by_parts, load, one)


def transformers(given, load, folder):
    theirs = common.make_torch(given, folder)

    def one(part):
        with common.autocast(given):
            new = generate(theirs, load, part)
        return new, common.until_end(new, load.ends), new.shape[1]

    return functools.partial(by_parts, load, one)


def generate(theirs, load, part):
    """New tokens i64[rows, at most max_new] of transformers' own `generate`."""
    import torch

    tokens, mask = (torch.tensor(x[part], device=theirs.device).long() for x in (load.tokens, load.mask))
    settings = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=load.max_new, use_cache=True)
    with torch.no_grad():
        out = theirs.generate(tokens, attention_mask=mask, eos_token_id=list(load.ends), pad_token_id=0, **settings)
    return out[:, tokens.shape[1] :].cpu().numpy()


def tunix(given, load, folder):
    from tunix.generate import sampler as tunix_sampler

    model, params = common.make_model(given)
    arch, longest = model.arch, load.tokens.shape[1]
    sizes = tunix_sampler.CacheConfig(longest + load.max_new, arch.num_layers, arch.num_kv_heads, arch.head_dim)
    theirs = tunix_sampler.Sampler(tunix_llama(arch, params), Numbers(), sizes)
    del params

    def one(part):
        texts = [" ".join(map(str, row[real])) for row, real in zip(load.tokens[part], load.mask[part], strict=True)]
        out = theirs(
            texts,
            max_generation_steps=load.max_new,
            max_prompt_length=longest,
            eos_tokens=list(load.ends),
            temperature=1.0,
            top_p=1.0,
            seed=1 + part.start,
        )
        lengths = np.minimum([len(row) + 1 for row in out.tokens], load.max_new)  # it leaves the end token out
        new = np.zeros((len(texts), load.max_new), np.int32)
        for row, tokens in zip(new, out.tokens, strict=True):
            row[: len(tokens)] = tokens
        return new, np.arange(load.max_new) < lengths[:, None], int(lengths.max())

    return functools.partial(by_parts, load, one)


def tunix_llama(arch, params):
    """tunix's Llama 3 of these sizes, around our weights: their shapes are the same."""
    import jax
    from flax import nnx
    from tunix.models.llama3 import model as llama3

    config = llama3.ModelConfig(
        num_layers=arch.num_layers,
        vocab_size=arch.vocab_size,
        embed_dim=arch.dim,
        hidden_dim=arch.ffn_dim,
        num_heads=arch.num_heads,
        head_dim=arch.head_dim,
        num_kv_heads=arch.num_kv_heads,
        rope_theta=int(arch.rope_theta),
        norm_eps=arch.norm_eps,
        weight_tying=arch.tie_embeddings,
    )
    theirs = nnx.eval_shape(lambda: llama3.Llama3(config, rngs=nnx.Rngs(0)))
    theirs.embedder.input_embedding.value = params["embed"]["kernel"]
    theirs.final_norm.w.value = params["norm"]["scale"]
    if not arch.tie_embeddings:
        theirs.lm_head.w.value = params["unembed"]["kernel"]
    for i, layer in enumerate(theirs.layers):
        ours = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        for name in ("q", "k", "v", "o"):
            getattr(layer.attn, f"{name}_proj").w.value = ours["attention"][name]["kernel"]
        for name in ("gate", "up", "down"):
            getattr(layer.mlp, f"{name}_proj").kernel.value = ours["mlp"][name]["kernel"]
        layer.input_layernorm.w.value = ours["attention_norm"]["scale"]
        layer.post_attention_layernorm.w.value = ours["mlp_norm"]["scale"]
    return theirs


class Numbers:
    """A tokenizer whose text is the ids themselves: tunix's sampler takes strings."""

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def bos_id(self):
        return 0  # none is put before a prompt

    def pad_id(self):
        return 0

    def eos_id(self):
        return 1


def vllm(given, load, folder):
    """vLLM's line: tokens, seconds, first (seconds of the first run)."""
    from reft_jax import models

    models.save_config(folder, models.Model(common.make_arch(given), *common.dtypes(given)))
    prompts = [row[real].tolist() for row, real in zip(load.tokens, load.mask, strict=True)]
    what = dict(
        prompts=prompts, max_new=load.max_new, slots=load.slots, ends=list(load.ends), dtype=common.dtypes(given)[1]
    )
    (pathlib.Path(folder) / "load.json").write_text(json.dumps(what))
    peer = pathlib.Path(__file__).with_name("vllm_peer.py")
    out = subprocess.run([given.vllm, peer, folder], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(next(line for line in out.splitlines() if line.startswith('{"tokens"')))


def by_parts(load, one):
    """(tokens, mask, steps) of all prompts, `load.slots` of them at a time by `one`(slice)."""
    num = len(load.tokens)
    tokens, mask, steps = np.zeros((num, load.max_new), np.int64), np.zeros((num, load.max_new), bool), 0
    for first in range(0, num, load.slots):
        part = slice(first, min(first + load.slots, num))
        new, real, count = one(part)
        tokens[part, : new.shape[1]], mask[part, : new.shape[1]], steps = new, real, steps + count
    return tokens, mask, steps


SAMPLERS = {"slots": slots, "batch": batch, "transformers": transformers, "tunix": tunix}


def measure(name: str, given):
    needs = {"transformers": ("torch",), "tunix": ("tunix",)}.get(name, ())
    if common.missing(name, *needs):
        return
    arch = common.make_arch(given)
    if name == "tunix" and arch.family != "llama":
        return print(f"tunix: skipped, {given.size} is no Llama")
    load = common.make_load(given, num=given.num, slots=given.slots)
    line = dict(sampler=name, size=given.size or ("toy" if given.toy else "20M"), dtype=given.dtype, slots=load.slots)
    line |= dict(prompts=len(load.tokens))
    if name == "vllm":
        if not given.vllm:
            return print("vllm: skipped, --vllm=PATH names no Python that has it")
        with tempfile.TemporaryDirectory() as folder:
            took = vllm(given, load, folder)
        line |= dict(tokens_per_s=round(took["tokens"] / took["seconds"], 1), tokens=took["tokens"])
        line |= dict(seconds=round(took["seconds"], 2), compile_s=round(took["first"] - took["seconds"], 2))
        return print(json.dumps(line), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        sample = SAMPLERS[name](given, load, folder)
        (_, mask, steps), first, again = common.twice(sample)
    lengths = mask.sum(1)
    count = int(lengths.sum())
    line |= dict(tokens_per_s=round(count / again, 1), tokens=count, steps=steps)
    line |= dict(seconds=round(again, 2), ms_per_step=round(1e3 * again / steps, 2), compile_s=round(first - again, 2))
    line |= dict(peak_mb=common.peak_mb("torch" if name == "transformers" else "jax"))
    if name in ("slots", "batch"):
        from reft_jax import models

        del sample
        moved = common.decode_bytes(models.Model(arch, *common.dtypes(given)), load.prompt_lengths, lengths, steps)
        speed = common.bandwidth()
        line |= dict(bytes_per_step=round(moved), bandwidth_gb_s=round(speed / 1e9, 1))
        line |= dict(roofline=round(moved / speed / (again / steps), 4))
    print(json.dumps(line), flush=True)


def main(*argv):
    options = common.parser(__doc__, (*SAMPLERS, "vllm"))
    options.add_argument("--slots", type=int, metavar="N", help="responses that decode together")
    options.add_argument("--vllm", default="", metavar="PATH", help="a Python that has vLLM")
    options.add_argument("--num", type=int, metavar="N", help="prompts")
    given = options.parse_args(argv)
    names = common.chosen(given.names, (*SAMPLERS, "vllm"))
    if given.here:
        return measure(names[0], given)
    common.in_processes(__file__, names, given)


if __name__ == "__main__":
    main(*sys.argv[1:])
