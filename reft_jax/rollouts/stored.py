"""Graded responses of a finished stage to all training questions, for stages that learn from them (self_train, reranker).

They are drawn in parts of a few questions, each a file <stage>/drawn/<part>.jsonl that is there only when it is whole: a killed stage
goes on with the part that it was at. What is drawn is a function of (seed, stage, question, k) alone, so parts do not matter.
"""

import functools
import json
import shutil

from reft_jax.data import prompts
from reft_jax.errors import RunError
from reft_jax.mesh import distributed
from reft_jax.rewards.total import Responses
from reft_jax.rollouts.actor import Actor
from reft_jax.rollouts.questions import Questions, ask
from reft_jax.run import begin
from reft_jax.run.metrics import write_text
from reft_jax.run.progress import Progress
from reft_jax.run.run import SAMPLE, Run, key_of

FULL = 8  # slots are filled so many times in a part: the wait for its last responses is then a small share of it


def collect(run: Run, name: str, stage) -> tuple[Questions, list[list[dict]]]:
    """stage.num_samples responses of stage.sample_from's model to each training question that can be asked: (questions, for each of them
    its responses: item_id, k, response, extracted, status, ended)."""
    asked = ask(run, run.splits.train, run.config.purpose(stage.sample_from))
    num, folder = len(asked.records), run.folder(name) / "drawn"
    size = max(FULL * stage.sample_batch_size // stage.num_samples, 1)
    if distributed.is_primary():
        folder.mkdir(exist_ok=True)
    actor = Actor(run, run.model, stage.sampling, stage.sample_batch_size, stage.num_samples)
    params = functools.cache(lambda: begin.initial_params(run, stage.sample_from))  # if anything is left to draw
    num_drawn = min(size * len(list(folder.glob("*.jsonl"))), num) * stage.num_samples
    bar = Progress(f"{name}: sampling", num * stage.num_samples, num_drawn, unit="response", waiting="compiling")
    key, out = key_of(run.config.seed, name, 0, SAMPLE), []
    for part, first in enumerate(range(0, num, size)):
        path, rows = folder / f"{part:05d}.jsonl", range(first, min(first + size, num))
        if not path.exists():
            each = run.heard(bar, first * stage.num_samples)
            drawn = actor.graded(actor.draw(params(), asked, key, rows, each=each))
            write_text(path, lines_text(lines_of(drawn)))
            distributed.barrier(f"{path} is written")
        lines = read_lines(path)
        out += [lines[i : i + stage.num_samples] for i in range(0, len(lines), stage.num_samples)]
        run.stop_if_asked()
    bar.close()
    return asked, out


def lines_of(drawn: Responses) -> list[dict]:
    """Graded responses as files have them."""
    return [
        {
            "item_id": record.item_id,
            "k": i % drawn.num_samples,
            "response": drawn.texts[i],
            "extracted": drawn.grades[i].extracted,
            "status": drawn.grades[i].status,
            "ended": drawn.ended[i],
        }
        for i, record in enumerate(drawn.records)
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
    parts, data = [], run.config.data
    for record, text in zip(records, texts, strict=True):
        whole = prompts.completed(record, text, data, purpose=purpose)
        how = dict(docstring=data.docstring, line_end=data.line_end)
        prefix = prompts.program_prefix(record, **how) if record.kind == "program" else ""
        prefix = prefix if whole.startswith(prefix) else ""
        parts.append((prompts.prompt(record), prefix, whole[len(prefix) :]))
    ids = prompts.encode_pieces(run.tokenizer, parts, data, keep_unknown=keep_unknown)
    return [(question, prefix, [*rest, run.tokenizer.eos_token_id]) for question, prefix, rest in ids]


def lines_text(lines: list[dict]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_lines(path) -> list[dict]:
    # not splitlines, which also splits at U+2028 and the like, as a response may hold them
    out = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            out.append(json.loads(line))
        except ValueError as error:
            raise RunError(
                f"{path}:{number}: damaged ({error}); remove the file, and the same command draws these responses again"
            ) from error
    return out
