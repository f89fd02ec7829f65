"""One of several processes that sample together on CPU: python -m tests.two_processes PROCESS NUM PORT LAYOUT. Process 0 prints what was drawn."""

import json
import sys

import jax

if __name__ == "__main__":
    process, num, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num, process)

    from reft_jax import config, sharding
    from tests import test_engine, tiny

    mesh = config.Mesh(num, 1, 2, tiny.RULES)
    model = tiny.models.Model(tiny.ARCH, layout=sharding.make_layout(mesh))
    engine = test_engine.engine(model, num_slots=4, eos_ids=test_engine.ENDS, num_samples=3, layout=how)
    sample = engine(tiny.params(model), test_engine.ragged(13, tiny.VOCAB), test_engine.KEY)
    if process == 0:
        print(json.dumps([row[mask].tolist() for row, mask in zip(sample.tokens, sample.mask, strict=True)]))
