"""The report of a run, and its samples in the terminal.

    python -m reft_jax.report WORKDIR... [--output FILE] [--watch[=SECONDS]]
    python -m reft_jax.report samples WORKDIR [--stage S] [--step N or A:B] [--status S] [--item ID] [--grep RE] [--limit N]

The first writes WORKDIR/report.html (one file, opens from disk) and WORKDIR/plots/; several workdirs come side by side into the
first one's report, or into --output, and runs that differ in the seed alone become one line with a band. --watch makes the report
again every SECONDS (30) in which the files changed, until all stages are done. Exit codes: 0 done, 2 nothing to read or a bad argument.
"""

import argparse
import pathlib
import sys
import time

from reft_jax import report
from reft_jax.errors import InputError
from reft_jax.report import read, terminal


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m reft_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="as given to reft_jax.main")
    parser.add_argument(
        "--output", metavar="FILE", help="where the page goes (default: report.html in the first WORKDIR)"
    )
    parser.add_argument(
        "--watch", nargs="?", type=float, const=30.0, metavar="SECONDS", help="make it again while the run goes on"
    )
    flags = parser.parse_args(argv)
    if flags.watch is not None and not 1 <= flags.watch <= 86400:
        parser.error(f"--watch={flags.watch:g}: expected seconds, from 1 to 86400")
    return flags


def changed(workdirs: list[str]) -> tuple:
    """What differs as soon as a stage has written a line or has finished."""
    names = ("*/metrics.jsonl", "*/samples.jsonl", "*/predictions.jsonl", "*/DONE", "results.json", "config.json")
    paths = sorted(path for workdir in workdirs for name in names for path in pathlib.Path(workdir).glob(name))
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path in paths if (stat := path.stat()))


def finished(workdirs: list[str]) -> bool:
    """Whether every stage of every config is done; False where a config cannot be read."""
    for workdir in workdirs:
        about = read.as_dict(read.json_object(pathlib.Path(workdir) / "config.json", []).get("config"))
        stages = read.as_dict(about.get("stages"))
        if not stages or not all((pathlib.Path(workdir) / name / "DONE").exists() for name in stages):
            return False
    return True


def watch(flags: argparse.Namespace):
    """Builds now and whenever something changed; returns when all is done, or at Ctrl-C."""
    before = None
    try:
        while True:
            done, now = finished(flags.workdirs), changed(flags.workdirs)
            if now != before:
                before = now
                try:
                    made = report.build(flags.workdirs, flags.output, watch=0 if done else flags.watch)
                    print(f"{time.strftime('%H:%M:%S')}  {made[0]}", flush=True)
                except InputError as error:
                    if not all(pathlib.Path(workdir).is_dir() for workdir in flags.workdirs):
                        raise
                    print(f"{time.strftime('%H:%M:%S')}  nothing yet: {error}", file=sys.stderr, flush=True)
            if done:
                print("all stages are done")
                return
            time.sleep(flags.watch)
    except KeyboardInterrupt:
        print("stopped watching")


def main(argv: list[str]) -> int:
    try:
        if argv[:1] == ["samples"]:
            terminal.main(argv[1:])
            return 0
        flags = parse(argv)
        if flags.watch is not None:
            watch(flags)
            return 0
        for path in report.build(flags.workdirs, flags.output):
            print(path)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
