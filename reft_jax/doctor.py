"""Looks through data files before anything is trained on them, and names everything that is wrong, not only the first:

    python -m reft_jax.doctor FILE... [--test=FILE] [--task=NAME] [--cot=program|nl] [--tokenizer=DIR|FILE.gguf|SHIPPED|PRESET|bpe ...]
        [--max-prompt=N] [--max-response=N] [--json]

Findings, each with file and line: records that training would refuse (malformed JSON, fields that are absent or of another
type, ids that stand twice), questions that stand twice or in --test too (case and punctuation aside), right options that stand under two
letters, gold CoTs whose answer is not the label (programs are run in the sandbox; N-CoT is compared where it says "the answer is ..." itself),
records over --max-prompt or --max-response tokens, and texts that a tokenizer does not give back. Reading is training's own
(`data/reader.py`). Then a census of each file.

--task (a file of reft_jax/tasks that reads files, or one of your own, my.py) and --cot are told from the records where they are not given.
--tokenizer can be given several times; `bpe`, or a preset that is trained from nothing, stands for the tokenizer that such a run would build
from the file.
Exit codes: 0 nothing found, 1 findings, 2 wrong usage or no such file.
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
import sys
from collections.abc import Sequence

from reft_jax import commands
from reft_jax.commands import SWITCH, Flag
from reft_jax.config import choices
from reft_jax.config.paths import expanded
from reft_jax.config.words import listed
from reft_jax.configs.models import PRESETS
from reft_jax.data import exact, files, gguf, prompts, reader, splits
from reft_jax.data import tokenizer as tokenizers
from reft_jax.data.records import SIGNATURE, Record
from reft_jax.errors import InputError
from reft_jax.rewards import answer, program, score
from reft_jax.run.progress import Progress

ASSETS = pathlib.Path(__file__).parent / "assets"
BPE_VOCABULARY = 1000  # config.data.vocab_size of configs/common.py
CHUNK = 256  # programs between two looks at the progress
_OWN_ANSWER = re.compile(r"\banswer is:?\s*<?([^<>\n]*?)>?\s*\.?\s*\Z", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; the last five are how training's readers are told (config.data's defaults)."""

    files: tuple[str, ...]
    test: str = ""
    task: str = ""
    cot: str = ""
    tokenizers: tuple[str, ...] = ()
    max_prompt: int = 0  # tokens; 0 = no limit
    max_response: int = 0
    json: bool = False
    docstring: bool = True
    append_prefix: str = "everywhere"
    bos: str = "auto"
    line_end: str = "auto"
    calculator_marks: str = "strip"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `kind` is record, question, overlap, answer, length or text; `field` "" = the whole record."""

    file: str
    line: int
    kind: str
    field: str
    problem: str


def _task(name: str) -> str:
    if name not in _readers() and not (choices.is_path(name) and hasattr(choices.load("tasks", name), "read")):
        known = ", ".join(_readers())
        raise ValueError(f"legal are {known}, or a file of your own (my.py) whose Task has a read")
    return name


FLAGS = {
    "FILE": Flag(needed=True, several=True),
    "--test": Flag(default=""),
    "--task": Flag(_task, default=""),
    "--cot": Flag(commands.one_of(*score.COTS), default=""),
    "--tokenizer": Flag(several=True),
    "--max-prompt": Flag(commands.whole(1, "a number of tokens"), default=0),
    "--max-response": Flag(commands.whole(1, "a number of tokens"), default=0),
    "--json": SWITCH,
}


def parse(argv: Sequence[str]) -> Options:
    """The command line. Raises InputError."""
    given = commands.parse(argv, __doc__, FLAGS)
    if (given["max_prompt"] or given["max_response"]) and not given["tokenizer"]:
        raise InputError("--max-prompt and --max-response count tokens: name a --tokenizer")
    return Options(given.pop("FILE"), tokenizers=given.pop("tokenizer"), **given)


def _readers() -> list[str]:
    """The tasks that are read from files."""
    return [name for name in choices.names("tasks") if hasattr(choices.load("tasks", name), "read")]


def _forms() -> dict[str, reader.Form]:
    """The tasks whose own files have another form than the authors'."""
    own = {name: getattr(choices.load("tasks", name), "own", None) for name in _readers()}
    return {name: form for name, form in own.items() if form}


def examine(path: str, options: Options) -> tuple[dict, list[Finding]]:
    """(census, findings) of one file. Raises InputError for what cannot be looked at: no such file, another data set."""
    found, complaints = [], []
    records, how = _records(path, options, "train", complaints)
    found += [_finding(error.place, "record", error.field, error.problem) for error in complaints]
    census = {"task": how.task, "cot": how.cot, "records": len(records), "refused": len({e.place for e in complaints})}
    if not records:
        return census, found
    kind = score.answer_kind(how.task)
    found += _twice(records, kind) + _equal_options(records)
    census |= {
        "distinct_questions": len({splits.question_words(r.question) for r in records}),
        "answers": dict(collections.Counter(_answer_form(r.answer, kind) for r in records)),
    }
    texts = {"question": [r.question for r in records], "cot": [r.cot for r in records if r.cot]}
    census["characters"] = {what: _spread([*map(len, some)]) for what, some in texts.items()}
    if options.test:
        test, _ = _records(options.test, how, "test", complaints := [])
        found += [_finding(error.place, "record", error.field, error.problem) for error in complaints]
        pairs = splits.shared(records, test)
        census["overlap"] = {"test": options.test, "shared": len(pairs), "of": len(test)}
        for tested, trained in pairs:
            problem = f"the question stands in the training data at {trained.place} too; take it out of one of the two"
            found.append(_finding(tested.place, "overlap", "question", problem))
    gold = [record for record in records if record.cot]
    if gold and how.cot == "program":
        with_docstring = sum(r.cot[len(SIGNATURE) :].lstrip().startswith(('"""', "'''")) for r in gold)
        census["with_docstring"] = with_docstring / len(gold)
        census["programs"], wrong = _run(gold, how)
        found += wrong
    elif gold:
        census["own_answers"], wrong = _compare(gold, kind)
        found += wrong
    for name in options.tokenizers:
        census.setdefault("tokens", {})[name], long = _lengths(records, name, how)
        found += long
    return census, found


def _records(path: str, options: Options, split: str, complaints: list) -> tuple[tuple[Record, ...], Options]:
    """The records of a file, and the options with what they left open filled in. A file without any CoT is a test set's."""
    raw = files.read_raw(path, complaints=complaints)
    rows = [row for _, row in raw if isinstance(row, dict)]
    task, cot = options.task or _told_task(rows), options.cot or _told_cot(rows)
    if not task and rows:
        raise InputError(f"{path}: the records do not tell which task they are of; say --task={'|'.join(_readers())}")
    how = dataclasses.replace(options, task=task or _readers()[0], cot=cot)
    cots = {reader.field_of(form.cot) for form in (reader.AUTHORS, *_forms().values()) if form.cot}
    if not any(cots & row.keys() for row in rows):
        split = "test"
    return choices.load("tasks", how.task)().read(raw, how, split=split, complaints=complaints), how


def _told_task(rows) -> str:
    """The task that ids ("svamp_17") or the fields of a published file tell; "" if none does."""
    readers = _readers()
    for row in rows:
        prefix = str(row.get("item_id", "")).rpartition("_")[0]
        if prefix in readers:
            return prefix
        for name, form in _forms().items():
            if form.told_by in row and reader.AUTHORS.told_by not in row:
                return name
    return ""


def _told_cot(rows) -> str:
    """program if most of the CoTs look like one."""
    cots = [row["answer_cot"] for row in rows if isinstance(row.get("answer_cot"), str)]
    return "program" if 2 * sum(cot.startswith("def ") for cot in cots) > len(cots) else "nl"


def _read_by(kind: str) -> dict:
    """How answers of that kind are read: the arguments of `rewards.answer`."""
    return dict(kind=kind, matcher="math" if kind == "expression" else "reft")


def _twice(records, kind: str) -> list[Finding]:
    """Questions that stand in the file already."""
    first, found = {}, []
    for record in records:
        before = first.setdefault(splits.question_words(record.question), record)
        if before is not record:
            same = answer.equal(answer.canonical(before.answer, **_read_by(kind)), record.answer, **_read_by(kind))
            answers = "the same answer" if same else f"another answer, {before.answer} and not {record.answer}"
            problem = f"the question stands at {before.place} already, with {answers}; keep one, or make them differ"
            found.append(_finding(record.place, "question", "question", problem))
    return found


def _equal_options(records) -> list[Finding]:
    """Questions whose right option stands under another letter too."""
    problem = "the option of the right letter {} stands under {} too; both count as right: make them differ"
    return [
        _finding(record.place, "question", "question", problem.format(record.answer, listed(record.also)))
        for record in records
        if record.also
    ]


def _run(gold, how: Options) -> tuple[dict, list[Finding]]:
    """(how many programs ended how, findings) of gold programs, run as the reward runs them."""
    matcher = _read_by(score.answer_kind(how.task))["matcher"]
    by_place, statuses, found = {record.place: record for record in gold}, collections.Counter(), []
    progress = Progress("gold programs", len(gold), 0, unit="program")
    for start in range(0, len(gold), CHUNK):
        part = gold[start : start + CHUNK]
        texts, places = [prompts.target(record, docstring=True) for record in part], [record.place for record in part]
        golds, sources = [record.answer for record in part], dict(zip(places, texts, strict=True))
        failed = score.audit_gold(how.task, "program", texts, golds, places, matcher=matcher)
        again = program.run_programs([sources[place] for place, _ in failed])  # for what people want to know
        for (place, grade), result in zip(failed, again, strict=True):
            statuses[grade.status] += 1
            label, detail = by_place[place].answer, f": {result.detail}" if result.detail else ""
            if grade.status == "wrong":
                problem = f"the program gives {grade.extracted} and the label is {label}; correct one of them"
            else:
                problem = f"the program gives no answer ({grade.status}{detail}); correct it (the label is {label})"
            found.append(_finding(place, "answer", "answer_cot", problem))
        progress.update(min(start + CHUNK, len(gold)))
    progress.close()
    return {"correct": len(gold) - statuses.total()} | dict(statuses), found


def _compare(gold, kind: str) -> tuple[dict, list[Finding]]:
    """(how many agree, differ or say none, findings) of the answers that N-CoT texts end with themselves."""
    counted, found = collections.Counter(agree=0, differ=0, none=0), []
    for record in gold:
        own = _OWN_ANSWER.search(record.cot)
        value = answer.canonical(own[1], **_read_by(kind)) if own else None
        if value is None:
            counted["none"] += 1
        elif answer.equal(value, record.answer, **_read_by(kind)):
            counted["agree"] += 1
        else:
            counted["differ"] += 1
            problem = f"the CoT ends with the answer {value} and the label is {record.answer}; correct one of them"
            found.append(_finding(record.place, "answer", "answer_cot", problem))
    return dict(counted), found


def _lengths(records, name: str, how: Options) -> tuple[dict, list[Finding]]:
    """(spreads, findings) of lengths in tokens: prompts as they are sampled from, responses as they are taught."""
    tokenizer, own = _tokenizer(name, records)
    if own:
        how = dataclasses.replace(how, line_end=prompts.best_line_end(tokenizer, records, how))
    found, asked, taught, progress = [], [], [], Progress(f"tokens of {name}", len(records), 0, unit="record")
    for i, record in enumerate(records, start=1):
        with files.telling(failed := []):
            try:
                row = prompts.encode(tokenizer, record, how, purpose="rollout")
                learnt = prompts.encode(tokenizer, record, how, purpose="teach") if record.cot else None
            except InputError as error:
                raise files.RecordError(record.place, "", f"{name}: {error}") from error
            response = len(learnt.response) if learnt else 0
            if said := exact.changes(tokenizer, record, learnt or row, how, purpose="teach" if learnt else "rollout"):
                problem = (
                    f"{name} does not give back its text: {said}; write it without them, or take another tokenizer"
                )
                found.append(_finding(record.place, "text", "", problem))
            asked.append(len(row.prompt))
            taught += [response] if response else []
            for what, size, most in (("prompt", asked[-1], how.max_prompt), ("response", response, how.max_response)):
                if most and size > most:
                    limit = f"--max-{what}={most} (config.data.max_{what})"
                    problem = f"the {what} has {size} tokens ({name}), over {limit}; raise it, or training leaves the record out"
                    found.append(_finding(record.place, "length", what, problem))
        found += [_finding(error.place, "length", "", error.problem) for error in failed]
        progress.update(i)
    progress.close()
    return {"prompt": _spread(asked), "response": _spread(taught)}, found


def _tokenizer(name: str, records):
    """(the tokenizer, True) of a directory, a GGUF file or a shipped model, or (the one that a model from nothing would get, False)."""
    for folder in (expanded(name), ASSETS / name):
        if folder.is_dir() or gguf.is_file(folder):
            return tokenizers.load(folder), True
    if name != "bpe" and PRESETS.get(name, {"vocab_size": 1})["vocab_size"]:
        shipped = ", ".join(sorted(path.name for path in ASSETS.iterdir() if path.is_dir()))
        raise InputError(
            f"--tokenizer={name}: neither a directory with a tokenizer, a GGUF file, a shipped model ({shipped}) nor a preset trained from "
            "nothing (tiny, ...: `bpe`); for a published model name its Hugging Face directory"
        )
    texts = (text for r in records for text in (prompts.prompt(r), prompts.target(r, docstring=True)))
    return tokenizers.build_bpe(texts, BPE_VOCABULARY), False


def _answer_form(text: str, kind: str) -> str:
    """letter, expression, or of numbers whole, decimal or fraction ("203.0" is whole)."""
    if kind != "number":
        return "letter" if kind == "choice" else "expression"
    return "fraction" if "/" in text else "whole" if float(text).is_integer() else "decimal"


def _spread(sizes: Sequence[int]) -> dict:
    """min, median, p99 (nearest rank: 99 % are no larger) and max; {} of nothing."""
    ranked = sorted(sizes)
    at = {"min": 0, "median": (len(ranked) - 1) // 2, "p99": math.ceil(0.99 * len(ranked)) - 1, "max": -1}
    return {name: ranked[i] for name, i in at.items()} if ranked else {}


def _finding(place: str, kind: str, field: str, problem: str) -> Finding:
    file, _, line = place.rpartition(":")
    return Finding(file, int(line), kind, field, problem)


def report(path: str, census: dict, found: Sequence[Finding]) -> str:
    """The findings, a line each, and the census under them."""
    lines = [f"{f.file}:{f.line}: {f.kind}: {f.problem}" for f in found]
    lines.append(f"{path}: {census['task']}, {census['cot']}: {census['records']} records, {census['refused']} refused")
    if not census["records"]:
        return "\n".join(lines)

    def row(title, text):
        lines.append(f"  {title:<24} {text}")

    def counts(values):
        return ", ".join(f"{number} {what}" for what, number in values.items())

    def spread(values):
        return "  ".join(f"{what} {size}" for what, size in values.items()) or "-"

    row("distinct questions", census["distinct_questions"])
    row("answers", counts(census["answers"]))
    if "overlap" in census:
        row("also in --test", f"{census['overlap']['shared']} of its {census['overlap']['of']}")
    if "programs" in census:
        row("programs with docstring", f"{100 * census['with_docstring']:.1f} %")
        row("programs", counts(census["programs"]))
    if "own_answers" in census:
        row("answers in the CoT", counts(census["own_answers"]))
    for what, sizes in census["characters"].items():
        row(f"{what}, characters", spread(sizes))
    for name, sizes in census.get("tokens", {}).items():
        for what, values in sizes.items():
            row(f"{what}, tokens", f"{spread(values)}  ({name})")
    return "\n".join(lines)


@commands.command(unread=1, stopped=(130, "stopped by Ctrl-C; nothing was written"))
def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    results = {}
    for path in options.files:
        results[path] = examine(path, options)
        if not options.json:
            print(report(path, *results[path]), flush=True)
    found = [finding for _, several in results.values() for finding in several]
    if options.json:
        census = {path: census for path, (census, _) in results.items()}
        print(json.dumps({"files": census, "findings": [dataclasses.asdict(f) for f in found]}, indent=1))
    else:
        kinds = collections.Counter(finding.kind for finding in found)
        named = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        print(f"{len(found)} findings: {named}" if found else "nothing found", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
