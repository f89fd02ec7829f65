"""Grades the stored responses of a finished workdir again, with any matcher: nothing is sampled and no model is loaded.

    python -m reft_jax.rescore WORKDIR [--matcher=NAME | --all-matchers] [--k=K] [--limit-disagreements=N] [--write]

Reads config.json, results.json and every <label>/predictions.jsonl, and prints for each label, with 95 % intervals, greedy accuracy, the vote
of the first k samples and the unbiased pass@k. --matcher: a file of reft_jax/rewards/matchers, or one of your own, my.py (default: the
run's). --all-matchers: all of reft_jax/rewards/matchers that read this task's answers, and then on how many greedy responses each two
disagree, with the first N (default 10) of them: why a score differs from another tool's. --k: samples of a question that count (default:
all). The workdir is only read, unless --write is given: then results.json gets the figures, as <label>/rescored/<matcher>. Exit codes: 0
done, 1 failed, 2 bad input.
"""

import itertools
import json
import pathlib
import sys

from reft_jax import commands
from reft_jax.commands import SWITCH, Flag
from reft_jax.config import renamed
from reft_jax.config.paths import expanded
from reft_jax.data import json_text
from reft_jax.errors import InputError
from reft_jax.rewards import estimates, matchers, score
from reft_jax.rollouts import figures
from reft_jax.run.lineage import outdated
from reft_jax.run.metrics import table, write_json

FIELDS = ("item_id", "k", "prefix", "response", "status", "gold", "split", "mode")


FLAGS = {
    "WORKDIR": Flag(expanded, needed=True),
    "--matcher": Flag(),
    "--all-matchers": SWITCH,
    "--k": Flag(commands.whole(1), default=0),
    "--limit-disagreements": Flag(commands.whole(0), default=10),
    "--write": SWITCH,
}


def parse(argv: list[str]) -> dict:
    """The command line's values. Raises InputError."""
    given = commands.parse(argv, __doc__, FLAGS)
    if given["matcher"] is not None and given["all_matchers"]:
        raise InputError("--matcher and --all-matchers exclude each other")
    return given


# ---- what a workdir holds ------------------------------------------------------------------------------------------------


def read_json(path: pathlib.Path) -> dict:
    if not path.exists():
        raise InputError(f"{path}: there is no such file; WORKDIR is the folder of a run that has evaluated")
    return json_text.read_object(path, "WORKDIR is the folder of a run that has evaluated")


def read_lines(path: pathlib.Path) -> list[dict]:
    """The lines of a predictions.jsonl. Errors name file:line."""
    lines = []
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    for number, text in enumerate(texts, start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not JSON ({error}); was the evaluation killed? run it again") from error
        if not isinstance(line, dict) or (missing := [name for name in FIELDS if name not in line]):
            what = f"lacks {', '.join(missing)}" if isinstance(line, dict) else "is no JSON object"
            raise InputError(f"{path}:{number}: {what}; a line holds {', '.join(FIELDS)}")
        if not isinstance(line["item_id"], str) or type(line["k"]) is not int:
            got = f"item_id {line['item_id']!r} and k {line['k']!r}"
            raise InputError(f"{path}:{number}: got {got}; they must be a text and a whole number")
        lines.append(line)
    return lines


def labels_of(workdir: pathlib.Path, results: dict) -> dict[str, list[dict]]:
    """label -> lines, in the order of results.json; then folders that it does not name."""
    found = sorted(path.parent.name for path in workdir.glob("*/predictions.jsonl"))
    if not found:
        raise InputError(
            f"{workdir}: no <label>/predictions.jsonl; WORKDIR is the folder of a run with an evaluate stage"
        )
    known = [label for label in results.get("stages", {}) if label in found]
    return {label: read_lines(workdir / label / "predictions.jsonl") for label in dict.fromkeys([*known, *found])}


# ---- grading and figures -----------------------------------------------------------------------------------------------


def regrade(
    lines: list[dict], texts: list[str | None], task: str, cot: str, matcher: str, verifier: dict, ran: dict
) -> list[score.Grade]:
    """A grade for each line; a question that was too long to be asked (no text) has no answer."""
    asked = [i for i, text in enumerate(texts) if text is not None]
    known = ("timeout_s", "memory_mb", "workers", "max_verifier_failures")
    limits = {key: verifier[key] for key in known if key in verifier}
    golds = [str(lines[i]["gold"]) for i in asked]
    grades = score.grade(task, cot, [texts[i] for i in asked], golds, matcher=matcher, ran=ran, **limits)
    out = [score.Grade("no_answer", None, False)] * len(lines)
    for i, grade in zip(asked, grades, strict=True):
        out[i] = grade
    return out


def summed(lines: list[dict], grades: list[score.Grade], k: int, where: str, agree: estimates.Agree) -> dict:
    """Greedy accuracy, vote@k and pass@k of one label on the test split (dev where there is no other), with 95 % intervals. `agree`: which
    answers are one vote."""
    split = "test" if any(line["split"] == "test" for line in lines) else "dev"
    greedy, sampled = [], {}
    for line, grade in zip(lines, grades, strict=True):
        if line["split"] == split and line["mode"] == "greedy":
            greedy.append(grade)
        elif line["split"] == split and line["mode"] == "sampled":
            sampled.setdefault(line["item_id"], []).append((line["k"], line["status"] == "too_long", grade))
    out = {"split": split}
    if greedy:
        out |= figures.greedy([[grade] for grade in greedy], len(greedy))
    if not sampled:
        if k:
            raise InputError(f"--k={k}: {where} holds no samples, only greedy responses")
        return out
    rows = [[g for _, left_out, g in sorted(row, key=lambda one: one[0]) if not left_out] for row in sampled.values()]
    asked = [row for row in rows if row]
    stored = min(map(len, asked), default=0)
    if k > stored:
        raise InputError(f"--k={k}: {where} holds {stored} samples of a question; k can be 1 to {stored}")
    return out | (figures.sampled(asked, len(rows), k or stored, agree) if asked else {})


# ---- tables --------------------------------------------------------------------------------------------------------------


def percent(row: dict, key: str) -> str:
    if key not in row:
        return "-"
    interval = row["ci95" if key == "accuracy" else f"{key}_ci95"]
    return "{:.1f} ({:.1f}-{:.1f})".format(100 * row[key], *(100 * bound for bound in interval))


def figures_table(results: dict[str, dict]) -> str:
    """label -> figures as a table, in %."""
    sampled = sorted({key for row in results.values() for key in row if "@" in key and not key.endswith("_ci95")})
    splits = sorted({row["split"] for row in results.values()})
    header = ["", f"{'/'.join(splits)} greedy", *(key.replace("maj", "vote") for key in sampled)]
    rows = [[label, *(percent(row, key) for key in ("accuracy", *sampled))] for label, row in results.items()]
    return table(header, rows)


def disagreements(greedy: dict[str, dict], names: list[str], limit: int) -> str:
    """Of how many greedy responses each two matchers think differently, and the first of them. `greedy`: (label, line) per index
    under "lines", and a list of grades under each matcher's name."""
    num, blocks = len(greedy["lines"]), []
    differ = {
        pair: [i for i in range(num) if greedy[pair[0]][i].correct != greedy[pair[1]][i].correct]
        for pair in itertools.combinations(names, 2)
    }
    counts = {frozenset(pair): str(len(places)) for pair, places in differ.items()}
    rows = [[a, *(counts.get(frozenset((a, b)), "-") for b in names)] for a in names]
    title = f"Greedy responses, of {num}, that one matcher calls right and the other wrong"
    blocks.append(f"{title}\n\n" + table(["", *names], rows))
    for pair, places in differ.items():
        if places[:limit]:
            items = []
            for i in places[:limit]:
                label, line = greedy["lines"][i]
                grades = [greedy[name][i] for name in pair]
                read = [short(grade.extracted or grade.status) + "+" * grade.correct for grade in grades]
                items.append([line["item_id"], label, str(line["gold"]), *read])
            title = f"{pair[0]} against {pair[1]}: the first {len(items)} of {len(places)} (+ = right)"
            blocks.append(f"{title}\n\n" + table(["item_id", "label", "gold", *pair], items))
    return "\n\n".join(blocks)


def short(text: str) -> str:
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= 32 else text[:29] + "..."


# ---- the command ---------------------------------------------------------------------------------------------------------


def rescore(workdir: pathlib.Path, *, matcher: str | None, every: bool, k: int, limit: int, write: bool) -> str:
    """What the command prints; with `write` it also puts the figures into results.json."""
    if not workdir.is_dir():
        raise InputError(f"{workdir}: there is no such folder; WORKDIR is the folder of a run that has evaluated")
    path = workdir / "results.json"
    run, results = read_json(workdir / "config.json"), read_json(path) if path.exists() or write else {"stages": {}}
    rows = results.get("stages")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError(f"{path}: stages is not a group of labels with their figures; restore it, or evaluate again")
    try:
        config = renamed.modern(run["config"] | {"stages": {}})  # which are not read
        data, verifier = config["data"], config["verifier"]
        task, cot, own = data["task"], data["cot"], data["matcher"]
        kind = score.answer_kind(task)
    except (KeyError, TypeError, AttributeError) as error:
        what = (
            f"lacks {error}" if isinstance(error, KeyError) else "has null, or another value, where a group should be"
        )
        raise InputError(f"{workdir / 'config.json'}: {what}; it must be the config.json that the run wrote") from error
    names = matchers.names(kind) if every else [matcher or own]
    matchers.get(names[0], kind)
    labels = labels_of(workdir, results)

    figure_of = {name: {} for name in names}
    greedy = {"lines": [], **{name: [] for name in names}}
    ran: dict = {}  # programs are run once for all matchers
    notes = [
        f"note: {label}: its responses are of a checkpoint that is no longer there; the run's command measures what is there now"
        for label in labels
        if outdated(workdir, rows.get(label, {}))
    ]
    for label, lines in labels.items():
        texts = [None if line["response"] is None else line["prefix"] + line["response"] for line in lines]
        places = [i for i, line in enumerate(lines) if line["mode"] == "greedy"]
        greedy["lines"] += [(label, lines[i]) for i in places]
        for name in names:
            grades = regrade(lines, texts, task, cot, name, verifier, ran)
            figure_of[name][label] = summed(
                lines, grades, k, f"{workdir / label}/predictions.jsonl", matchers.same(name, kind)
            )
            greedy[name] += [grades[i] for i in places]
            others = [i for i, line in enumerate(lines) if texts[i] is not None and line["status"] != grades[i].status]
            if name == own and others:
                line = lines[others[0]]
                notes.append(
                    f"note: {label}: {len(others)} of {len(lines)} responses are graded otherwise than when the run was made, the first is "
                    f"{line['item_id']} k={line['k']} ({line['split']}, {line['mode']}): {line['status']}, now {grades[others[0]].status}"
                )
    blocks = [
        f"matcher {name}{' (the run' + chr(39) + 's)' if name == own else ''}, in % with 95 % intervals\n\n{figures_table(figure_of[name])}"
        for name in names
    ]
    if every:
        blocks.append(disagreements(greedy, names, limit))
    if notes:
        blocks.append("\n".join(notes))
    if write:
        for name, label in itertools.product(names, labels):
            stage = results.setdefault("stages", {}).setdefault(label, {})
            stage.setdefault("rescored", {})[name] = figure_of[name][label]
        write_json(path, results)
        blocks.append(f"wrote the figures into {path}")
    return "\n\n".join(blocks)


@commands.command(unread=0, stopped=(1, "interrupted: nothing was changed"))
def main(argv: list[str]) -> int:
    given = parse(argv)
    told = rescore(
        given["WORKDIR"],
        matcher=given["matcher"],
        every=given["all_matchers"],
        k=given["k"],
        limit=given["limit_disagreements"],
        write=given["write"],
    )
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
