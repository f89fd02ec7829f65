"""The errors that a user can cause; `reft_jax.main` turns each into one message and an exit code."""


class InputError(ValueError):
    """Bad configuration or input (exit code 2). The message names the field or file:line, the value, what is legal and what to do."""


class Preempted(Exception):
    """The run was asked to stop and has saved everything (exit code 75): the same command goes on from there."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that its message explains (exit code 1); what was saved before is intact."""
