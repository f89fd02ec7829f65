"""Compiles every step of a config for devices that are not here, and says whether it fits into their memory.

    python -m reft_jax.compile --config=FILE.py[:key=value,...] --topology=v5e:16x16 [--slices=N] [--config.a.b=value ...]

--topology: v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB, tpu7x:AxBxC (the real TPU compiler, `pip install libtpu`, no TPU), cpu:N, or gpu (those
that are here); --slices=N: as many such slices, joined by the network between them. --config.a.b=value overrides as in `main`. Needs
neither data nor weights nor a tokenizer. One JSON line per function: bytes are those of one device, `resident_bytes` what the run
keeps there beside the function's own arguments, `flops_per_device` the model's by our count (the compiler counts a loop's body
once), `collectives` the result bytes by kind in one call (a decode call is one token). Exit code 1 if something does not fit.

The idea is MaxText's train_compile; this one covers the whole loop of reinforced fine-tuning.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys

from reft_jax import commands
from reft_jax.commands import Flag
from reft_jax.compile.measure import GIB
from reft_jax.errors import InputError

# GiB that one device has for a program, where the compiler (libtpu 0.0.42.1) begins to refuse: a chip, of v4 and v5p with both cores; of
# tpu7x half a chip.
HBM = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "tpu7x": 94.74}


FLAGS = {
    "--config": Flag(needed=True),
    "--topology": Flag(needed=True),
    "--slices": Flag(commands.whole(1), default=1),
    "--config.": Flag(several=True),
}


def parse(argv: list[str]) -> tuple[str, str, int, tuple[tuple[str, str], ...]]:
    """(config spec, topology, slices, overrides) of the command line. Raises InputError."""
    return tuple(commands.parse(argv, __doc__, FLAGS).values())


def devices_of(topology: str, slices: int = 1):
    """(devices, bytes that a device has, 0 = not known). Raises InputError."""
    kind, _, size = topology.partition(":")
    if kind == "cpu" and size.isdigit() and slices == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={size}"
        import jax

        if len(jax.devices("cpu")) < int(size):
            raise InputError(f"--topology={topology}: JAX was started with {len(jax.devices('cpu'))} CPU devices")
        return jax.devices("cpu")[: int(size)], 0
    if kind == "gpu" and not size:
        import jax

        try:
            devices = jax.devices("gpu")
        except RuntimeError as error:
            raise InputError("--topology=gpu: there is no GPU here, and its compiler needs one") from error
        return devices, (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    if kind not in HBM or not re.fullmatch(r"\d+x\d+(x\d+)?", size):
        raise InputError(
            f"--topology: got {topology!r}; it is {', '.join(f'{name}:...' for name in HBM)} with a slice's shape (v5e:16x16, "
            "v5p:4x4x4), cpu:N or gpu"
        )
    # Set before libtpu is loaded: no metadata server is asked, and a second compiler may run beside this one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    from jax.experimental import topologies

    try:
        # one device a chip, as JAX has them there
        both_cores = dict(chip_config_name="megacore") if kind == "v4" else {}
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **both_cores
        )
    except Exception as error:
        raise InputError(
            f"--topology={topology}: the TPU compiler does not know it ({str(error).splitlines()[0]}); it needs libtpu "
            "(pip install libtpu) and a slice's shape as Google lists them"
        ) from error
    return list(described.devices), int(HBM[kind] * GIB)


@contextlib.contextmanager
def as_the_run(compute_dtype: str):
    """JAX's settings as `main` has them for the run, but without the persistent cache: programs for devices that are not here
    cannot be read back from it."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from reft_jax.run import jax_settings

    before, precision = jax.config.jax_enable_compilation_cache, jax.config.jax_default_matmul_precision
    jax_settings.multiply_in(compute_dtype)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        jax.config.update("jax_default_matmul_precision", precision)
        compilation_cache.reset_cache()


@commands.command(unread=0)
def main(argv: list[str]) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "" if "gpu" in " ".join(argv) else "cpu")
    spec, topology, slices, overrides = parse(argv)
    from reft_jax import recipe

    config, _ = recipe.load(spec, overrides)
    devices, hbm = devices_of(topology, slices)
    from reft_jax import prepare
    from reft_jax.compile import measure, programs
    from reft_jax.mesh import sharding

    layout = sharding.make_layout(config.mesh, devices)
    prepare.check_batches(config, layout)
    model = prepare.build_model(config, architecture(config), layout)
    prepare.check_adapters(config, model)
    fits = True
    with as_the_run(config.model.compute_dtype):
        for program in programs.programs(config, model):
            line = measure.measure(program, topology, len(devices), hbm)
            print(json.dumps(line), flush=True)
            if not line["fits"]:
                fits = False
                print(measure.advice(line, config, program), file=sys.stderr, flush=True)
    return 0 if fits else 1


def architecture(config):
    """The config's architecture, its vocabulary that of the tokenizer that would be made."""
    from reft_jax import models

    if config.model.directory:
        folder = models.resolve(config.model.directory)
        if folder is None:
            raise InputError(
                f"config.model.directory: {config.model.directory!r} is not here; to compile without it, name the preset of its "
                "size (configs/models.py)"
            )
        return models.read_config(folder)
    arch = config.model.arch
    return arch if arch.vocab_size else dataclasses.replace(arch, vocab_size=config.data.vocab_size)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
