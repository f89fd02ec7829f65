"""What rollout.py and update.py share: options, processes, a model and a load of some size, what must be moved or
computed for it, and what the machine can do at most.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = dict(vocab_size=8000, dim=384, num_layers=8, num_heads=6, num_kv_heads=6, head_dim=64, ffn_dim=1024)
SIZES |= dict(rope_theta=10000.0, norm_eps=1e-5, tie_embeddings=False, init_std=0.02)
TOY_SIZES = SIZES | dict(vocab_size=512, dim=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=32, ffn_dim=160)
# end_share: the part of the vocabulary that ends a response; random weights then draw lengths of about 1 / end_share.
LOAD = dict(num=256, slots=64, shortest=40, longest=120, max_new=400, end_share=61 / 8000)
TOY_LOAD = dict(num=24, slots=8, shortest=4, longest=12, max_new=40, end_share=0.1)
OWN_WEIGHTS = 10**9  # parameters; above it torch makes random weights of its own instead of reading ours from a file


@dataclasses.dataclass(frozen=True)
class Load:
    """Prompts, and how they are answered."""

    tokens: np.ndarray  # i32[num, P] left-padded
    mask: np.ndarray  # bool[num, P]
    max_new: int
    slots: int  # responses that decode together
    ends: tuple[int, ...]  # tokens that end a response; 0 pads

    @property
    def prompt_lengths(self):
        return self.mask.sum(1)


# ------------------------------------------------------------------ options and processes


def parser(description: str, names) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `names` = what can be measured, all of it unless named."""
    options = argparse.ArgumentParser(description=description.split("\n")[0])
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    options.add_argument("--toy", action="store_true", help="a few seconds on a CPU")
    options.add_argument("--size", default="", metavar="PRESET", help="of configs/models.py; default: a Llama of 20M")
    options.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "mixed"),
        help="of weights and products; mixed: float32 weights, bfloat16 products (torch's autocast)",
    )
    options.add_argument("--prompts", default="", metavar="FILE", help="JSON list or lines, each with a `question`")
    options.add_argument("--here", action="store_true", help="measure the one NAME in this process")
    return options


def in_processes(file: str, names, given, *more: str) -> list[dict]:
    """Measures each name in a process of its own, which leaves the whole machine to the others; their lines, parsed.
    Where one fails, the others still run, and the exit code is 1. On an accelerator only if JAX_PLATFORMS names it."""
    lines, failed = [], []
    options = {key: value for key, value in vars(given).items() if value and key not in ("names", "here")}
    options = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
    for name in names:
        environment = {"JAX_PLATFORMS": "cpu", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        environment |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        if name in ("transformers", "torch"):  # jax makes their weights, and must leave them the rest
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        command = [sys.executable, file, *options, "--here", *more, name]
        done = subprocess.run(command, env=environment | os.environ, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
        for line in done.stdout.splitlines():
            print(line, flush=True)
            if line.startswith("{"):
                lines.append(json.loads(line))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    return lines


def about(command: str, hardware: str):
    """Prints the line that results begin with: what was run, when, where and on which versions."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    found = {name for name in ("jax", "flax", "torch", "transformers") if importlib.util.find_spec(name)}
    packages = [f"Python {platform.python_version()}"]
    packages += [f"{name} {importlib.metadata.version(name)}" for name in sorted(found)]
    line = dict(command=command, date=str(datetime.date.today()), hardware=hardware, commit=commit.strip() or "unknown")
    print(json.dumps(line | dict(packages=", ".join(packages))))


def chosen(names, known) -> list[str]:
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(f"unknown {', '.join(unknown)}; there are {', '.join(known)}")
    return list(names) or list(known)


def missing(name: str, *packages: str) -> bool:
    """Whether one of the packages is not there, which is said in one line."""
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        print(f"{name}: skipped, no package {absent[0]}")
    return bool(absent)


def twice(work):
    """(result, seconds of the first run, seconds of the second, which need not compile)."""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - begin)
    return result, *times


# ------------------------------------------------------------------ the model


def make_arch(given):
    from reft_jax.config import records, settings
    from reft_jax.configs.models import PRESETS

    if not given.size:
        return settings.Arch(**TOY_SIZES if given.toy else SIZES)
    if given.size not in PRESETS:
        raise SystemExit(f"--size={given.size} is no preset of configs/models.py: {', '.join(PRESETS)}")
    keys = PRESETS[given.size]
    keys = keys | dict(vocab_size=keys["vocab_size"] or SIZES["vocab_size"])
    return records.build(settings.Arch, keys, f"--size={given.size}")


def dtypes(given) -> tuple[str, str]:
    """Of the weights and of the products."""
    return ("float32", "bfloat16") if given.dtype == "mixed" else (given.dtype, given.dtype)


def make_model(given, *, layout=None, remat="none"):
    """(model, random parameters), born on the device in the dtype asked for."""
    import jax

    from reft_jax import models
    from reft_jax.run import jax_settings

    jax_settings.multiply_in(dtypes(given)[1])
    model = models.Model(make_arch(given), *dtypes(given), remat=remat, layout=layout)
    return model, models.init(model, jax.random.key(0))


def reft_stage(rows: int, minibatch: int, *, lr: float, kl_coef: float):
    """A reft stage with the paper's settings, `rows` questions a step."""
    from reft_jax.config import records
    from reft_jax.configs import common as configs
    from reft_jax.stages import reft

    sizes = dict(batch_size=rows, minibatch_size=minibatch)
    tree = configs.reft("random", 1, configs.optim(lr), **sizes, **configs.method(kl_coef=kl_coef))
    del tree["kind"]
    return records.build(reft.Stage, tree, "the benchmark's stage")


def torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and os.environ["JAX_PLATFORMS"] != "cpu" else "cpu"


def make_torch(given, folder):
    """transformers' model of the same sizes, dtype and weights (`folder` holds them then), on CUDA if there is one.
    Over OWN_WEIGHTS parameters the weights are random ones that torch makes on its device."""
    import torch
    import transformers

    from reft_jax import models

    transformers.utils.logging.disable_progress_bar()
    dtype, device = getattr(torch, dtypes(given)[0]), torch_device()
    model = models.Model(make_arch(given), *dtypes(given))
    if num_params(model) > OWN_WEIGHTS:
        pathlib.Path(folder).mkdir(exist_ok=True)
        models.save_config(folder, model)
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device(device):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    if not (pathlib.Path(folder) / "config.json").exists():
        models.save_hf(folder, *make_model(given))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def autocast(given):
    """A context in which torch multiplies in bfloat16, if --dtype=mixed."""
    import torch

    return torch.autocast(torch_device(), torch.bfloat16, enabled=given.dtype == "mixed")


def num_params(model) -> int:
    import jax

    from reft_jax import models

    return sum(leaf.size for leaf in jax.tree.leaves(models.shapes(model)))


# ------------------------------------------------------------------ the load


def make_load(given, *, num=None, slots=None) -> Load:
    """Random prompts, or the questions of --prompts: for the small model their tokens under a vocabulary learned from
    the file, else random tokens in those lengths."""
    settings = TOY_LOAD if given.toy else LOAD
    num, slots = num or settings["num"], slots or settings["slots"]
    vocab_size = make_arch(given).vocab_size
    num_ends = round(settings["end_share"] * vocab_size)
    rng, rows = np.random.default_rng(0), None
    if given.prompts:
        rows = read_questions(given.prompts, num, SIZES["vocab_size"] if given.size else vocab_size)
        lengths = [len(row) for row in rows]
    else:
        lengths = rng.integers(settings["shortest"], settings["longest"] + 1, num)
    if rows is None or given.size:
        rows = [rng.integers(num_ends + 1, vocab_size, length) for length in lengths]
    longest = max(lengths) if given.prompts else settings["longest"]
    tokens, mask = np.zeros((num, longest), np.int32), np.zeros((num, longest), bool)
    for i, row in enumerate(rows):
        tokens[i, longest - len(row) :], mask[i, longest - len(row) :] = row, True
    return Load(tokens, mask, settings["max_new"], slots, tuple(range(1, num_ends + 1)))


def read_questions(path, num: int, vocab_size: int) -> list[list[int]]:
    """The tokens of the file's first `num` questions, under a byte-level BPE vocabulary learned from all of them."""
    from reft_jax.data import files, reader, tokenizer

    texts = [reader.Row(*raw).text("question") for raw in files.read_raw(path)]
    if len(texts) < num:
        raise SystemExit(f"{path} holds {len(texts)} questions; {num} are asked for (--num)")
    return tokenizer.encode_batch(tokenizer.build_bpe(texts, vocab_size), texts[:num])


def until_end(tokens, ends):
    """bool, like tokens [B, R]: True through the first token of `ends`, or everywhere."""
    ended = np.isin(tokens, ends).cumsum(1)
    return np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], axis=1) == 0


# ------------------------------------------------------------------ what must be moved, what must be computed


def decode_bytes(model, prompt_lengths, lengths, steps: int) -> float:
    """Bytes that must move in a decode step, the mean over `steps` of them, for responses of `lengths` tokens.

    Every weight once in the dtype it is read in (of an untied embedding only the rows of the step's tokens), and the
    keys and values of every position that a live response holds: the step that takes in response token t of a prompt of
    p reads p + t of them and writes one, in the compute dtype (a CPU holds them in float32). Layers with a window hold no
    more than that.
    """
    import jax
    import jax.numpy as jnp

    from reft_jax import models

    arch, size = model.arch, jnp.dtype(model.compute_dtype).itemsize
    weights = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(models.shapes(model)):
        looked_up = path[0].key == "positions" or (path[0].key == "embed" and not arch.tie_embeddings)
        if not looked_up:
            weights += leaf.size * (size if path[-1].key == "kernel" else leaf.dtype.itemsize)
    held = np.concatenate([p + 1 + np.arange(n) for p, n in zip(prompt_lengths, lengths, strict=True)])
    positions = sum(int((np.minimum(held, w) if w else held).sum()) for w in arch.windows or (0,) * arch.num_layers)
    tables = 1 + (arch.positions == "learned")
    rows = arch.dim * size * tables * len(held)
    return weights + (rows + 2 * arch.num_kv_heads * arch.head_dim * size * positions) / steps


def update_flops(model, prompt_lengths, lengths, epochs: int) -> float:
    """Floating-point operations of one PPO update; `update.py` says how they are counted."""
    from reft_jax.compile.programs import forward_flops

    rows = zip(np.asarray(prompt_lengths).tolist(), np.asarray(lengths).tolist(), strict=True)
    forward = sum(forward_flops(model.arch, p + n, (p + n + 1) / 2, logits=n) for p, n in rows)
    return forward * (2 + 3 * epochs)


# ------------------------------------------------------------------ what the machine can do, and what was used of it


def peak_mb(library: str) -> int:
    """Most memory that was used: on the device of `library` (jax, torch), or what was resident where that is a CPU."""
    import resource

    if library == "torch" and torch_device() == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e6)
    if library == "jax":
        import jax

        stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
        if stats:
            return round(stats["peak_bytes_in_use"] / 1e6)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def _best(work, repeats=10) -> float:
    """Seconds of the fastest run; `work` waits for its result."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def bandwidth() -> float:
    """Bytes a second between jax's device and its memory: the best of sums, products with a vector (both only read) and
    copies of an array far larger than any cache."""
    import jax
    import jax.numpy as jnp

    side = 2**13 if jax.default_backend() == "cpu" else 2**14  # 256 MB, 1 GB
    x, vector = jnp.ones((side, side)), jnp.ones(side)
    dot = jax.jit(lambda x, y: jax.lax.dot(x, y))
    total, copy = jax.jit(jnp.sum), jax.jit(lambda x: x + 1)
    read = min(_best(lambda: total(x).block_until_ready()), _best(lambda: dot(x, vector).block_until_ready()))
    return max(x.nbytes / read, 2 * x.nbytes / _best(lambda: copy(x).block_until_ready()))


def peak_flops(library: str, dtype: str) -> float:
    """Operations a second of a large matrix product of jax or torch, in the precision that the model uses."""
    if library == "torch":
        import torch

        side = 8192 if torch_device() == "cuda" else 2048
        x = torch.randn(side, side, device=torch_device()).to(getattr(torch, dtype))

        def work():
            return (x @ x)[0, 0].item()
    else:
        import jax

        side = 2048 if jax.default_backend() == "cpu" else 8192
        x, product = jax.random.normal(jax.random.key(0), (side, side), dtype), jax.jit(lambda x: x @ x)

        def work():
            product(x).block_until_ready()

    return 2 * side**3 / _best(work)
