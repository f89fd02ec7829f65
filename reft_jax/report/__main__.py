"""The report of a run, and its samples in the terminal.

    python -m reft_jax.report WORKDIR... [--output=FILE] [--watch[=SECONDS]]
    python -m reft_jax.report samples WORKDIR [--stage=S] [--step=N or A:B] [--status=S] [--item=ID] [--grep=RE] [--limit=N]

The first writes WORKDIR/report.html (one file, opens from disk) and WORKDIR/plots/; several workdirs come side by side into the
first one's report, or into --output, and runs that differ in the seed alone become one line with a band. --watch makes the report
again every SECONDS (30) in which the files changed, until all stages are done. Exit codes: 0 done, 2 nothing to read or a bad argument.
"""

import pathlib
import re
import sys
import time

from reft_jax import commands, report
from reft_jax.commands import Flag
from reft_jax.config.paths import expanded
from reft_jax.config.words import nearest
from reft_jax.errors import InputError
from reft_jax.report import read, terminal


def seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d*)?", text) or not 1 <= float(text) <= 86400:
        raise ValueError("expected seconds, from 1 to 86400")
    return float(text)


FLAGS = {
    "WORKDIR": Flag(expanded, needed=True, several=True),
    "--output": Flag(expanded),
    "--watch": Flag(seconds, bare=30.0),
}


def parse(argv: list[str]) -> dict:
    """The command line's values. Raises InputError."""
    given = commands.parse(argv, __doc__, FLAGS)
    first = given["WORKDIR"][0]
    if not first.is_dir() and (meant := nearest(first, ["samples"])):
        raise InputError(f"{first}: there is no such folder; {meant}")
    return given


def changed(workdirs: list[pathlib.Path]) -> tuple:
    """What differs as soon as a stage has written a line or has finished."""
    names = ("*/metrics.jsonl", "*/samples.jsonl", "*/predictions.jsonl", "*/DONE", "results.json", "config.json")
    paths = sorted(path for workdir in workdirs for name in names for path in workdir.glob(name))
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path in paths if (stat := path.stat()))


def finished(workdirs: list[pathlib.Path]) -> bool:
    """Whether every stage of every config is done; False where a config cannot be read."""
    for workdir in workdirs:
        about = read.as_dict(read.json_object(workdir / "config.json", []).get("config"))
        stages = read.as_dict(about.get("stages"))
        if not stages or not all((workdir / name / "DONE").exists() for name in stages):
            return False
    return True


def watch(workdirs: list[pathlib.Path], output: pathlib.Path | None, every: float):
    """Builds now and whenever something changed; returns when all is done, or at Ctrl-C."""
    before = None
    try:
        while True:
            done, now = finished(workdirs), changed(workdirs)
            if now != before:
                before = now
                try:
                    made = report.build(workdirs, output, watch=0 if done else every)
                    print(f"{time.strftime('%H:%M:%S')}  {made[0]}", flush=True)
                except InputError as error:
                    if not all(workdir.is_dir() for workdir in workdirs):
                        raise
                    print(f"{time.strftime('%H:%M:%S')}  nothing yet: {error}", file=sys.stderr, flush=True)
            if done:
                print("all stages are done")
                return
            time.sleep(every)
    except KeyboardInterrupt:
        print("stopped watching")


@commands.command(unread=0)
def main(argv: list[str]) -> int:
    if argv[:1] == ["samples"]:
        terminal.main(argv[1:])
        return 0
    given = parse(argv)
    if given["watch"] is not None:
        watch(given["WORKDIR"], given["output"], given["watch"])
        return 0
    for path in report.build(given["WORKDIR"], given["output"]):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
