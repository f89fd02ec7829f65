"""Attention: plain XLA against the kernels of `reft_jax/models/attention.py`. One JSON line each.

    python benchmarks/attention.py [--toy]    # on one GPU or TPU: milliseconds at the heads of CodeLlama 7B, in bfloat16
    python benchmarks/attention.py compile [program ...]    # no TPU, only its compiler (pip install libtpu)

The first times one layer: `training`, forward and backward of 8 rows of 700 tokens, and `decoding`, one token of 64 slots 1,280
wide whose lengths are spread evenly (a loop of 32 tokens over caches that stay where they are). `--toy` is for a CPU, where
the kernels are interpreted and times mean nothing.

The second compiles whole programs for TPU v5e chips and prints the compiler's counts for one of them: temporary memory,
arguments (weights, optimizer, cache) and bytes that instructions read and write, where a kernel's operands count once, and so
does the body of the loop over layers. `layer`: one layer's attention of CodeLlama 7B, 64 rows of 700 tokens, forward and
backward, over 8 chips; `score` and `ppo`: its whole steps over 16 chips, float32 parameters, bfloat16 products, remat=block;
`decode`: the slot engine's loop over 4 of its layers, heads over 8 chips, 64 slots 1,280 wide. `small-` is Qwen 2.5 1.5B with 64
rows of 384 tokens over 8 chips; `small-decode` is Llama 3 8B. results/attention_v5e_compiled.jsonl has what came out.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

PROGRAMS = tuple(size + what for what in ("layer", "decode", "score", "ppo") for size in ("", "small-"))
WAYS = ("xla", "kernel")
SHAPES = dict(rows=8, length=700, slots=64, width=1280, heads=32, head_dim=128, tokens=32, repeats=10)
TOY = dict(rows=2, length=40, slots=4, width=48, heads=2, head_dim=32, tokens=2, repeats=1)


def a_preset(name, **changes):
    from reft_jax.config import records, settings
    from reft_jax.configs.models import PRESETS

    return records.build(settings.Arch, PRESETS[name] | changes, name)


def a_layout(devices, fsdp, tensor):
    from reft_jax.config import settings
    from reft_jax.mesh import sharding

    return sharding.make_layout(settings.Mesh(-1, fsdp, tensor), devices)


# ------------------------------------------------------------------ times on a device


def timed(function, repeats):
    """Seconds of a call, the median; the first, which compiles, does not count."""
    import jax
    import numpy as np

    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def gradients(model):
    """(queries, keys, values, real) -> gradients of a loss on one layer's attention."""
    import jax
    import jax.numpy as jnp

    from reft_jax.models import attention

    def loss(q, k, v, real):
        places = jnp.arange(real.shape[1])
        visible = real[:, None] & (places[None] <= places[:, None])[None]
        see = dict(visible=visible, real=real, layer=0, scale=q.shape[-1] ** -0.5)
        return jnp.square(attention.attend(model, q, k, v, **see)[0].astype(jnp.float32)).mean()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def training(model, shapes):
    """() -> gradients at random queries, keys and values of left-padded rows."""
    import jax
    import jax.numpy as jnp

    rows, length, heads, size = (shapes[name] for name in ("rows", "length", "heads", "head_dim"))
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (rows, length, heads, size), jnp.bfloat16) for key in keys)
    real = jnp.arange(length)[None] >= (jnp.arange(rows) * length // (2 * rows))[:, None]
    return functools.partial(gradients(model), q, k, v, real)


def decoding(model, shapes):
    """() -> caches after some tokens; they are donated from call to call."""
    import jax
    import jax.numpy as jnp

    from reft_jax import models
    from reft_jax.models import attention

    num, width, heads, size = (shapes[name] for name in ("slots", "width", "heads", "head_dim"))
    start = (jnp.arange(num) * (width - shapes["tokens"]) // num).astype(jnp.int32)
    cache = models.empty_cache(model, num, width)
    state = [cache.k[0], cache.v[0]]
    x = jax.random.normal(jax.random.key(0), (num, 1, heads, size), jnp.bfloat16)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(k, v):
        def one(i, state):
            k, v, x = state
            length = start + i
            visible = (jnp.arange(width)[None] <= length[:, None])[:, None]
            see = dict(visible=visible, real=None, layer=0, scale=size**-0.5, cache=(k, v, length))
            x, (k, v) = attention.attend(model, x, x, x, **see)
            return k, v, x

        return jax.lax.fori_loop(0, shapes["tokens"], one, (k, v, x))[:2]

    def call():
        state[:] = run(*state)
        return state

    return call


def measure(toy: bool):
    import jax

    from reft_jax import models

    shapes = TOY if toy else SHAPES
    device = jax.devices()[0]
    heads = dict(num_heads=shapes["heads"], num_kv_heads=shapes["heads"], head_dim=shapes["head_dim"], num_layers=1)
    arch, layout = a_preset("codellama_7b", **heads), a_layout([device], 1, 1)
    for what, make, calls in (("training", training, 1), ("decoding", decoding, shapes["tokens"])):
        for asked in WAYS:
            model = models.Model(arch, "bfloat16", "bfloat16", layout=layout, attention=asked)
            way, why = models.attention_path(model, slots=what == "decoding")
            line = dict(what=what, attention=asked, way=way, device=device.device_kind)
            if way == "xla" and asked != "xla":
                line["why"] = why
            else:
                line["ms"] = round(1e3 * timed(make(model, shapes), shapes["repeats"]) / calls, 3)
            print(json.dumps(line | shapes), flush=True)


# ------------------------------------------------------------------ what the compiler counts


def placed(tree, places):
    import jax

    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)


def layer_program(model, rows, length):
    """The lowered gradients of one layer's attention."""
    import jax
    import jax.numpy as jnp

    def shape(dtype, names, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=model.layout.sharding(names, sizes))

    arch, names = model.arch, ("batch", None, "heads", None)
    q, k = (shape(jnp.bfloat16, names, rows, length, n, arch.head_dim) for n in (arch.num_heads, arch.num_kv_heads))
    return gradients(model).lower(q, k, k, shape(bool, names[:2], rows, length))


def training_program(what, model, rows, length):
    """The lowered scoring or PPO step: a third of each row is its prompt."""
    import jax
    import jax.numpy as jnp

    from benchmarks import common
    from reft_jax import models
    from reft_jax.training import scoring
    from reft_jax.training.state import state_shardings
    from reft_jax.training.update import make_update
    from reft_jax.types import Batch, Prompts, TrainState

    def table(width, dtype):
        return jax.ShapeDtypeStruct(
            (rows, width), dtype, sharding=model.layout.sharding(("batch", None), (rows, width))
        )

    prompt, number = length // 3, jnp.int32
    prompts = Prompts(table(prompt, number), table(prompt, bool), jax.ShapeDtypeStruct((rows,), number))
    tokens, mask, reals = (table(length - prompt, dtype) for dtype in (number, bool, jnp.float32))
    head = jax.eval_shape(lambda: models.init_value_head(model, jax.random.key(0), how="zeros", bias=True))
    params = models.shapes(model) | {"value_head": head}
    if what == "score":
        params = placed(params, models.param_shardings(model, params))
        return scoring.make_score(model).lower(params, params, prompts, tokens, mask)
    stage = common.reft_stage(rows, rows, lr=1e-5, kl_coef=0.05)
    tx = stage.optim(100)
    state = jax.eval_shape(lambda params: TrainState(jnp.zeros((), number), params, tx.init(params)), params)
    state = placed(state, state_shardings(model, tx, params))
    columns = dict.fromkeys(("old_logp", "old_values", "adv", "returns"), reals)
    batch = Batch(prompts, tokens, mask, columns)
    step = make_update(model, tx, params, stage.objective, name="ppo", **stage.how)
    return step.lower(state, batch, jax.ShapeDtypeStruct((rows,), number))


def decoding_program(model, num_slots, width):
    """The lowered loop of the slot engine."""
    import jax
    import jax.numpy as jnp

    from reft_jax import models
    from reft_jax.config.settings import WHOLE
    from reft_jax.mesh.sharding import drop_leading
    from reft_jax.models.placement import param_shardings
    from reft_jax.sampling import engine

    shapes = models.shapes(model)
    places = param_shardings(model, shapes)
    blocks = (jax.tree.map(drop_leading, places["blocks"]),) * model.arch.num_layers
    params = placed(jax.eval_shape(functools.partial(models.for_decoding, model), shapes), places | dict(blocks=blocks))
    slots = jax.eval_shape(lambda: engine._empty(model, WHOLE, num=num_slots, width=width, max_new=512, pad_id=0))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    decode = engine._decoding(model, (2,), WHOLE)
    return decode.lower(params, placed(slots, engine._places(model)[0]), number, number)


def count(programs):
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    from jax.experimental import topologies

    from reft_jax import models

    for program in programs or PROGRAMS:
        small, what = program.startswith("small-"), program.removeprefix("small-")
        name = "v5e:4x4" if program in ("score", "ppo") else "v5e:2x4"
        chips = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        for asked in WAYS:
            if what == "decode":
                arch = a_preset("llama3_8b" if small else "codellama_7b", num_layers=4)
                model = models.Model(arch, "bfloat16", "bfloat16", layout=a_layout(chips, 1, 8))
                shape = dict(num_slots=64, width=1280)
                lower = decoding_program
            else:
                arch = a_preset("qwen2_5_1_5b" if small else "codellama_7b")
                model = models.Model(arch, "float32", "bfloat16", "block", layout=a_layout(chips, len(chips), 1))
                shape = dict(rows=64, length=384 if small else 700)
                lower = layer_program if what == "layer" else functools.partial(training_program, what)
            compiled = lower(dataclasses.replace(model, attention=asked), **shape).compile()
            memory = compiled.memory_analysis()
            line = dict(
                program=program,
                attention=asked,
                device=f"{len(chips)} x {chips[0].device_kind}",
                temp_mb=round(memory.temp_size_in_bytes / 1e6, 1),
                arguments_mb=round(memory.argument_size_in_bytes / 1e6, 1),
                bytes_gb=round(compiled.cost_analysis()["bytes accessed"] / 1e9, 2),
            )
            print(json.dumps(line | shape), flush=True)


def main(*arguments):
    if arguments and arguments[0] == "compile":
        return count(arguments[1:])
    return measure("--toy" in arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
