"""What scoring 1 x 1,024 tokens of a 152k vocabulary needs beside the weights, on a TPU v5e:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/score_memory.py [preset]

Compiles the scoring step (the states of a forward, then log-prob and entropy of every token) for one chip at several
sizes of `config.model.logits_chunk`, and prints the compiler's own count of temporary bytes, one JSON line each. Nothing
is run and no TPU is needed, only its compiler (pip install libtpu). The last size is the whole sequence: all logits at
once, which the chunks are there to avoid.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def main(preset="qwen2_5_0_5b", length=1024):
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from reft_jax import models
    from reft_jax.config import records, settings
    from reft_jax.configs.models import PRESETS

    chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    place = jax.sharding.SingleDeviceSharding(chip)
    arch = records.build(settings.Arch, PRESETS[preset], preset)
    for chunk in (64, 128, 256, length):
        model = models.Model(arch, "bfloat16", "bfloat16", logits_chunk=chunk)

        def score(params, tokens, mask, model=model):
            hidden, _ = models.forward(model, params, tokens, models.positions_of(mask), mask)
            return models.token_logp(model, params, hidden, tokens)

        shapes = (models.shapes(model), jnp.zeros((1, length), jnp.int32), jnp.zeros((1, length), bool))
        there = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
        memory = jax.jit(score).lower(*there).compile().memory_analysis()
        line = dict(
            preset=preset,
            device=chip.device_kind,
            length=length,
            vocabulary=arch.vocab_size,
            logits_chunk=chunk,
            temp_mb=round(memory.temp_size_in_bytes / 1e6),
            all_logits_float32_mb=round(length * arch.vocab_size * 4 / 1e6),
            weights_mb=round(memory.argument_size_in_bytes / 1e6),
        )
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
