"""One of several processes that work together on CPU: python -m tests.two_processes PROCESS NUM PORT WHAT FILE.

WHAT: a layout for decoding, with which responses are sampled, or `steps`: one of each training step. Process 0 pickles the results.
"""

import functools
import pickle
import sys

import jax

if __name__ == "__main__":
    process, num, port, what, file = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num, process)

    from jax.experimental import multihost_utils

    from tests import test_engine, test_steps, tiny

    tiny.LAYOUTS["processes"] = (num, 1, 2) if what != "steps" else (1, num, 2)
    if what == "steps":
        whole = functools.partial(multihost_utils.process_allgather, tiled=True)
        result = jax.tree.leaves(test_steps.everything("processes", lambda tree: jax.tree.map(whole, tree))[0])
    else:
        model = tiny.model("processes")
        engine = test_engine.engine(model, num_slots=4, eos_ids=test_engine.ENDS, num_samples=3, layout=what)
        result = engine(tiny.params(model), test_engine.ragged(13, tiny.VOCAB), test_engine.KEY)
    if process == 0:
        with open(file, "wb") as out:
            pickle.dump(jax.device_get(result), out)
