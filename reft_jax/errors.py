"""The ways in which a run can end early; `reft_jax.main` turns each into one message and an exit code."""

import contextlib
import os
import signal
import threading


class InputError(ValueError):
    """Bad configuration or input (exit code 2). The message names the field or file:line, the value, what is legal and what to do."""


class Preempted(Exception):
    """The run was asked to stop and has saved everything (exit code 75): the same command goes on from there."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that its message explains (exit code 1); what was saved before is intact."""


class Stop:
    """Set by SIGTERM, SIGHUP (the terminal is gone) and Ctrl-C; the loops look at it between steps. A second Ctrl-C stops at once."""

    def __init__(self):
        self._asked = False
        self.agree = None  # with several processes: () -> bool, the same in all of them, which must ask equally often

    @property
    def requested(self) -> bool:
        return self._asked if self.agree is None else self.agree()

    @contextlib.contextmanager
    def listening(self):
        """Takes the signals while the block runs; in a thread that is not the main one, which gets none, nothing. A SIGHUP that is ignored
        (nohup) stays so."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread():
            numbers = ()
        elif signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            numbers = numbers[:2]
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number, frame):
        del frame
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if number == signal.SIGINT:  # not print, which may be at work already
            with contextlib.suppress(OSError):
                os.write(2, b"\nCtrl-C: saving what is done, then stopping. Once more ends the run at once, unsaved\n")
        if self.agree is not None and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # the signal that the other processes hear of
