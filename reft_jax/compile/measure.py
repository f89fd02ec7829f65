"""What the compiler says of a program: bytes of a device, collectives, and what to change where it does not fit."""

import sys
import time

GIB = 2**30
LARGEST = 5  # buffers that a failure names


# ------------------------------------------------------------------ what the compiler says


def measure(program, topology: str, num_devices: int, hbm: int) -> dict:
    """Compiles it: the line to print. A program that the compiler cannot fit has its words under `error`; `collectives` is None where
    the compiled text cannot be read."""
    import jax

    from reft_jax.compile import hlo

    resident = device_bytes(program.resident) - device_bytes(program.given_twice)
    line = dict(function=program.name, topology=topology, num_devices=num_devices)
    began = time.monotonic()
    try:
        compiled = program.lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line |= dict(argument_bytes=device_bytes(program.arguments), output_bytes=None, temp_bytes=None)
        line |= dict(resident_bytes=resident, hbm_bytes=hbm, fits=False)
        line |= dict(flops_per_device=program.flops / num_devices, collectives={})
        said = str(error).strip().splitlines()[0]
        return line | dict(compile_seconds=round(time.monotonic() - began, 1), error=said)
    seconds, memory = time.monotonic() - began, compiled.memory_analysis()
    try:
        collectives = hlo.collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        print(
            f"{program.name}: this jaxlib cannot read the text of what this libtpu compiled, so collectives are not counted ({first}); "
            "launch/constraints.txt names two that fit together",
            file=sys.stderr,
        )
        collectives = None
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + resident
    return line | dict(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        resident_bytes=resident,
        total_bytes=total,
        hbm_bytes=hbm,
        fits=not hbm or total <= hbm,
        flops_per_device=program.flops / num_devices,
        collectives=collectives,
        largest_replicated=largest_replicated(program.arguments, num_devices),
        compile_seconds=round(seconds, 1),
    )


def device_bytes(tree) -> int:
    """Bytes that a tree of shapes with shardings takes on one device."""
    return sum(size for _, size, _ in leaves(tree))


def leaves(tree):
    """(path, bytes on one device, ways that it is split) of each leaf that lies in the devices' memory."""
    import jax
    import numpy as np

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sharding = getattr(leaf, "sharding", None)
        if not hasattr(leaf, "dtype"):
            continue  # a plain number
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            continue  # random keys
        if sharding is not None and sharding.memory_kind == "pinned_host":
            continue
        whole = int(np.prod(leaf.shape))
        part = int(np.prod(sharding.shard_shape(leaf.shape))) if sharding is not None else whole
        name = "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        yield name, part * leaf.dtype.itemsize, whole // max(part, 1)


def largest_replicated(arguments, num_devices: int) -> dict | None:
    """The largest argument of which every device has a whole copy, where there are several devices."""
    copies = [(size, name) for name, size, ways in leaves(arguments) if ways == 1]
    if num_devices == 1 or not copies:
        return None
    size, name = max(copies)
    return dict(name=name, bytes=size)


def advice(line: dict, config, program) -> str:
    """What to change about a function that does not fit."""
    everything = [*leaves(program.arguments), *leaves(program.resident)]
    largest = sorted(everything, key=lambda leaf: -leaf[1])[:LARGEST]
    held = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size, _ in largest)
    told = line.get("error") or (
        f"needs {line['total_bytes'] / GIB:.2f} GiB of {line['hbm_bytes'] / GIB:.2f}: arguments {line['argument_bytes'] / GIB:.2f}, "
        f"temporaries {line['temp_bytes'] / GIB:.2f}, resident beside it {line['resident_bytes'] / GIB:.2f}"
    )
    return (
        f"{line['function']} does not fit on {line['topology']}: {told}\n"
        f"  the largest arrays of a device: {held}\n"
        "  what helps: more devices; a larger mesh.fsdp or mesh.tensor; a smaller batch_size or model.slice_tokens; "
        f"model.remat=block (now {config.model.remat}); a smaller model.logits_chunk (now {config.model.logits_chunk}); "
        f"optim=adafactor, or optim.mu_dtype=bfloat16; mesh.moments=host (now {config.mesh.moments}); model.param_dtype=bfloat16, where the "
        f"whole model is trained with optim.rounding=stochastic (now {config.model.param_dtype}); "
        f"mesh.decode=tensor (now {config.mesh.decode}); adapters (model.lora)"
    )
