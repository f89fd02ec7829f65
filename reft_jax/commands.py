"""What all commands share: how arguments are read, what --help prints, and how a command ends."""

import contextlib
import dataclasses
import errno
import functools
import glob
import importlib.util
import io
import os
import sys
import threading
from collections.abc import Callable, Sequence

from reft_jax.config.words import listed, nearest
from reft_jax.errors import InputError, RunError

# ------------------------------------------------------------------ arguments


@dataclasses.dataclass(frozen=True)
class Flag:
    """One argument. `read(text)` gives its value, or raises ValueError with what is legal; None = it takes none."""

    read: Callable | None = str
    default: object = None
    needed: bool = False
    several: bool = False  # it may be repeated; its value is a tuple
    bare: object = None  # what it means without a value


SWITCH = Flag(None, default=False, bare=True)


def whole(least: int, of: str = "a whole number") -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise ValueError(f"it must be {of} from {least}")
        return int(text)

    return read


def one_of(*legal: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in legal:
            raise ValueError(f"{nearest(text, legal)}legal are {listed(legal)}")
        return text

    return read


def parse(argv: Sequence[str], doc: str, known: dict[str, Flag]) -> dict:
    """{name: value} of a command line of `--flag=value`, `--flag value` and words; of a flag that is repeated the last value counts.

    known: "--flag" -> what it takes; "--config." stands for all flags that begin so, whose value is a tuple of (rest, text); a name without
    dashes stands for the words. In names of the result dashes are underscores. -h and --help, anywhere, print `doc`, the command's
    docstring, and end the process (0). Raises InputError; what is indented in `doc` is the usage that it shows.
    """
    if {"-h", "--help"} & set(argv):
        print(doc.strip())
        raise SystemExit(0)
    usage = "usage:\n" + "\n".join(line for line in doc.splitlines() if line.startswith("    "))
    word = next((name for name in known if not name.startswith("-")), None)
    given, rest = {}, list(argv)
    while rest:
        text = rest.pop(0)
        name, equals, value = text.partition("=") if text.startswith("-") or word is None else (word, "=", text)
        group = name[: name.find(".") + 1]
        flag = known.get(name) or known.get(group)
        if flag is None or name == group:
            raise InputError(f"unknown argument {name!r}{_meant(name, known)}\n{usage}")
        if name == word and not flag.several and name in given:
            raise InputError(f"one {name} at a time: got {str(given[name])!r} and {value!r}\n{usage}")
        if flag.bare is not None and not equals:
            value = flag.bare
        elif flag.read is None:
            raise InputError(f"{name} takes no value; got {value!r}\n{usage}")
        else:
            if not equals and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.pop(0)
            if not equals or not value and name in known:
                raise InputError(f"{name} needs a value\n{usage}")
            try:
                value = flag.read(value)
            except ValueError as error:
                raise InputError(f"{name}: got {value!r}; {error}") from error
        if name not in known:
            given[group] = (*given.get(group, ()), (name.removeprefix(group), value))
        else:
            given[name] = (*given.get(name, ()), value) if flag.several else value
    for name, flag in known.items():
        if flag.needed and name not in given:
            raise InputError(f"{name} is missing\n{usage}")
    return {
        name.lstrip("-").replace("-", "_"): given.get(name, () if flag.several else flag.default)
        for name, flag in known.items()
    }


def _meant(name: str, known) -> str:
    meant = nearest(name, [*known, "--help"]).rstrip()
    return f"; {meant}" if meant else ""


# ------------------------------------------------------------------ how a command ends


def command(*, unread: int | None = None, stopped: tuple[int, str] = (130, "stopped by Ctrl-C")):
    """Of a main(argv) -> exit code makes a command: what a user can cause becomes one message and its exit code; `stopped` is those of Ctrl-C.
    Where nobody reads the output any more, `| head` or a terminal that was closed, a command that only prints ends with the code `unread`;
    others go on without."""

    def decorate(main):
        @functools.wraps(main)
        def run(argv: Sequence[str]) -> int:
            if main.__module__ == "__main__":
                in_utf8()
            open_console(ends=unread is not None)
            leave_libtpu_alone()
            try:
                code = main(argv)
                sys.stdout.flush()
                return code
            except InputError as error:
                return _fail(error, 2)
            except RunError as error:
                return _fail(error, 1)
            except BrokenPipeError:
                if unread is None:
                    raise
                return unread
            except KeyboardInterrupt:
                print(f"\n{stopped[1]}", file=sys.stderr)
                return stopped[0]
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return _fail(
                    f"the disk is full ({error.filename or error}); what was complete before is intact. Free some space and run "
                    "the same command again",
                    1,
                )
            except (AssertionError, RuntimeError) as error:
                told, code = no_device(error)
                if not told:
                    raise
                return _fail(told, code)
            finally:
                with contextlib.suppress(BrokenPipeError):
                    sys.stdout.flush()

        return run

    return decorate


def _fail(message, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def no_device(error: Exception) -> tuple[str, int]:
    """(message, exit code) where JAX cannot begin with the devices that it is told to use; ("", 0) for other errors."""
    said, jax = " ".join(str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".").split()), sys.modules.get("jax")
    if not said.startswith("Unable to initialize backend"):
        if not isinstance(error, AssertionError) or jax is None:
            return "", 0
        try:
            jax.devices()
            return "", 0
        except AssertionError:  # as it says that no GPU is visible
            said = "no device of that kind is visible here"
    there = "visible" not in said and "NOT_FOUND" not in said and "known backends" not in said  # but busy or broken
    return (
        f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}: JAX cannot begin: {said}. Unset JAX_PLATFORMS to take what there is, set "
        "JAX_PLATFORMS=cpu, or install what the device needs (pip install -e '.[gpu]' or '.[tpu]')",
        1 if there else 2,
    )


# ------------------------------------------------------------------ the process


class _Output(io.FileIO):
    """Standard output or error, which may end before the command does: what cannot be written is then dropped. `ends`: the first time that
    the main thread is told so, by BrokenPipeError, or by what else was raised (the disk under a file that it goes to is full)."""

    def __init__(self, number: int, ends: bool):
        super().__init__(number, "w", closefd=False)
        self._ends = ends

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self._ends and threading.current_thread() is threading.main_thread():
                self._ends = False
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise OSError(errno.ENOSPC, "what was printed is cut short", "standard output") from error
                raise BrokenPipeError from error
            return len(data)


def in_utf8():
    """Begins the process anew in Python's UTF-8 mode where the locale asks for another encoding: tokenizers and Orbax know paths in UTF-8 alone."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_console(*, ends: bool):
    """Standard output and error that outlive their readers and can print every text, `\\xe9` for what their encoding lacks. What a test or a
    notebook has put in their place is left alone."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # `>&-`: the next file that is opened would get its number, and what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # program servers have it too
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        how = dict(encoding="utf-8")
        if stream is None:
            number = os.open(os.devnull, os.O_WRONLY)
        else:
            stream.flush()
            how = {key: getattr(stream, key) for key in ("encoding", "line_buffering", "write_through")}
        raw = _Output(number, ends and name == "stdout")
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", **how))


def leave_libtpu_alone(environment=os.environ):
    """Where libtpu is installed and there is neither a TPU nor a GPU, JAX is told to take the CPU. Else it would try libtpu, which prints five
    lines of errors first. Device files and the environment of TPU machines, and JAX_PLATFORMS, come before."""
    told = ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")
    tpus = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")  # up to v4, and since
    gpus = ("/dev/nvidia[0-9]*", "/dev/nvhost*", "/dev/dxg", "/dev/kfd")  # NVIDIA's, Jetson's, WSL's, AMD's
    if not any(map(environment.get, told)) and not any(map(glob.glob, tpus + gpus)):
        if importlib.util.find_spec("libtpu") is not None:
            environment["JAX_PLATFORMS"] = "cpu"
