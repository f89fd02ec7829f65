"""Runs a config's stages in order.

    python -m reft_jax.main --config=FILE.py[:key=value,...] --workdir=DIR [--config.a.b=value ...] [--processes=N ...]

Everything that can be wrong with the config, the data and the folder is found before a device is touched and before
anything is written. Run again, the same command goes on where it was, or finds everything done. Exit codes: 0 done,
1 failed, 2 bad configuration or input, 75 stopped by SIGTERM, SIGHUP or Ctrl-C after a complete save (run again to go on). A second Ctrl-C
ends the run at once, without a save (1). A run goes on where nobody reads what it prints; under nohup it outlives its terminal.

On several hosts start the same command on each. Under Slurm, MPI and on TPU slices they find each other; else say --coordinator=HOST:PORT
--processes=N --process=I. --processes=N alone makes a missing host an error; --init_timeout=S, --watchdog=MINUTES: `distributed.py`.
"""

import json
import os
import pathlib
import shlex
import shutil
import sys
import time

from reft_jax import commands
from reft_jax.commands import Flag
from reft_jax.config.paths import expanded
from reft_jax.errors import Preempted, RunError, Stop
from reft_jax.mesh import distributed
from reft_jax.run import jax_settings, progress
from reft_jax.run.lock import Lock

FLAGS = {"--config": Flag(needed=True), "--config.": Flag(several=True), "--workdir": Flag(expanded, needed=True)}


def parse(argv: list[str]) -> tuple[str, str, list[tuple[str, str]], dict]:
    """(config spec, workdir, [(path, text)], flags of several processes) of the command line. Raises InputError."""
    given = commands.parse(argv, __doc__, FLAGS | {f"--{name}": Flag() for name in distributed.FLAGS})
    processes = {name: given[name] for name in distributed.FLAGS if given[name] is not None}
    return given["config"], str(given["workdir"]), list(given["config."]), distributed.read_flags(processes, os.environ)


def prepare(argv: list[str], stop):
    """What `prepare.prepare` gives; imported here, after the environment is set."""
    given = parse(argv)
    from reft_jax import prepare

    return prepare.prepare(*given, stop)


def execute(run, about: dict):
    """Writes the run's first files and runs what is not done yet."""
    from reft_jax import models
    from reft_jax.config import choices
    from reft_jax.data import tokenizer as tokenizers
    from reft_jax.run import lineage, overview
    from reft_jax.run.metrics import write_json
    from reft_jax.stages import evaluate, export

    jax_settings.multiply_in(run.model.compute_dtype)
    workdir = run.workdir
    remade = [name for name, stage in run.config.stages if run.done(name) and lineage.gone(workdir, name, stage)]
    distributed.barrier("what is done is known")  # to every process, before it changes
    for name in (*run.longer, *remade):  # before config.json says so, or a kill between the two would leave them done
        run.resume(name)
    write_json(workdir / "config.json", about)  # first of what a new run writes: it says whose folder this is
    if distributed.is_primary():
        tokenizers.save(run.tokenizer, workdir / "tokenizer")
    # with these two, a checkpoint can become a Hugging Face directory
    models.save_config(workdir / "tokenizer", run.model, run.tokenizer)
    generation = export.generation_config(run.tokenizer, run.eos_ids)
    write_json(workdir / "tokenizer" / "generation_config.json", generation)
    modules = {name: choices.module("stages", kind) for name, kind in run.config.kinds}
    for name, stage in run.config.stages:
        if hasattr(modules[name], "refresh"):
            modules[name].refresh(name, stage, run)
        if name in remade:
            print(f"{name}: {lineage.gone(workdir, name, stage)[0]} is no longer there; it is made again")
    print(overview.first_lines(run, about), flush=True)
    for name, stage in run.config.stages:
        if run.done(name):
            continue
        run.stop_if_asked()
        run.begin(name)
        began = time.monotonic()
        run_stage(modules[name].run, name, stage, run)
        distributed.rest()
        print(f"{name}: finished in {progress.clock(time.monotonic() - began)}{overview.chosen(run, name)}", flush=True)
    if (workdir / "results.json").exists():
        print(f"\n{evaluate.results_table(evaluate.read_results(run))}\n\nresults: {workdir / 'results.json'}")
    if distributed.is_primary():
        show(workdir)
        if sys.prefix != sys.base_prefix and shutil.which("reft") is None:
            activate = shlex.quote(f"{sys.prefix}/bin/activate")
            print(
                f"\nThe commands need this run's environment, once in each terminal: source {activate}\n"
                f"Then, for what the model wrote: reft report samples {shlex.quote(str(workdir))} --status=wrong"
            )


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
    from reft_jax.rewards.program import VerifierError
    from reft_jax.run import profiler, trackers
    from reft_jax.run.metrics import write_text

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


@commands.command(stopped=(1, "ended at once: what was saved before is intact; the same command goes on from there"))
def main(argv: list[str]) -> int:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    stop = Stop()
    try:
        _, workdir, _, processes = parse(argv)
        with stop.listening(), Lock(workdir) as lock:
            if distributed.started(processes).processes == 1:  # of several, the first takes it when they have met
                lock.take_if_there()
            run, about = prepare(argv, stop)
            lock.make_and_take()
            jax_settings.keep_compiled(run.workdir)
            execute(run, about)
    except Preempted:
        again = shlex.join([sys.orig_argv[0], "-m", "reft_jax.main", *argv])
        print(f"stopped: everything is saved; run the same command again to go on:\n  {again}", file=sys.stderr)
        return 75
    finally:
        distributed.rest()
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code in (0, 75):
        distributed.shutdown()
    sys.exit(code)
