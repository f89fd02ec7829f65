"""Peak host memory while a made checkpoint is loaded onto 8 CPU devices, split by fsdp: python benchmarks/load_memory.py

Makes a Llama of about 1 GB (random bfloat16 weights, several files with an index) in a temporary folder, and loads it in a
process of its own with `models.load_hf`. On CPU the devices' memory is the host's, so what is left to see above the
model's own bytes is what loading needs besides: about one tensor. Prints one JSON line, sizes in MB (1e6 bytes).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

SIZES = dict(vocab_size=32000, dim=1024, num_layers=37, num_heads=16, num_kv_heads=16, head_dim=64, ffn_dim=2816)


def make(folder: pathlib.Path):
    """Writes the checkpoint, one stacked weight at a time."""
    import jax
    import jax.numpy as jnp

    from reft_jax import models
    from reft_jax.config import settings

    arch = settings.Arch(**SIZES, rope_theta=10000.0, norm_eps=1e-5, tie_embeddings=True, init_std=0.02)
    model = models.Model(arch, "bfloat16", "bfloat16")
    params = models.init(model, jax.random.key(0))
    models.save_hf(folder, model, params, max_shard_bytes=3 * 10**8)
    print(json.dumps({"checksum": float(sum(jnp.abs(x.astype("float32")).sum() for x in jax.tree.leaves(params)))}))


def load(folder: pathlib.Path):
    """Loads it, and prints what the process's peak resident memory was before and after."""
    import resource

    import jax
    import jax.numpy as jnp

    from reft_jax import models
    from reft_jax.config import settings
    from reft_jax.mesh import sharding

    rules = (("embed", ("fsdp",)),)
    layout = sharding.make_layout(settings.Mesh(1, 8, 1, rules))
    model = models.Model(models.read_config(folder), "bfloat16", "bfloat16", layout=layout)
    jnp.zeros(8).block_until_ready()

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

    before = peak()
    _, params = models.load_hf(
        folder,
        param_dtype="bfloat16",
        shardings=models.param_shardings(model, models.shapes(model)),
        layout=layout,
    )
    jax.block_until_ready(params)
    after = peak()
    leaves = jax.tree.leaves(params)
    split = sum(len(x.sharding.device_set) == 8 and not x.is_fully_replicated for x in leaves)
    checksum = float(sum(jnp.abs(x.astype("float32")).sum() for x in leaves))
    size = sum(x.nbytes for x in leaves) / 1e6
    largest = max(x.nbytes / (len(x) if x.ndim > 2 else 1) for x in leaves) / 1e6  # of one layer, as it is in the file
    print(
        json.dumps(
            dict(
                model_mb=round(size),
                largest_tensor_mb=round(largest),
                before_mb=round(before),
                peak_mb=round(after),
                besides_the_model_mb=round(after - before - size),
                leaves_split_over_8=split,
                leaves=len(leaves),
                checksum=checksum,
            )
        )
    )


def main():
    if len(sys.argv) == 3:
        return {"make": make, "load": load}[sys.argv[1]](pathlib.Path(sys.argv[2]))
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, what, folder],
                    env=environment,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.splitlines()[-1]
            )
            for what in ("make", "load")
        ]
    made, loaded = outputs
    if not abs(made["checksum"] - loaded.pop("checksum")) <= 1e-3 * made["checksum"]:
        raise SystemExit("what was loaded is not what was written")
    print(json.dumps(loaded))


if __name__ == "__main__":
    main()
