"""Graded responses of a finished stage to all training questions, for stages that learn from them (self_train, reranker).

They are drawn in parts of a few questions, each a file <stage>/drawn/<part>.jsonl that is there only when it is whole: a killed stage
goes on with the part that it was at. What is drawn is a function of (seed, stage, question, k) alone, so parts do not matter.
"""

import functools
import json
import shutil

from reft_jax.data import prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.mesh import distributed
from reft_jax.rollouts import grade as grade_lib
from reft_jax.rollouts import questions
from reft_jax.rollouts.draw import make_sampler
from reft_jax.run import begin
from reft_jax.run.metrics import write_text
from reft_jax.run.progress import Progress
from reft_jax.run.run import SAMPLE, Run, key_of

FULL = 8  # slots are filled so many times in a part: the wait for its last responses is then a small share of it


def collect(run: Run, name: str, stage) -> tuple[questions.Questions, list[list[dict]]]:
    """stage.num_samples responses of stage.sample_from's model to each training question that can be asked: (questions, for each of them
    its responses: item_id, k, response, extracted, status, ended)."""
    asked = questions.ask(run, run.splits.train, run.config.purpose(stage.sample_from))
    num, folder = len(asked.fitted.records), run.folder(name) / "drawn"
    size = max(FULL * stage.sample_batch_size // stage.num_samples, 1)
    if distributed.is_primary():
        folder.mkdir(exist_ok=True)
    sampler = make_sampler(run, run.model, stage.sampling, stage.sample_batch_size, stage.num_samples)
    params = functools.cache(lambda: begin.initial_params(run, stage.sample_from))  # if anything is left to draw
    num_drawn = min(size * len(list(folder.glob("*.jsonl"))), num) * stage.num_samples
    bar = Progress(f"{name}: sampling", num * stage.num_samples, num_drawn, unit="response", waiting="compiling")
    out = []
    for part, first in enumerate(range(0, num, size)):
        path, rows = folder / f"{part:05d}.jsonl", range(first, min(first + size, num))
        if not path.exists():
            drawn = draw(run, name, sampler, params(), asked, rows, bar)
            write_text(path, lines_text([line for row in drawn for line in row]))
            distributed.barrier(f"{path} is written")
        lines = read_lines(path)
        out += [lines[i : i + stage.num_samples] for i in range(0, len(lines), stage.num_samples)]
        run.stop_if_asked()
    bar.close()
    return asked, out


def draw(run, name, sampler, params, asked, rows, bar) -> list[list[dict]]:
    """The responses to the questions `rows`, graded. A stop that was asked for is obeyed between responses."""
    texts, ended = ([[None] * sampler.num_samples for _ in rows] for _ in range(2))
    key, ahead = key_of(run.config.seed, name, 0, SAMPLE), grade_lib.programs_ahead(run)
    drawn = questions.responses(run, sampler, params, asked, key, rows, ahead)
    for count, (question, k, text, whole) in enumerate(drawn, start=1):
        texts[question - rows.start][k], ended[question - rows.start][k] = text, whole
        distributed.beat()
        bar.update(rows.start * sampler.num_samples + count)
        run.stop_if_asked()
    records = [asked.fitted.records[row] for row in rows]
    repeated = [record for record in records for _ in range(sampler.num_samples)]
    grades = iter(grade_lib.grade(run, repeated, [text for row in texts for text in row], asked.purpose, ahead))

    def line(record, k, text, whole):
        grade = next(grades)
        return {
            "item_id": record.item_id,
            "k": k,
            "response": text,
            "extracted": grade.extracted,
            "status": grade.status,
            "ended": whole,
        }

    return [
        [line(record, k, text, whole) for k, (text, whole) in enumerate(zip(row, wholes, strict=True))]
        for record, row, wholes in zip(records, texts, ended, strict=True)
    ]


def kept(run: Run, name: str, make) -> list[dict]:
    """The lines of <stage>/<kind>.jsonl, made by make() -> lines if the file is not there; then what was drawn for it is removed. Every
    process gets the same lines."""
    path = run.folder(name) / f"{run.config.kind(name)}.jsonl"
    there = path.exists()
    distributed.barrier(f"all have looked for {path}")
    if not there:
        write_text(path, lines_text(make()))
        distributed.barrier(f"{path} is written")
    if distributed.is_primary():
        shutil.rmtree(path.parent / "drawn", ignore_errors=True)
    return read_lines(path)


def pieces(
    run: Run, records, texts, purpose: str, *, keep_unknown: bool = False
) -> list[tuple[list[int], list[int], list[int]]]:
    """Token ids of (prompt, program prefix, rest and end-of-sequence) of each graded response, cut where gold targets are.
    `keep_unknown`: as in `tokenizer.encode_batch`."""
    parts = []
    for record, text in zip(records, texts, strict=True):
        whole = prompts.completed(record, text, run.config.data, purpose=purpose)
        prefix = prompts.program_prefix(record, docstring=run.config.data.docstring) if record.kind == "program" else ""
        prefix = prefix if whole.startswith(prefix) else ""
        parts += [prompts.prompt(record), prefix, whole[len(prefix) :]]
    after = [False, True, True] * len(records)
    ids = tokenizers.encode_batch(run.tokenizer, parts, after_newline=after, keep_unknown=keep_unknown)
    end = [run.tokenizer.eos_token_id]
    return [(ids[i], ids[i + 1], ids[i + 2] + end) for i in range(0, len(ids), 3)]


def lines_text(lines: list[dict]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_lines(path) -> list[dict]:
    # not splitlines, which also splits at U+2028 and the like, as a response may hold them
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
