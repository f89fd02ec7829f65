"""What a stage sampled, in the terminal, read line by line and printed as it is found.

    python -m reft_jax.report samples WORKDIR [--stage=S] [--step=N or A:B] [--status=S] [--item=ID] [--grep=RE] [--limit=N]

--stage: whose samples (default: every stage that has some). --step: of one step, or of steps A to B, both included, of which either may be
left out. --status: correct, wrong, no_answer, timeout, error, blocked. --item: of one question, by its item_id: how its answers changed.
--grep: question or response matches this regular expression. --limit: at most so many (default 20, 0 = all).
"""

import json
import pathlib
import re
import sys

import numpy as np

from reft_jax import commands
from reft_jax.commands import Flag
from reft_jax.errors import InputError
from reft_jax.report import read

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a response must not move the cursor or set colours


def steps(text: str) -> tuple[float, float]:
    """(first, last) step of 'N', 'A:B', 'A:' or ':B'."""
    found = re.fullmatch(r"(\d+)|(\d*):(\d*)", text)
    if not found:
        raise ValueError("expected a step (12) or steps from:to (10:20, 10:, :20)")
    if found[1]:
        return int(found[1]), int(found[1])
    return int(found[2] or 0), int(found[3]) if found[3] else float("inf")


def pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error}); escape special characters with \\") from error


FLAGS = {
    "WORKDIR": Flag(needed=True),
    "--stage": Flag(default=""),
    "--step": Flag(steps, default=(0, float("inf"))),
    "--status": Flag(default=""),
    "--item": Flag(default=""),
    "--grep": Flag(pattern, default=re.compile("")),
    "--limit": Flag(commands.whole(0), default=20),
}


def parse(argv: list[str]) -> dict:
    """The command line's values. Raises InputError."""
    return commands.parse(argv, __doc__, FLAGS)


def files(workdir: pathlib.Path, stage: str) -> list[pathlib.Path]:
    stages = read.stage_settings(workdir, read.json_object(workdir / "config.json", []))
    paths = read.in_order(workdir.glob("*/samples.jsonl"), stages)
    if not paths:
        raise InputError(
            f"{workdir}: no stage has written samples.jsonl; stages of kind reft and online self_train write it, with log_samples > 0"
        )
    if stage and stage not in (names := [path.parent.name for path in paths]):
        raise InputError(f"--stage={stage!r}: legal are {', '.join(map(repr, names))}, which have samples in {workdir}")
    return [path for path in paths if stage in ("", path.parent.name)]


def matching(path: pathlib.Path, given: dict, notes: list[str]):
    """The rows that pass every filter, in the file's order; lines of other steps are not parsed."""
    skips, (first, last) = read.Skips(path, notes), given["step"]
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
            and given["status"] in ("", row.get("status"))
            and given["item"] in ("", row.get("item_id"))
            and any(map(given["grep"].search, texts))
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
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def main(argv: list[str]):
    """Prints; raises InputError for a bad filter or a workdir without samples."""
    given, notes, count = parse(argv), [], 0
    for path in files(read.folder(given["WORKDIR"]), given["stage"]):
        for row in matching(path, given, notes):
            if count == given["limit"] > 0:
                print(f"... stopped after {count}; --limit=0 prints all")
                return
            print(shown(row, path.parent.name))
            count += 1
    print(f"{count} samples")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
