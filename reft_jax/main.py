"""Runs a config's stages in order: python -m reft_jax.main --config=configs/demo.py --workdir=runs/demo [--config.seed=1 ...]

Everything that can be wrong with the config, the data and the folder is found before a device is touched and before
anything is written. Run again, the same command goes on where it was, or finds everything done. Exit codes: 0 done,
1 failed, 2 bad configuration or input, 75 stopped by SIGTERM or Ctrl-C after a complete save (run again to go on). A second Ctrl-C ends the
run at once, without a save (1).

On several hosts start the same command on each. Under Slurm, MPI and on TPU slices they find each other; else say --coordinator=HOST:PORT
--processes=N --process=I. --processes=N alone makes a missing host an error; --init_timeout=S, --watchdog=MINUTES: `distributed.py`.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time

from reft_jax import config as config_lib
from reft_jax import data as data_lib
from reft_jax import distributed, profiler, progress, trackers
from reft_jax.errors import InputError, Preempted, RunError, Stop

USAGE = "usage: python -m reft_jax.main --config=FILE.py[:key=value,...] --workdir=DIR [--config.a.b=value ...] [--processes=N ...]"

# Settings that a started run may change: they say how it is watched and kept, or where it lies, not what it computes.
CHANGEABLE = ("save_every", "log_every", "log_samples", "workers", "data", "fsdp", "tensor", "decode", "moments")


def parse(argv: list[str]) -> tuple[str, str, list[tuple[str, str]], dict]:
    """(config spec, workdir, [(path, text)], flags of several processes) of the command line; both --flag=value and --flag value.
    Raises InputError."""
    spec = workdir = None
    overrides, processes, rest = [], {}, list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag in ("-h", "--help"):
            raise SystemExit(f"{__doc__}\n{USAGE}")
        of_processes = flag.removeprefix("--") in distributed.FLAGS and flag.startswith("--")
        if not (of_processes or flag in ("--config", "--workdir") or flag.startswith("--config.")):
            raise InputError(f"unknown argument {flag!r}\n{USAGE}")
        if not equals:
            if not rest:
                raise InputError(f"{flag} needs a value\n{USAGE}")
            value = rest.pop(0)
        if flag == "--config":
            spec = value
        elif flag == "--workdir":
            workdir = value
        elif of_processes:
            processes[flag.removeprefix("--")] = value
        else:
            overrides.append((flag.removeprefix("--config."), value))
    if not spec or not workdir:
        raise InputError(f"--{'config' if not spec else 'workdir'} is missing\n{USAGE}")
    return spec, workdir, overrides, distributed.read_flags(processes, os.environ)


# ------------------------------------------------------------------ the workdir


def flatten(tree, prefix="config"):
    """{dotted path: value} of a nested dict."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {path: value for key, child in tree.items() for path, value in flatten(child, f"{prefix}.{key}").items()}


def fingerprint(splits) -> str:
    """SHA-256 of the records: a data file that changed under a run would change its data order without a word."""
    digest = hashlib.sha256()
    for records in (splits.train, splits.dev, splits.test):
        digest.update(repr([(r.item_id, r.question, r.cot, r.answer, r.kind) for r in records]).encode())
    return digest.hexdigest()


def check_fingerprint(workdir: pathlib.Path, data_sha256: str):
    """Refuses to go on with a run whose data is no longer what it was."""
    path = workdir / "config.json"
    before = json.loads(path.read_text()).get("data_sha256") if os.path.exists(path) else None
    if before not in (None, data_sha256):
        raise InputError(
            f"--workdir={workdir}: its run was begun with other records (the data files have changed); restore them, or choose another folder"
        )


def identities(config: config_lib.Config) -> dict:
    """{source: what it is now} of every directory that a stage reads from outside the workdir: a Hugging Face directory's files
    (names, sizes, the first and last megabyte of each), a checkpoint's folder with its step."""
    from reft_jax import checkpoint, models

    names, out = {"random", *(name for name, _ in config.stages)}, {}
    for _, stage in config.stages:
        for _, source in config_lib.sources(stage):
            if source in names:
                continue
            if (folder := models.resolve(source)) is None:
                out[source] = str(checkpoint.locate(source).resolve())
                continue
            digest = hashlib.sha256()
            for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
                size = path.stat().st_size
                digest.update(f"{path.name} {size}\n".encode())
                with open(path, "rb") as file:
                    digest.update(file.read(2**20))
                    file.seek(max(size - 2**20, 0))
                    digest.update(file.read())
            out[source] = digest.hexdigest()
    return out


def check_identities(workdir: pathlib.Path, now: dict):
    """Refuses to go on with a run whose starting weights are no longer what they were: a resumed stage reads them again."""
    path = workdir / "config.json"
    before = json.loads(path.read_text()).get("sources", {}) if os.path.exists(path) else {}
    for source, identity in before.items():
        if now.get(source, identity) != identity:
            raise InputError(
                f"--workdir={workdir}: its run was begun with other weights in {source} (they have changed since: {identity} then, "
                f"{now[source]} now); restore them, name a checkpoint by its step, or choose another folder"
            )


@contextlib.contextmanager
def opened(workdir: pathlib.Path):
    """Makes the folder, and keeps a second process out of it while the block runs; the lock goes with the process."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # where permissions tell nothing: /proc, a name that is too long
        raise InputError(f"--workdir={workdir}: cannot be made ({error.strerror}); choose another folder") from error
    if not distributed.is_primary():
        yield
        return
    handle = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"--workdir={workdir}: another process is running in it; wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(handle)


def check_workdir(workdir: pathlib.Path, tree: dict):
    """Refuses a folder that cannot be written, or that holds a run of another config; writes nothing."""
    parent = workdir
    while not os.path.exists(parent):  # unlike Path.exists, False also where one may not look
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"--workdir={workdir}: cannot be written ({parent} is {'not writable' if parent.is_dir() else 'a file'}); choose another folder"
        )
    path = workdir / "config.json"
    if not os.path.exists(path):
        if os.path.exists(workdir) and any(not name.name.endswith(".tmp") for name in workdir.iterdir()):
            raise InputError(
                f"--workdir={workdir}: holds other files and no config.json; choose an empty or a new folder"
            )
        return
    try:
        before = flatten(dict(json.loads(path.read_text())["config"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the config of a run ({error!r}); choose another --workdir") from error
    now = flatten(json.loads(json.dumps(tree)))
    changed = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key) or key.split(".")[-1] in CHANGEABLE and key in before and key in now:
            continue
        parts = key.split(".")
        if parts[1] == "logging":
            continue  # how it is watched
        if parts[1] == "stages" and not (workdir / parts[2]).exists():
            continue  # that stage has not begun
        changed.append(f"{key}: there {before.get(key, '(absent)')!r}, now {now.get(key, '(absent)')!r}")
    if changed:
        shown = "\n  ".join(changed[:20])
        raise InputError(
            f"--workdir={workdir}: holds a run of another config:\n  {shown}\nchoose another folder, or give the config that it was begun with"
        )


def describe(tree: dict, layout) -> dict:
    """What config.json holds: the frozen config, and what it ran on."""
    import jax

    root = pathlib.Path(__file__).resolve().parents[1]
    git = (
        subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if (root / ".git").exists()
        else None
    )
    packages = (
        "reft_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "tokenizers",
        "sympy",
        "numpy",
    )
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "config": tree,
        "git_commit": git.stdout.strip() if git is not None and git.returncode == 0 else None,
        "packages": versions,
        "python": platform.python_version(),
        "devices": [str(d) for d in layout.mesh.devices.flat],
        "device_kind": jax.devices()[0].device_kind,
        "mesh": dict(layout.mesh.shape),
    }


# ------------------------------------------------------------------ model, tokenizer, data


def build_tokenizer(config: config_lib.Config, splits, directory):
    """The model directory's tokenizer, or one built from the data (word level for generated problems, BPE for text)."""
    from reft_jax.data import arithmetic, prompts
    from reft_jax.data import tokenizer as tokenizers

    if directory is not None:
        return tokenizers.load(directory)
    if config.data.tokenizer == "word":
        if config.data.name != "arithmetic":
            raise InputError(
                f"config.data.tokenizer: 'word' is for the closed vocabulary of arithmetic; {config.data.name} needs 'bpe'"
            )
        return tokenizers.build_word(arithmetic.PIECE, arithmetic.vocabulary())
    texts = (
        text
        for record in splits.train
        for text in (prompts.prompt(record), prompts.target(record, docstring=config.data.docstring))
    )
    return tokenizers.build_bpe(texts, config.data.vocab_size)


def resolve_arch(config: config_lib.Config, tokenizer, directory) -> config_lib.Arch:
    """The architecture with its vocabulary size filled in; InputError if the tokenizer has more ids than the model."""
    from reft_jax import models
    from reft_jax.data import tokenizer as tokenizers

    arch = models.read_config(directory) if directory is not None else config.model.arch
    if arch.vocab_size == 0:
        arch = dataclasses.replace(arch, vocab_size=len(tokenizer))
    tokenizers.check_fits(tokenizer, arch.vocab_size, "config.model")
    return arch


def build_model(config: config_lib.Config, arch: config_lib.Arch, layout):
    """The config's model, without adapters, on that layout."""
    from reft_jax import models

    names = "param_dtype", "compute_dtype", "remat", "logits_chunk", "vocab_multiple", "attention"
    return models.Model(arch, layout=layout, **{name: getattr(config.model, name) for name in names})


def asks(config: config_lib.Config, stage) -> tuple[str, ...]:
    """The purposes (`data.prompts`) for which a stage reads training questions."""
    if stage.kind == "self_train":
        return "sft", config.purpose(stage.sample_from) if stage.mode == "offline" else "reft"
    if stage.kind == "reranker":
        return (config.purpose(stage.sample_from),)
    return (stage.kind,) if stage.kind in ("sft", "reft") else ()


def check_data(config: config_lib.Config, tokenizer, splits) -> list[str]:
    """Tokenizes what the stages will use and grades the gold answers; returns notes for the user, raises InputError."""
    from reft_jax.data import batching, prompts
    from reft_jax.rewards import program, score

    data, verifier, notes = config.data, config.rewards, list(splits.notes)
    kinds = {stage.kind for _, stage in config.stages}
    purposes = {purpose for _, stage in config.stages for purpose in asks(config, stage)}
    uses = [("train", splits.train, purpose) for purpose in ("sft", "reft", "evaluate") if purpose in purposes]
    uses += [(name, records, "evaluate") for name, records in (("dev", splits.dev), ("test", splits.test)) if records]
    for name, records, purpose in uses:
        if note := batching.fit(tokenizer, records, data, purpose=purpose).note:
            notes.append(f"{name} ({purpose}): {note}")
    if data.cot == "program" and kinds != {"export"}:
        program.use_sandbox(verifier.sandbox)
    if kinds & {"reft", "self_train", "reranker"}:  # those that learn from grades
        gold = [record for record in splits.train if record.cot and record.kind != "text"]
        texts = [prompts.target(record, docstring=data.docstring) for record in gold]
        failed = score.audit_gold(
            data.name,
            data.cot,
            texts,
            [r.answer for r in gold],
            [r.item_id for r in gold],
            matcher=data.matcher,
            **verifier.limits,
        )
        named = ", ".join(f"{item} ({grade.status}, extracted {grade.extracted})" for item, grade in failed[:5])
        if len(failed) > verifier.max_gold_failures * len(gold):
            raise InputError(
                f"{data.train_file or data.name}: {len(failed)} of {len(gold)} gold answers do not grade as correct ({named}); over "
                f"config.rewards.max_gold_failures={verifier.max_gold_failures}. Look at data.matcher, data.cot, rewards.timeout_s, or mend the "
                "records"
            )
        notes.append(
            f"gold check: {len(gold) - len(failed)} of {len(gold)} training answers grade as correct"
            + (f"; not: {named}" if failed else "")
        )
    return notes


# ------------------------------------------------------------------ the run


def prepare(argv: list[str], stop):
    """Everything up to the first write: (Run, what config.json is to say of it). Raises InputError."""
    spec, workdir, overrides, processes = parse(argv)
    config, tree = config_lib.load(spec, overrides)
    trackers.check(config.logging)
    workdir = pathlib.Path(workdir).absolute()
    check_workdir(workdir, tree)
    distributed.initialize(processes)
    if distributed.several():
        stop.agree = distributed.asked_to_stop

    from reft_jax import models, sharding
    from reft_jax.data import tokenizer as tokenizers
    from reft_jax.stages import common

    directory = None
    if config.model.directory and (directory := models.resolve(config.model.directory)) is None:
        raise InputError(
            f"config.model.directory: {config.model.directory!r} is neither a directory with a config.json nor a shipped model"
        )
    check_sources(config)
    splits = data_lib.load(config.data)
    check_fingerprint(workdir, data_sha256 := fingerprint(splits))
    tokenizer = build_tokenizer(config, splits, directory)
    arch = resolve_arch(config, tokenizer, directory)
    notes = check_data(config, tokenizer, splits)

    layout = sharding.make_layout(config.mesh)
    check_batches(config, layout)
    check_sizes(config, arch)
    check_identities(workdir, sources := identities(config))
    model = build_model(config, arch, layout)
    check_adapters(config, model)
    ways = dict(training=models.attention_path(model), decoding=models.attention_path(model, slots=True))
    if config.model.attention == "kernel":
        notes += [
            f"config.model.attention=kernel, but {what} takes xla: {why}" for what, (_, why) in ways.items() if why
        ]
    more = () if directory is None else tokenizers.more_eos_ids(tokenizer, directory)
    about = describe(tree, layout) | {
        "tokenizer": tokenizers.special_ids(tokenizer) | {"more_eos_ids": more},
        "attention": {what: f"{way}: {why}" if why else way for what, (way, why) in ways.items()},
        "data_sha256": data_sha256,
        "sources": sources,
        "notes": notes,
    }
    return common.Run(config, workdir, model, tokenizer, splits, stop, more), about


def check_sources(config: config_lib.Config):
    """Every source that is no stage must exist, before anything is trained."""
    from reft_jax import checkpoint, models

    names = {"random", *(name for name, _ in config.stages)}
    for name, stage in config.stages:
        for key, source in config_lib.sources(stage):
            if source not in names and models.resolve(source) is None and checkpoint.locate(source) is None:
                shipped = (
                    ", ".join(sorted(p.name for p in models.SHIPPED.iterdir() if p.is_dir()))
                    if models.SHIPPED.is_dir()
                    else "none"
                )
                raise InputError(
                    f"config.stages.{name}.{key}: got {source!r}; legal are random, an earlier stage, a Hugging Face directory, "
                    f"a checkpoint directory, or a shipped model ({shipped})"
                )


def check_sizes(config: config_lib.Config, arch):
    """Every directory that a stage begins with must hold a whole model of the run's architecture, and what a model with learned
    positions reads and writes must have positions."""
    from reft_jax import checkpoint, models
    from reft_jax.stages import common

    shapes = models.shapes(models.Model(arch, vocab_multiple=config.model.vocab_multiple))

    longest = config.data.max_prompt + config.data.max_response
    if arch.positions == "learned" and longest > arch.max_positions:
        raise InputError(
            f"config.data.max_prompt + max_response: got {longest}; the model has {arch.max_positions} positions: lower one of them"
        )
    names, checked = {name for name, _ in config.stages}, set()
    for name, stage in config.stages:
        for token in () if stage.kind in ("sft", "export") else stage.sampling.forbidden:
            if token >= arch.vocab_size:
                raise InputError(
                    f"config.stages.{name}.sampling.forbidden: got {token}; the model has tokens 0 to {arch.vocab_size - 1}"
                )
        for key, source in config_lib.sources(stage):
            folder = None if source in names else models.resolve(source)
            if folder is None and source not in names and source != "random":
                common.check_stored(checkpoint.locate(source), f"config.stages.{name}.{key}={source}", shapes)
            if folder is None or folder in checked:
                continue
            if (other := models.read_config(folder)) != arch:
                raise InputError(
                    f"config.stages.{name}.{key}={source}: {common.differing(other, arch)} between its config.json and config.model"
                )
            models.check_hf(folder)
            checked.add(folder)


def check_adapters(config: config_lib.Config, model):
    """Adapters must adapt something, and a quantized base needs its library."""
    from reft_jax import models

    if config.model.lora is not None and not models.only_adapters(
        models.shapes(dataclasses.replace(model, lora=config.model.lora))
    ):
        raise InputError(
            f"config.model.lora.targets: got {config.model.lora.targets!r}; it matches no matrix of this model "
            f"({', '.join(config_lib.MATRICES)}; mlp.gate only where the feed-forward is gated)"
        )
    if config.model.base != "full":
        models.quantize.library()


def check_batches(config: config_lib.Config, layout):
    """Rows must divide over the mesh, or some devices would hold copies of the work."""
    parts = layout.parts("batch")
    for name, stage in config.stages:
        sizes = {
            "sft": lambda s: {"batch_size": s.batch_size // s.accumulate, "eval_batch_size": s.eval_batch_size},
            "reft": lambda s: {
                "batch_size": s.batch_size,
                "ppo.minibatch_size": s.ppo.part_size,
                "eval_batch_size": s.eval_batch_size,
            },
            "self_train": lambda s: {
                "batch_size": s.batch_size * (1 if s.mode == "offline" else s.num_samples + 1) // s.accumulate,
                "sample_batch_size": s.sample_batch_size,
                "eval_batch_size": s.eval_batch_size,
            },
            "reranker": lambda s: {
                "batch_size": s.batch_size // s.accumulate,
                "sample_batch_size": s.sample_batch_size,
            },
            "evaluate": lambda s: {"batch_size": s.batch_size},
            "export": lambda s: {},
        }[stage.kind](stage)
        for key, size in sizes.items():
            if size % parts:
                raise InputError(
                    f"config.stages.{name}.{key}: {size} rows at a time do not divide over data x fsdp = {parts} of config.mesh; use a multiple"
                )


def multiply_in(compute_dtype: str):
    """Makes float32 mean float32: left alone, GPUs multiply it in TF32 (10 bits) and TPUs in bfloat16 (7 bits), and the
    sampler's log-probabilities are then not the scorer's."""
    import jax

    if compute_dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")


def keep_compiled(workdir: pathlib.Path):
    """Compiled programs stay in .jax_cache beside the workdir, for the runs that follow, unless JAX_COMPILATION_CACHE_DIR names another
    place (a bucket, say). A CPU's are for processors with the same instructions alone."""
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = workdir.parent / ".jax_cache"
    if jax.default_backend() == "cpu":
        folder /= instruction_set()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def instruction_set() -> str:
    """A name for what this processor can execute."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    words = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256(f"{platform.machine()} {words}".encode()).hexdigest()[:16]


def execute(run, about: dict):
    """Writes the run's first files and runs what is not done yet."""
    from reft_jax import models, overview
    from reft_jax.data import tokenizer as tokenizers
    from reft_jax.metrics import write_json
    from reft_jax.stages import evaluate, export, reft, reranker, self_train, sft

    multiply_in(run.model.compute_dtype)
    workdir = run.workdir
    write_json(workdir / "config.json", about)  # first: it says whose folder this is
    if distributed.is_primary():
        tokenizers.save(run.tokenizer, workdir / "tokenizer")
    # with these two, a checkpoint can become a Hugging Face directory
    models.save_config(workdir / "tokenizer", run.model, run.tokenizer)
    generation = export.generation_config(run.tokenizer, run.eos_ids)
    write_json(workdir / "tokenizer" / "generation_config.json", generation)
    print(overview.first_lines(run, about), flush=True)
    kinds = {
        "sft": sft.run,
        "reft": reft.run,
        "self_train": self_train.run,
        "reranker": reranker.run,
        "evaluate": evaluate.run,
        "export": export.run,
    }
    for name, stage in run.config.stages:
        if run.done(name):
            continue
        run.stop_if_asked()
        run.folder(name).mkdir(exist_ok=True)
        began = time.monotonic()
        run_stage(kinds[stage.kind], name, stage, run)
        distributed.rest()
        print(f"{name}: finished in {progress.clock(time.monotonic() - began)}{overview.chosen(run, name)}", flush=True)
    if (workdir / "results.json").exists():
        print(f"\n{evaluate.results_table(evaluate.read_results(run))}\n\nresults: {workdir / 'results.json'}")
    if distributed.is_primary():
        show(workdir)


def show(workdir: pathlib.Path):
    """The report and its pictures. Whatever goes wrong with them, the run is done: a warning says so."""
    from reft_jax import report

    try:
        for path in report.build([workdir]):
            print(f"{'plot' if path.suffix == '.png' else 'report'}: {path}")
    except Exception as error:
        print(
            f"warning: no report ({type(error).__name__}: {error}); the run is complete. "
            f"Try again: python -m reft_jax.report {workdir}",
            file=sys.stderr,
        )


def run_stage(stage_run, name: str, stage, run):
    """One stage; the programs that the verifier failed on, if that ends it, go to verifier_failures.jsonl in its folder."""
    from reft_jax.metrics import write_text
    from reft_jax.rewards.program import VerifierError

    try:
        stage_run(name, stage, run)
    except VerifierError as error:
        path = run.folder(name) / "verifier_failures.jsonl"
        write_text(path, "".join(json.dumps({"program": p, "detail": why}) + "\n" for p, why in error.programs))
        raise RunError(f"{name}: {error}. The programs are in {path}") from error
    finally:  # also where an exception leaves the stage
        progress.clear()
        profiler.end()
        trackers.finish()


def main(argv: list[str]) -> int:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    stop = Stop()
    try:
        with stop.listening():
            run, about = prepare(argv, stop)
            with opened(run.workdir):
                keep_compiled(run.workdir)
                execute(run, about)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Preempted:
        again = shlex.join([sys.orig_argv[0], "-m", "reft_jax.main", *argv])
        print(f"stopped: everything is saved; run the same command again to go on:\n  {again}", file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print("ended at once: what was saved before is intact; the same command goes on from there", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        print(
            f"error: the disk is full ({error.filename or error}); the last complete checkpoint is intact. "
            "Free some space and run the same command again",
            file=sys.stderr,
        )
        return 1
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.rest()
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code in (0, 75):
        distributed.shutdown()
    sys.exit(code)
