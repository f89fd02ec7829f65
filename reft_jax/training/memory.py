"""What a training stage takes of a device's memory, from shapes alone: the first lines print it, and what cannot fit is refused.

`held` is certain: parameters, moments, gradients, the frozen base or reference. `most` adds what a slice of an update keeps for its
backward pass, or what sampling holds (weights laid out for it, caches), whichever is more; `tests/test_memory.py` compares it with the
compiler's own count. `reft_jax.compile` has the exact figures of every function.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax import models
from reft_jax.config.setting import num_parts
from reft_jax.errors import InputError
from reft_jax.losses import reads_reference
from reft_jax.mesh.sharding import device_bytes
from reft_jax.models.attention import on_cpu
from reft_jax.run import overview
from reft_jax.run.overview import amount
from reft_jax.training import state as states

HELPS = (
    "adapters (config.model.lora), optim=adafactor, optim.mu_dtype=bfloat16, model.param_dtype=bfloat16 with optim.rounding=stochastic, "
    "mesh.moments=host, or more devices with mesh.fsdp"
)
LOWER = "model.slice_tokens, model.remat=dots or block, eval_batch_size, model.logits_chunk"


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes of one device in a stage."""

    held: int  # for certain, during an update
    update: int  # the estimate of an update, all that is held included
    sampling: int  # the same while responses are drawn

    @property
    def most(self) -> int:
        return max(self.update, self.sampling)


def check(config, model, unfinished) -> dict[str, Needs]:
    """What each stage that trains needs; InputError where that is certainly more than there is, for one that is unfinished."""
    there, out = available(model.layout), {}
    for name, stage in config.stages:
        if not hasattr(stage, "optim") or "batch_size" not in (stage.rows() if hasattr(stage, "rows") else ()):
            continue  # it trains nothing, or does not say how many rows at a time
        out[name] = needs(config, model, stage)
        if name in unfinished and there and out[name].held > there:
            raise InputError(
                f"config.stages.{name}: its parameters, gradients and moments alone take {amount(out[name].held)} of a device that has "
                f"{amount(there)}; what helps: {HELPS}"
            )
    return out


def told(found: dict[str, Needs], layout) -> list[str]:
    """What the first lines say of it."""
    if not found:
        return []
    there, name = available(layout), max(found, key=lambda name: found[name].most)
    what = "updates" if found[name].update >= found[name].sampling else "sampling"
    lines = [
        f"about {amount(found[name].most)} at most, in {what} of {name}" + (f", of {amount(there)}" if there else "")
    ]
    if there and found[name].most > there:
        lines.append(f"this may be more than fits: lower {LOWER}")
    return lines


def available(layout) -> int:
    """Bytes of memory that a device has (CPUs share their machine's); 0 where it does not say."""
    device = jax.local_devices()[0]
    return overview.device_memory(device) // (len(layout.mesh.local_devices) if device.platform == "cpu" else 1)


def needs(config, model, stage) -> Needs:
    """Of a stage that trains; `model`: the run's, on its layout."""
    layout, data, losses = model.layout, config.data, stage.objective
    tuned = dataclasses.replace(model, lora=config.model.lora, base=config.model.base)
    everything = models.shapes(tuned)
    whole = device_bytes(everything, models.param_shardings(tuned, everything))
    trained, critic = models.only_adapters(everything) if tuned.lora else everything, getattr(stage, "critic", None)
    if critic is not None:
        key = jax.eval_shape(lambda: jax.random.key(0))
        trained = jax.eval_shape(lambda params, key: models.with_critic(model, params, key, critic), trained, key)
    tx = stage.optim(1000)
    places = states.state_shardings(tuned, tx, trained)
    gradient = device_bytes(trained, places.params)
    on_policy = hasattr(stage, "ppo")
    reference = on_policy or reads_reference(losses)
    held = device_bytes(states.eval_state(tx, trained), places) + whole * (bool(tuned.lora) or reference)

    sizes, multiple, length = stage.rows(), layout.parts("batch"), data.max_prompt + data.max_response
    most, least = model.slice_tokens if stage.divisible else 0, stage.how.get("accumulate", 1)
    rows = stage.ppo.minibatch_size if on_policy else sizes["batch_size"] * least
    parts = num_parts(rows, length, most, least=least, multiple=multiple)
    part = max(rows // parts // multiple, 1)
    logits = 12 * part * min(model.logits_chunk, data.max_response) * model.num_rows // layout.parts("vocab")
    update = gradient * (1 + (parts > 1)) + activations(model, part, length) + logits

    slots = [sizes[name] for name in ("eval_batch_size", "sample_batch_size") if name in sizes]
    slots += [stage.batch_size * stage.num_samples] if on_policy else []
    cache = jax.eval_shape(lambda: models.empty_cache(dataclasses.replace(model, layout=None), 1, length))
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in (*cache.k, *cache.v))
    laid = whole * jnp.dtype(model.compute_dtype).itemsize // jnp.dtype(model.param_dtype).itemsize
    sampling = laid + cache * -(-max(slots) // multiple) if slots else 0
    return Needs(held + gradient, held + update, held + sampling)


def activations(model, rows: int, length: int) -> int:
    """Bytes that `rows` sequences keep for the backward pass of all blocks, and one block's own."""
    arch = model.arch
    q, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    scores = arch.num_heads * length if models.attention_path(model)[0] == "xla" else 0
    block = 8 * arch.dim + (4 if arch.gated else 3) * arch.ffn_dim + 2 * (q + 2 * kv) + scores
    dots = arch.dim + 2 * q + 2 * kv + (2 if arch.gated else 1) * arch.ffn_dim
    kept = dict(none=block, dots=dots, block=arch.dim)[model.remat] * arch.num_layers
    beside = 0 if model.remat == "none" else block
    return rows * length * (kept + beside) * (4 if on_cpu(model) else jnp.dtype(model.compute_dtype).itemsize)
