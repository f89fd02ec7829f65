"""Which samples and predictions a report holds, where there are more than fit into it.

The choice is a function of what is in the files: of a sample's step and place, of a question's name. Nothing is drawn.
"""

import pathlib
import re
import zlib

import numpy as np

from reft_jax.report import pieces, read
from reft_jax.report.page import embedded
from reft_jax.report.plots import title_of
from reft_jax.report.read import Index, Workdir

MAX_SAMPLES, MAX_TOKENS, MAX_TEXT = 1500, 1000, 6000  # of one file; of one sample that keep their numbers; characters
FIRST_LAST, PER_EDGE, WHOLE, PER_WHOLE, PER_STATUS, PER_STEP = 2, 12, 6, 40, 8, 4
QUESTIONS = {"test": 100}  # predictions: so many of the test questions, of any other split OTHER_SPLIT
OTHER_SPLIT, PER_QUESTION = 30, 3
NUMBERS = {"lp": "logp", "rl": "ref_logp", "v": "value", "a": "adv"}


def mix(step, place) -> np.ndarray:
    """u64[N]: a well-mixed number of (step, place) (splitmix64's finisher), the same in every process."""
    with np.errstate(over="ignore"):
        x = np.asarray(step, np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(place, np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def order(index: Index) -> list[int]:
    """Rows from the most wanted on: the first and last steps, all answers to a few questions, each status, then a few of
    steps spread evenly over the run. A report takes as many of them as fit."""
    if not len(index.step):
        return []
    score = mix(index.step, index.place)
    by_step = np.lexsort((score, index.step))  # rows of one step together, within it in mixed order
    steps, first = np.unique(index.step[by_step], return_index=True)
    last = np.append(first[1:], len(by_step))
    edges = [*range(min(FIRST_LAST, len(steps))), *range(max(FIRST_LAST, len(steps) - FIRST_LAST), len(steps))]
    out = [row for i in edges for row in by_step[first[i] : min(last[i], first[i] + PER_EDGE)]]

    counts = np.bincount(index.item)
    often = sorted(
        np.flatnonzero(counts > 1), key=lambda i: (-counts[i], zlib.crc32(index.items[i].encode("utf-8", "replace")))
    )
    for item in often[:WHOLE]:
        rows = np.flatnonzero(index.item == item)
        out.extend(rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), PER_WHOLE)).astype(int))])
    for status in range(len(index.statuses)):
        rows = np.flatnonzero(index.status == status)
        out.extend(rows[np.argsort(score[rows], kind="stable")[:PER_STATUS]])
    for begin in (0, PER_STEP):  # twice through the steps, each time other rows of them
        for i in spread(len(steps)):
            out.extend(by_step[first[i] + begin : min(last[i], first[i] + begin + PER_STEP)])
            if len(out) > 4 * MAX_SAMPLES:
                break
    out.extend(range(min(len(index.step), MAX_SAMPLES)))  # where there are few, all
    return list(dict.fromkeys(int(row) for row in out))[:MAX_SAMPLES]


def spread(count: int):
    """0 .. count - 1, ordered so that every beginning of it lies evenly over the whole (bits reversed)."""
    bits = max(1, (count - 1).bit_length())
    return (i for i in (int(format(j, f"0{bits}b")[::-1], 2) for j in range(1 << bits)) if i < count)


def samples(run: Workdir, stage: str, budget: int) -> dict:
    """The chosen samples of a stage, about `budget` bytes of JSON: {"total", "rows"}, rows by step; {} without any."""
    path = run.path / stage / "samples.jsonl"
    index = read.index_samples(path, run.notes)
    if not len(index.step):
        return {}
    kept, size = [], 0
    rows = order(index)
    for row, value in zip(rows, read.rows_at(path, index.offset[rows]), strict=True):
        if value is None:
            continue
        one = sample(value)
        size += len(embedded(one))
        if size > budget and kept:
            break
        kept.append((int(index.step[row]), int(index.place[row]), one))
    kept.sort(key=lambda entry: entry[:2])
    return {"total": len(index.step), "rows": [one for _, _, one in kept]}


def sample(row: dict) -> dict:
    """A line of samples.jsonl as the page holds it: texts cut to a length, numbers to four digits after the point."""
    response = text(row.get("response"), MAX_TEXT)
    tokens = row.get("tokens")
    tokens = [str(token) for token in tokens] if isinstance(tokens, list) else []
    parts = pieces.texts(tokens, str(row.get("response") or ""))
    out = {
        "s": int(row["step"]),
        "i": str(row.get("item_id", "")),
        "q": text(row.get("question"), MAX_TEXT),
        "r": None if parts and len(parts) <= MAX_TOKENS else response,
        "x": text(row.get("extracted"), 200),
        "st": str(row.get("status", "")),
        "t": parts[:MAX_TOKENS],
    }
    if len(parts) > MAX_TOKENS:
        out["cut"] = len(parts)
    for key in ("score", "kl"):
        if read.number(row.get(key)):
            out[key] = short(row[key])
    for key, name in NUMBERS.items():
        values = row.get(name)
        if isinstance(values, list) and len(values) == len(parts):
            out[key] = [short(value) for value in values[:MAX_TOKENS]]
    return out


def short(value) -> float | int | None:
    value = round(value, 4) if read.number(value) else None
    return int(value) if value is not None and value == int(value) else value


def text(value, most: int) -> str | None:
    if value is None:
        return None
    value = str(value)
    return value if len(value) <= most else value[:most] + " [...]"


# ------------------------------------------------------------------ predictions

MODE = re.compile(rb'"split": "([^"\\]*)", "mode": "(greedy|sampled)"')


def predictions(run: Workdir, questions: dict[str, tuple[str, str]], budget: int) -> dict:
    """What each evaluated label answers to some questions: {"labels", "total", "items"}, the same questions for all labels.

    Half of them are questions that the labels disagree on, as far as there are so many. `questions`: item_id -> (question,
    answer); a question whose answer is not the stored gold one is not shown. {} without predictions.
    """
    paths = read.in_order(run.path.glob("*/predictions.jsonl"), [*run.results, *(stage.name for stage in run.stages)])
    found = {path.parent.name: index_predictions(path, run.notes) for path in paths}
    if not (found := {label: lines for label, lines in found.items() if lines}):
        return {}
    chosen = chosen_questions(found)
    items, size = [], 0
    answers = {label: answers_of(run.path / label / "predictions.jsonl", found[label], chosen) for label in found}
    for split, item in chosen:
        rows = [answers[label].get((split, item)) for label in found]
        gold = next((row.pop("gold") for row in rows if row and row.get("gold") is not None), None)
        question, its_answer = questions.get(item, (None, None))
        question = question if str(its_answer) == str(gold) else None
        one = {"i": item, "split": split, "gold": text(gold, 200), "q": text(question, MAX_TEXT), "by": rows}
        for row in filter(None, rows):
            row.pop("gold", None)
        size += len(embedded(one))
        if size > budget and items:
            break
        items.append(one)
    items.sort(key=lambda one: (one["split"] != "test", one["split"], natural(one["i"])))
    return {"labels": [*map(title_of, found)], "total": max(map(len, found.values())), "items": items}


def natural(name: str) -> tuple:
    """Orders item_9 before item_10."""
    return tuple((part.isdigit(), int(part[:15]) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name))


def index_predictions(path: pathlib.Path, notes: list[str]) -> dict[tuple[str, str], dict]:
    """(split, item_id) -> its greedy line's offset and status, how many of how many samples are right, the first ones' offsets."""
    out: dict[tuple[str, str], dict] = {}
    at, skips = 0, read.Skips(path, notes)
    for where, line in read.lines(path):
        start, at = at, at + len(line)
        found, mode = read.PREDICTION.match(line), MODE.search(line, max(0, len(line) - 120))
        if not found or not mode or not line.endswith(b"}\n"):
            found = mode = None
            row = read.parsed(line)
            if row is None or not isinstance(row.get("item_id"), str):
                skips.add(where, line)
                continue
            item, split, status = row["item_id"], str(row.get("split", "")), str(row.get("status", ""))
            greedy, k = row.get("mode") != "sampled", row.get("k", 0)
        else:
            item, split, greedy = read.unquote(found[1]), mode[1].decode(errors="replace"), mode[2] == b"greedy"
            status, k = read.status_of(line).decode(errors="replace"), int(found[2])
        entry = out.setdefault((split, item), {"greedy": None, "status": None, "right": 0, "of": 0, "more": []})
        if greedy:
            entry["greedy"], entry["status"] = start, status
        else:
            entry["right"] += status == "correct"
            entry["of"] += 1
            if isinstance(k, int) and k < PER_QUESTION and len(entry["more"]) < PER_QUESTION:
                entry["more"].append(start)
    skips.close()
    return out


def chosen_questions(found: dict[str, dict]) -> list[tuple[str, str]]:
    """(split, item_id), test first: in each split, questions with differing statuses and others in turn, by a hash of the name."""
    everything = sorted({key for lines in found.values() for key in lines})
    out = []
    for split in sorted({split for split, _ in everything}, key=lambda split: (split != "test", split)):
        most = QUESTIONS.get(split, OTHER_SPLIT)
        keys = sorted(
            (key for key in everything if key[0] == split),
            key=lambda key: zlib.crc32(key[1].encode("utf-8", "replace")),
        )
        differ = [key for key in keys if len({lines[key]["status"] for lines in found.values() if key in lines}) > 1]
        out += list(dict.fromkeys([*differ[: most // 2], *keys]))[:most]
    return out


def answers_of(path: pathlib.Path, lines: dict, chosen) -> dict[tuple[str, str], dict]:
    """(split, item_id) -> the greedy answer, the counts and the first sampled answers, parsed."""
    out = {}
    for key in chosen:
        if (entry := lines.get(key)) is None:
            continue
        offsets = [offset for offset in [entry["greedy"], *entry["more"]] if offset is not None]
        rows = [row or {} for row in read.rows_at(path, offsets)]
        greedy = rows.pop(0) if entry["greedy"] is not None else {}
        out[key] = answer(greedy) | {
            "gold": (greedy or (rows[0] if rows else {})).get("gold"),
            "right": entry["right"],
            "of": entry["of"],
            "more": [answer(row) for row in rows],
        }
    return out


def answer(row: dict) -> dict:
    whole = f"{row.get('prefix') or ''}{row.get('response') or ''}" if row.get("response") is not None else None
    return {"r": text(whole, MAX_TEXT // 3), "x": text(row.get("extracted"), 200), "st": str(row.get("status", ""))}
