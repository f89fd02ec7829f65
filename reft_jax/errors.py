"""The ways in which a run can end early; `reft_jax.main` turns each into one message and an exit code."""

import contextlib
import signal


class InputError(ValueError):
    """Bad configuration or input (exit code 2). The message names the field or file:line, the value, what is legal and what to do."""


class Preempted(Exception):
    """The run was asked to stop and has saved everything (exit code 75): the same command goes on from there."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that its message explains (exit code 1); what was saved before is intact."""


class Stop:
    """Set by SIGTERM and Ctrl-C; the loops look at it between steps. A second Ctrl-C stops at once."""

    def __init__(self):
        self.requested = False

    @contextlib.contextmanager
    def listening(self):
        """Takes the two signals while the block runs."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number, frame):
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
