"""Compiles every step of a config for devices that are not here, and says whether it fits into their memory.

    python -m reft_jax.compile --config=configs/reft.py:data=gsm8k,cot=program,model=codellama_7b --topology=v5e:16x16

--topology: v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB (the real TPU compiler, `pip install libtpu`, no TPU), cpu:N, or gpu (those that
are here); --slices=N: as many such slices, joined by the network between them. --config.a.b=value overrides as in `main`. Needs
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
import time

from reft_jax import config as config_lib
from reft_jax.errors import InputError

GIB = 2**30
# What one device (v4, v5p: both cores together) has for a program: the compiler's own limits where it states them.
HBM = {"v4": 32 * GIB, "v5e": int(15.75 * GIB), "v5p": int(95.74 * GIB), "v6e": int(31.25 * GIB)}
LARGEST = 5  # buffers that a failure names


def parse(argv: list[str]) -> tuple[str, str, int, list[tuple[str, str]]]:
    """(config spec, topology, slices, overrides) of the command line. Raises InputError."""
    given, overrides = dict(config="", topology="", slices="1"), []
    rest = list(argv)
    while rest:
        name, equals, value = rest.pop(0).removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise InputError(f"--{name}: a value is missing (--{name}=...)")
            value = rest.pop(0)
        if name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
        elif name in given:
            given[name] = value
        else:
            raise InputError(
                f"--{name}: unknown flag; known are {', '.join('--' + flag for flag in given)}, --config.KEY"
            )
    for name in ("config", "topology"):
        if not given[name]:
            raise InputError(f"--{name} is missing: --config=FILE.py[:argument] --topology=v5e:16x16")
    if not given["slices"].isdigit() or given["slices"] == "0":
        raise InputError(f"--slices: got {given['slices']!r}; it must be a whole number from 1")
    return given["config"], given["topology"], int(given["slices"]), overrides


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
    return list(described.devices), HBM[kind]


# ------------------------------------------------------------------ the functions of a run


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted function at its largest shapes."""

    name: str
    lowered: object  # jax.stages.Lowered
    arguments: tuple  # trees of shapes with shardings
    flops: float  # of the model, in one call, all devices together
    resident: dict  # what else lies on the devices meanwhile: a tree of shapes with shardings
    given_twice: dict  # the part of `arguments` that is there twice, and on the devices once


def programs(config, model) -> list[Program]:
    """Everything that the config's stages would compile; of equal ones the one with the most beside it."""
    import jax
    import jax.numpy as jnp

    from reft_jax import models, steps, steps_supervised
    from reft_jax.data.packing import Packing
    from reft_jax.optim import make_optimizer
    from reft_jax.sampling.engine import Engine
    from reft_jax.types import PPOBatch, Prompts, Rollout, Sample, SFTBatch

    data, layout, arch = config.data, model.layout, model.arch
    tuned = dataclasses.replace(model, lora=config.model.lora, base=config.model.base)

    def placed(tree, places):
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

    def parameters(of, tree):
        return placed(tree, steps.param_shardings(of, tree))

    def rows(shape, dtype):
        place = layout.sharding(("batch",) + (None,) * (len(shape) - 1), shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def asked(num):
        return Prompts(
            rows((num, data.max_prompt), jnp.int32), rows((num, data.max_prompt), bool), rows((num,), jnp.int32)
        )

    def answers(num, *dtypes):
        return [rows((num, data.max_response), dtype) for dtype in dtypes]

    def together(num):
        """Sequences that share rows, at worst as many as there are."""
        if not data.pack:
            return None
        whole = (num, data.max_prompt + data.max_response)
        return Packing(*[rows(whole, jnp.int32)] * 3, place=rows((num, data.max_response), jnp.int32))

    key = jax.eval_shape(lambda: jax.random.key(0))
    everything = parameters(tuned, models.shapes(tuned))
    trained = models.only_adapters(everything) if tuned.lora else everything
    frozen = without_adapters(everything) if tuned.lora else {}
    reference = everything if not tuned.lora or config.model.base != "full" else frozen
    ref_model = tuned if config.model.base != "full" else model
    length = data.max_prompt + data.max_response
    out: dict[str, Program] = {}  # by their text

    def add(name, function, arguments, flops, resident, given_twice=None):
        lowered = function.lower(*arguments)
        text = lowered.as_text()
        if text not in out or device_bytes(out[text].resident) < device_bytes(resident):
            out[text] = Program(name, lowered, arguments, flops, resident, given_twice or {})

    def add_sampling(prefix, of, params, how, num_slots, num_samples, beside):
        engine = Engine(
            of,
            max_prompt=data.max_prompt,
            max_new=how.max_new or data.max_response,
            num_slots=num_slots,
            eos_ids=(0,),
            pad_id=0,
            num_samples=num_samples,
            sampling=dataclasses.replace(how, stop=()),
            layout=config.mesh.decode,
        )
        read = engine.prefill_rows * data.max_prompt
        flops = dict(
            relay=0.0,
            prefill=forward_flops(arch, read, data.max_prompt / 2, logits=engine.prefill_rows),
            admit=0.0,
            decode=forward_flops(arch, engine.sizes[-1], data.max_prompt + engine.max_new / 2),
        )
        for name, (function, arguments, held) in engine.programs(params).items():
            add(f"{prefix}/{name}", function, arguments, flops[name], dict(beside=beside, engine=held))

    def with_critic(params, ppo):
        settings = dict(critic=ppo.critic, how=ppo.value_init, bias=ppo.value_bias)
        both = jax.eval_shape(lambda params, key: models.with_critic(model, params, key, **settings), params, key)
        return placed(both, steps.param_shardings(tuned, both))

    for name, stage in config.stages:
        if stage.kind in ("sft", "self_train"):
            tx = make_optimizer(stage.optim, 1000)
            state = placed(steps.eval_state(tx, trained), steps.state_shardings(tuned, tx, trained))
            beside = dict(opt_state=state.opt_state)
            add_sampling(f"{name}/check", tuned, everything, config_lib.GREEDY, stage.eval_batch_size, 1, beside)
        if stage.kind == "self_train" and stage.mode == "online":
            num = stage.batch_size * (stage.num_samples + 1)
            step = steps_supervised.make_self_train_step(tuned, tx, trained, stage)
            batch = steps_supervised.MixedBatch(asked(num), *answers(num, jnp.int32, bool), rows((num,), bool))
            flops = 3 * forward_flops(arch, num * length, length / 2, logits=num * data.max_response)
            add(f"{name}/self_train_step", step, (state, batch, key, frozen or None, together(num)), flops, {})
            slots, k = stage.sample_batch_size, stage.num_samples
            add_sampling(name, tuned, everything, stage.sampling, slots, k, beside)
        elif stage.kind in ("sft", "self_train"):
            settings = dict(dropout=stage.dropout, accumulate=stage.accumulate, reduce=stage.reduce)
            step = steps.make_sft_step(tuned, tx, trained, **settings)
            num = stage.batch_size
            batch = SFTBatch(asked(num), *answers(num, jnp.int32, bool))
            flops = 3 * forward_flops(arch, num * length, length / 2, logits=num * data.max_response)
            add(f"{name}/sft_step", step, (state, batch, key, frozen or None, together(num)), flops, {})
        if stage.kind == "reranker" or stage.kind == "self_train" and stage.mode == "offline":
            whole = parameters(model, models.shapes(model))
            add_sampling(f"{name}/drawn", model, whole, stage.sampling, stage.sample_batch_size, stage.num_samples, {})
        if stage.kind == "reranker":
            tx, num = make_optimizer(stage.optim, 1000), stage.batch_size
            head = parameters(model, dict(classifier=jax.eval_shape(lambda k: models.init_classifier(model, k), key)))
            state = placed(steps.eval_state(tx, trained | head), steps.state_shardings(tuned, tx, trained | head))
            step = steps_supervised.make_classifier_step(tuned, tx, trained | head, accumulate=stage.accumulate)
            read = rows((num, length), jnp.int32), rows((num, length), bool)
            batch = steps_supervised.ClassifierBatch(*read, rows((num,), bool))
            flops = forward_flops(arch, num * length, length / 2, logits=0)
            add(f"{name}/classifier_step", step, (state, batch, frozen or None), 3 * flops, {})
            score = steps_supervised.make_classifier_score(model)
            add(f"{name}/classifier_score", score, (whole | head, *read), flops, {})
        if stage.kind == "reft":
            ppo, tx, num = stage.ppo, make_optimizer(stage.optim, 1000), stage.batch_size * stage.num_samples
            params = with_critic(trained, ppo)
            own = {name: node for name, node in params.items() if name not in trained}  # what the policy has not
            state = placed(steps.eval_state(tx, params), steps.state_shardings(tuned, tx, params))
            policy = models.join(frozen, params)
            held = dict(reference=models.only_adapters(reference) if tuned.lora else reference)  # a base is there once
            beside = held | own | dict(opt_state=state.opt_state)
            add_sampling(name, tuned, everything, stage.sampling, num, stage.num_samples, beside)
            add_sampling(f"{name}/check", tuned, everything, config_lib.GREEDY, stage.eval_batch_size, 1, beside)
            score = steps.make_score(tuned, ref_model, most=ppo.part_size)
            tokens, mask = answers(num, jnp.int32, bool)

            def forwards(num, num_policies, ppo=ppo):
                """Operations of so many policies' forwards and of a separate critic's, over `num` sequences."""
                policy = forward_flops(arch, num * length, length / 2, logits=num * data.max_response)
                critic = forward_flops(arch, num * length, length / 2, logits=0) if ppo.critic == "separate" else 0.0
                return num_policies * policy + critic

            add(
                f"{name}/score",
                score,
                (policy, reference, asked(num), tokens, mask, together(num)),
                forwards(num, 2),
                dict(opt_state=state.opt_state),
                frozen,
            )
            [number] = answers(num, jnp.float32)
            values = None if ppo.critic == "none" else number
            sample = Sample(tokens, mask, number)
            told = number, number, values, number, rows((num,), jnp.float32)
            rollout = Rollout(asked(num), sample, *told, stage.num_samples)
            advantages = steps.make_advantages(ppo)
            add(f"{name}/advantages", advantages, (rollout,), 0.0, beside | everything)
            weights = number if ppo.correction == "importance" else None
            ref_logp = number if ppo.kl_in == "loss" else None
            batch = PPOBatch(asked(num), tokens, mask, number, values, number, values, weights, ref_logp)
            chosen = jax.ShapeDtypeStruct((ppo.minibatch_size,), jnp.int32)
            max_response = stage.sampling.max_new or data.max_response
            step = steps.make_ppo_step(tuned, tx, params, ppo, max_response=max_response)
            size = ppo.minibatch_size
            flops = 3 * forwards(size, 1)
            add(f"{name}/ppo_step", step, (state, batch, chosen, frozen or None, together(size)), flops, held)
        if stage.kind == "evaluate":
            params = parameters(model, models.shapes(model))
            add_sampling(f"{name}/greedy", model, params, config_lib.GREEDY, stage.batch_size, 1, {})
            if stage.num_samples:
                k = stage.num_samples
                add_sampling(f"{name}/samples", model, params, stage.sampling, stage.batch_size, k, {})
    return list(out.values())


def without_adapters(tree: dict) -> dict:
    """The base's leaves of a model with adapters."""
    kept = {
        name: without_adapters(node) if isinstance(node, dict) else node
        for name, node in tree.items()
        if name not in ("lora_a", "lora_b")
    }
    return {name: node for name, node in kept.items() if not isinstance(node, dict) or node}


def forward_flops(arch, tokens: float, context: float, *, logits: float | None = None) -> float:
    """Floating-point operations of a forward of so many tokens that each see `context` others on average: two for every weight of
    a matrix, and 4 per head, dimension and token seen. `logits`: of how many tokens (None = all)."""
    q, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    layer = arch.dim * (2 * q + 2 * kv) + arch.dim * arch.ffn_dim * (3 if arch.gated else 2)
    attention = 4 * q * context
    unembed = 2 * arch.dim * arch.vocab_size * (tokens if logits is None else logits)
    return arch.num_layers * tokens * (2 * layer + attention) + unembed


# ------------------------------------------------------------------ what the compiler says


def measure(program: Program, topology: str, num_devices: int, hbm: int) -> dict:
    """Compiles it: the line to print. A program that the compiler cannot fit has its words under `error`; `collectives` is None where
    the compiled text cannot be read."""
    import jax

    from reft_jax import hlo

    resident = device_bytes(program.resident) - device_bytes(program.given_twice)
    line = dict(function=program.name, topology=topology, num_devices=num_devices)
    began = time.monotonic()
    try:
        compiled = program.lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = dict(
            argument_bytes=device_bytes(program.arguments), output_bytes=None, temp_bytes=None, resident_bytes=resident
        )
        told |= dict(hbm_bytes=hbm, fits=False, flops_per_device=program.flops / num_devices, collectives={})
        return (
            line
            | told
            | dict(compile_seconds=round(time.monotonic() - began, 1), error=str(error).strip().splitlines()[0])
        )
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


def advice(line: dict, config, program: Program) -> str:
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
        "  what helps: more devices; a larger mesh.fsdp or mesh.tensor; a smaller batch_size, or ppo.accumulate / accumulate in more parts; "
        f"model.remat=block (now {config.model.remat}); a smaller model.logits_chunk (now {config.model.logits_chunk}); "
        f"model.param_dtype=bfloat16; optim.mu_dtype=bfloat16; mesh.moments=host (now {config.mesh.moments}); "
        f"mesh.decode=tensor (now {config.mesh.decode}); adapters (model.lora)"
    )


@contextlib.contextmanager
def as_the_run(compute_dtype: str):
    """JAX's settings as `main` has them for the run, but without the persistent cache: programs for devices that are not here
    cannot be read back from it."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from reft_jax import main as run

    before, precision = jax.config.jax_enable_compilation_cache, jax.config.jax_default_matmul_precision
    run.multiply_in(compute_dtype)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        jax.config.update("jax_default_matmul_precision", precision)
        compilation_cache.reset_cache()


def main(argv: list[str]) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "" if "gpu" in " ".join(argv) else "cpu")
    try:
        spec, topology, slices, overrides = parse(argv)
        config, _ = config_lib.load(spec, overrides, reads_data=False)
        devices, hbm = devices_of(topology, slices)
        from reft_jax import checks, sharding
        from reft_jax import main as run

        layout = sharding.make_layout(config.mesh, devices)
        checks.check_batches(config, layout)
        model = run.build_model(config, architecture(config), layout)
        checks.check_adapters(config, model)
        fits = True
        with as_the_run(config.model.compute_dtype):
            for program in programs(config, model):
                line = measure(program, topology, len(devices), hbm)
                print(json.dumps(line), flush=True)
                if not line["fits"]:
                    fits = False
                    print(advice(line, config, program), file=sys.stderr, flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if fits else 1


def architecture(config) -> config_lib.Arch:
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
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
