"""Traces of single steps, for TensorBoard's and Perfetto's pictures of what device and host did when: `config.logging.profile_steps`.

python -m reft_jax.main --config=configs/demo.py --workdir=runs/demo "--config.logging.profile_steps=(10, 12)"
"""

import contextlib

from reft_jax.mesh import distributed


def traced(run, name: str, steps: range):
    """Yields the steps of a training stage, in order; <stage>/profile holds a trace of those that config.logging.profile_steps names.

    Of several processes, process 0 traces what it does itself.
    """
    import jax

    if not run.config.logging.profile_steps or not distributed.is_primary():
        yield from steps
        return
    first, last = run.config.logging.profile_steps
    wanted = [step for step in steps if first <= step <= last]
    if not wanted:
        print(
            f"{name}: no trace: config.logging.profile_steps names none of steps {steps.start} to {steps.stop - 1}",
            flush=True,
        )
    folder = run.folder(name) / "profile"
    for step in steps:
        if wanted and step == wanted[0]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of Python: slow, and a hundred times the size
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
        with jax.profiler.StepTraceAnnotation(name, step_num=step):
            yield step
        if wanted and step == wanted[-1]:
            jax.block_until_ready(jax.live_arrays())  # what the devices were given is part of the step
            jax.profiler.stop_trace()
            print(
                f"{name}: trace of steps {wanted[0]} to {step} in {folder}: open its perfetto_trace.json.gz at "
                f"https://ui.perfetto.dev, or pip install xprof and xprof --logdir={folder}",
                flush=True,
            )


def end():
    """Writes the trace that an exception has left unfinished, if there is one."""
    import jax

    with contextlib.suppress(RuntimeError):  # none is being made
        jax.profiler.stop_trace()
