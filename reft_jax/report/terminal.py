"""`python -m reft_jax.report samples`: what a stage sampled, in the terminal, read line by line and printed as it is found."""

import argparse
import json
import os
import pathlib
import re
import sys

import numpy as np

from reft_jax.errors import InputError
from reft_jax.report import read

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a response must not move the cursor or set colours


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reft_jax.report samples", description="Prints a stage's samples.")
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("--stage", default="", help="whose samples (default: every stage that has some)")
    parser.add_argument(
        "--step",
        default="",
        metavar="N or A:B",
        help="of one step, or of steps A to B (both included; either may be left out)",
    )
    parser.add_argument("--status", default="", help="correct, wrong, no_answer, timeout, error, blocked")
    parser.add_argument(
        "--item", default="", metavar="ID", help="of one question, by its item_id: how its answers changed"
    )
    parser.add_argument("--grep", default="", metavar="RE", help="question or response matches this regular expression")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (default 20, 0 = all)")
    flags = parser.parse_args(argv)
    if flags.limit < 0:
        parser.error(f"--limit={flags.limit}: expected 0 (all) or more")
    return flags


def steps(text: str) -> tuple[float, float]:
    """(first, last) step of 'N', 'A:B', 'A:' or ':B'."""
    found = re.fullmatch(r"(\d+)|(\d*):(\d*)", text)
    if text and not found:
        raise InputError(f"--step={text!r}: expected a step (12) or steps from:to (10:20, 10:, :20)")
    if not text:
        return 0, float("inf")
    if found[1]:
        return int(found[1]), int(found[1])
    return int(found[2] or 0), int(found[3]) if found[3] else float("inf")


def files(workdir: pathlib.Path, stage: str) -> list[pathlib.Path]:
    stages = read.stage_settings(read.existing(workdir), read.json_object(workdir / "config.json", []))
    paths = read.in_order(workdir.glob("*/samples.jsonl"), stages)
    if not paths:
        raise InputError(
            f"{workdir}: no stage has written samples.jsonl; stages of kind reft and online self_train write it, with log_samples > 0"
        )
    if stage and stage not in (names := [path.parent.name for path in paths]):
        raise InputError(f"--stage={stage!r}: legal are {', '.join(map(repr, names))}, which have samples in {workdir}")
    return [path for path in paths if stage in ("", path.parent.name)]


def matching(path: pathlib.Path, flags, first: float, last: float, wanted, notes: list[str]):
    """The rows that pass every filter, in the file's order; lines of other steps are not parsed."""
    skips = read.Skips(path, notes)
    for where, line in read.lines(path):
        found = read.SAMPLE.match(line)
        if found and not first <= int(found[1]) <= last:
            continue
        row = read.parsed(line)
        if row is None or not read.number(row.get("step")):
            skips.add(where, line)
            continue
        texts = [str(row.get(key) or "") for key in ("question", "response")]
        if (
            first <= row["step"] <= last
            and flags.status in ("", row.get("status"))
            and flags.item in ("", row.get("item_id"))
            and any(map(wanted.search, texts))
        ):
            yield row
    skips.close()


def shown(row: dict, stage: str) -> str:
    """A sample as text: a line of facts, the question, the response indented, the answer."""
    numbers = "  ".join(f"{key} {row[key]:.3g}" for key in ("score", "kl") if read.number(row.get(key)))
    adv = row.get("adv")
    if isinstance(adv, list) and adv and all(map(read.number, adv)):
        numbers += f"  adv {np.mean(adv):+.2f} on average"
    head = f"{stage} step {row['step']}  {row.get('item_id', '')}  {row.get('status', '')}  {numbers}".rstrip()
    response = "\n".join("    " + line for line in str(row.get("response") or "").split("\n"))
    answer = json.dumps(row.get("extracted"), ensure_ascii=False)
    return safe(f"{head}\n  question  {row.get('question') or ''}\n  response\n{response}\n  answer    {answer}\n")


def safe(text: str) -> str:
    text = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")


def main(argv: list[str]):
    """Prints; raises InputError for a bad filter or a workdir without samples."""
    flags = parse(argv)
    first, last = steps(flags.step)
    try:
        wanted = re.compile(flags.grep, re.MULTILINE)
    except re.error as error:
        raise InputError(
            f"--grep={flags.grep!r}: not a regular expression ({error}); escape special characters with \\"
        ) from error
    notes: list[str] = []
    count = 0
    try:
        for path in files(pathlib.Path(flags.workdir), flags.stage):
            for row in matching(path, flags, first, last, wanted, notes):
                if flags.limit and count == flags.limit:
                    print(f"... stopped after {count}; --limit=0 prints all")
                    return
                print(shown(row, path.parent.name))
                count += 1
        print(f"{count} samples")
    except BrokenPipeError:  # piped into head or less, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
