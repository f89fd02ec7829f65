"""A run's folder belongs to one process at a time. This imports neither JAX nor data: who comes second is told at once."""

import os
import pathlib

from reft_jax.data import locks
from reft_jax.errors import InputError
from reft_jax.mesh import distributed


class Lock:
    """The lock on a workdir, held until the block ends; it goes with the process, however that ends."""

    def __init__(self, workdir):
        self.workdir, self._handle = pathlib.Path(workdir).absolute(), None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._handle is not None:
            os.close(self._handle)

    def take_if_there(self):
        """Takes the lock of a folder that is there, and writes nothing. InputError if another process runs in it."""
        try:
            self._take()
        except OSError:  # none yet, a file, not to be read: `workdirs.check` says so
            return

    def make_and_take(self):
        """Makes the folder and takes its lock, unless that was done. Of several processes the first has it. InputError."""
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            if distributed.is_primary():
                self._take()
        except OSError as error:  # where permissions tell nothing: /proc, a name that is too long
            raise InputError(
                f"--workdir={self.workdir}: cannot be made ({error.strerror}); choose another folder"
            ) from error

    def _take(self):
        if self._handle is not None:
            return
        handle = os.open(self.workdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            locks.take(handle, f"--workdir={self.workdir}")
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(
                f"--workdir={self.workdir}: another process is running in it; wait for it, or choose another folder"
            ) from error
        self._handle = handle
