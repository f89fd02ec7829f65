"""Locks between processes, on file systems that have them."""

import fcntl
import sys


def take(handle: int, path, *, wait: bool = False):
    """Locks what an open file descriptor stands for, until it is closed. BlockingIOError if another process has the lock; with `wait` until
    it has not. Some mounts of Lustre, NFS and the like know no locks (ENOSYS, EOPNOTSUPP, ENOLCK, ...): a warning, and on without one."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        print(
            f"warning: {path}: its file system has no locks ({error.strerror}); nothing keeps a second process out: start no other there",
            file=sys.stderr,
            flush=True,
        )
