"""What an SFT update needs in slices of different sizes: python benchmarks/slices.py [time] [rows] [prompt] [response]

SmolLM2 135M's shape with random weights and tokens, float32 and bfloat16 products, on the device at hand: the compiler's own count of
argument and temporary bytes of `training.update` at each `config.model.slice_tokens`, one JSON line each. With `time` each update is run as
well, three times, and the faster of the last two is printed.
"""

import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402


def main(*argv):
    import jax

    from reft_jax import models
    from reft_jax.config import choices, records, settings
    from reft_jax.configs.models import PRESETS
    from reft_jax.mesh import sharding
    from reft_jax.training.state import init_state
    from reft_jax.training.update import make_update
    from reft_jax.types import Batch, Prompts

    timed = "time" in argv
    rows, prompt, response = [int(x) for x in argv if x != "time"] or (16, 116, 300)
    arch = records.build(settings.Arch, PRESETS["smollm2_135m"] | dict(vocab_size=49152), "smollm2_135m")
    layout = sharding.make_layout(settings.Mesh(1, 1, 1), jax.devices()[:1])
    tx = records.build(choices.load("optim", "adamw"), dict(lr=1e-4), "optim")(100)
    nll = records.build(choices.load("losses", "nll"), {}, "losses.nll")
    rng, length = np.random.default_rng(0), prompt + response
    asked, tokens = (rng.integers(1, arch.vocab_size, (rows, n)).astype(np.int32) for n in (prompt, response))
    asked = Prompts(asked, np.ones_like(asked, bool), np.arange(rows, dtype=np.int32))
    batch = Batch(asked, tokens, np.ones_like(tokens, bool))
    for dtype, remat, part in [
        (dtype, remat, part)
        for dtype in ("float32", "bfloat16")
        for remat in ("none", "dots")
        for part in sorted({rows, max(rows // 4, 1), 1}, reverse=True)
    ]:
        how = dict(remat=remat, slice_tokens=part * length, layout=layout)
        model = models.Model(arch, "float32", dtype, **how)
        params = models.init(model, jax.random.key(0))
        step = make_update(model, tx, params, (nll,), name="sft", reduce="token")
        state = init_state(model, tx, params)
        memory = step.lower(state, batch).compile().memory_analysis()
        line = dict(rows=rows, length=length, dtype=dtype, remat=remat, slice_tokens=part * length)
        line |= dict(gb=round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9, 2))
        if timed:
            seconds = []
            for _ in range(3):
                begin = time.perf_counter()
                state, _ = jax.block_until_ready(step(state, batch))
                seconds.append(time.perf_counter() - begin)
            line |= dict(seconds=round(min(seconds[1:]), 2))
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
