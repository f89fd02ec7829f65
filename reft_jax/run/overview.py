"""The first lines of a run: what it runs on, what it trains, on how much data, and what is left to do."""

import dataclasses
import math
import os
import pathlib

import jax

from reft_jax import models
from reft_jax.data import tokenizer as tokenizers
from reft_jax.mesh.sharding import device_bytes
from reft_jax.run import checkpoint


def first_lines(run, about: dict) -> str:
    """What main prints before the first stage; `about` is what config.json says."""
    arch, layout, data = run.model.arch, run.layout, run.config.data
    shapes = models.shapes(run.model)
    places = models.param_shardings(run.model, shapes)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    each = device_bytes(shapes, places)
    devices, num = layout.mesh.devices.flat, layout.mesh.devices.size
    mesh = ", ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
    share = f" ({amount(each)} a device)" if each != whole else ""
    splits, adapters = run.splits, ""
    if run.tuned.lora is not None:
        trained = models.only_adapters(models.shapes(dataclasses.replace(run.model, lora=run.tuned.lora)))
        adapters = f" ({sum(leaf.size for leaf in jax.tree.leaves(trained)):,} more in adapters, which are trained)"
    tokens = f" (the tokenizer has {run.model.num_ids:,})" if run.model.num_ids else ""
    begins = tokenizers.spelt(run.tokenizer, tokenizers.bos_ids(run.tokenizer, data.bos))
    begins = f"begins: {begins}, " if begins else ""
    rows = [
        ("run", f"{run.workdir}, commit {(about['git_commit'] or 'unknown')[:12]}, jax {about['packages']['jax']}"),
        ("devices", f"{num} x {devices[0].device_kind}, {memory(jax.local_devices()[0])}; mesh: {mesh}"),
        (
            "model",
            f"{run.config.model.name}: {count:,} parameters{adapters}, {amount(whole)} in {run.model.param_dtype}{share}, computes in "
            f"{run.model.compute_dtype}",
        ),
        (
            "tokens",
            f"vocabulary {arch.vocab_size:,}{tokens}, {begins}ends: {tokenizers.spelt(run.tokenizer, run.eos_ids)}",
        ),
        (
            "data",
            f"{data.name or data.task} ({data.cot}): {len(splits.train):,} train, {len(splits.dev):,} dev, {len(splits.test):,} test questions",
        ),
    ]
    rows += [("" if i else "memory", line) for i, line in enumerate(about["memory"])]
    for i, (name, stage) in enumerate(run.config.stages):
        rows.append(("" if i else "stages", f"{name}: {state(run, name, stage)}"))
    rows += [("note", note) for note in about["notes"]]
    return "\n".join(f"{key:<8} {value}" for key, value in rows)


def state(run, name: str, stage) -> str:
    """What is done of a stage."""
    folder = run.folder(name)
    if run.done(name):
        step = run.facts(name).get("last_step")
        return "done before" if step is None else f"done before ({step:,} steps)"
    if hasattr(stage, "left"):
        return stage.left(run)
    if (last := checkpoint.locate(folder)) is not None:
        return f"goes on after step {int(last.name):,}"
    if parts := len(list(folder.glob("drawn/*.jsonl"))):
        return f"goes on with its samples ({parts} parts are drawn)"
    return "to do"


def chosen(run, name: str) -> str:
    """What to say of the checkpoint that a finished stage chose."""
    facts = run.facts(name)
    if facts.get("selected_on") is None:
        return ""
    return f"; step {facts['selected_step']:,} of {facts['last_step']:,} is the best on {facts['selected_on']} ({facts['best_accuracy']:.3f})"


def memory(device) -> str:
    """How much memory a device has; on a CPU, the machine or the container."""
    there = device_memory(device)
    return f"{amount(there)} {'of memory' if device.platform == 'cpu' else 'each'}" if there else "memory unknown"


def device_memory(device) -> int:
    """Bytes of it; 0 where the device does not say."""
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(there, int(text)) if text.isdigit() else there


def amount(num_bytes: float) -> str:
    """Bytes as 1.6 MB (powers of 1000)."""
    power = min(int(math.log10(max(num_bytes, 1)) // 3), 4)
    return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
