"""Evaluation of finished checkpoints: greedy accuracy on dev and test, and voting, pass@k and re-ranking from stored samples.

Every response is kept in <label>/predictions.jsonl, every figure in results.json, label by label, so that a killed
evaluation goes on with the next label.
"""

import dataclasses
import json
import pathlib

from reft_jax import models
from reft_jax.config.records import labelled, setting
from reft_jax.config.settings import OWN_FOLDERS, Sampling
from reft_jax.config.words import listed, nearest
from reft_jax.data import prompts
from reft_jax.mesh import distributed
from reft_jax.rewards import matchers, score
from reft_jax.rewards.total import Responses
from reft_jax.rollouts import figures
from reft_jax.rollouts.actor import Actor
from reft_jax.rollouts.questions import ask
from reft_jax.rollouts.rank import make_scorer
from reft_jax.run import begin, lineage
from reft_jax.run.metrics import table, write_json, write_text
from reft_jax.run.progress import Progress
from reft_jax.run.run import SAMPLE, Run, key_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Greedy accuracy on dev and test, and num_samples (0 = none) samples for the first num_questions (0 = all) test questions."""

    checkpoints: tuple[tuple[str, str], ...] = labelled("stage, directory or shipped model")
    num_samples: int = setting(0, default=0)
    num_questions: int = setting(0, default=0)
    sampling: Sampling = Sampling()
    batch_size: int = setting(1, default=200)  # responses that decode together
    # label -> the reranker stage that ranks its samples
    rerankers: tuple[tuple[str, str], ...] = labelled("reranker stage", default=())

    def sources(self) -> tuple:
        return self.checkpoints

    def check(self):
        for label, _ in self.checkpoints:
            if not label.strip(".") or label != pathlib.PurePath(label).name or label in OWN_FOLDERS:
                yield (
                    "checkpoints",
                    f"label {label!r} cannot be used: it is a folder's name, and no other evaluation may have it",
                )
        labels = [label for label, _ in self.checkpoints]
        for label, _ in self.rerankers:
            if label not in labels:
                yield (
                    f"rerankers.{label}",
                    f"unknown label; {nearest(label, labels)}labels of checkpoints are {listed(labels)}",
                )
        if self.rerankers and not self.num_samples:
            yield "num_samples", "rerankers choose among samples: it must be >= 1"

    def check_in(self, recipe, earlier):
        labels = [label for stage in earlier.values() for label, _ in getattr(stage, "checkpoints", ())]
        for label, _ in self.checkpoints:
            if label in labels:
                yield (
                    "checkpoints",
                    f"label {label!r} cannot be used: it is a folder's name, and no other evaluation may have it",
                )
        rankers = [name for name in earlier if recipe.kind(name) == "reranker"]
        for label, source in self.rerankers:
            if source not in rankers:
                yield (
                    f"rerankers.{label}",
                    f"it must name an earlier stage of kind reranker: legal are {listed(rankers)}",
                )

    def rows(self) -> dict:
        return {"batch_size": self.batch_size}

    def left(self, run: Run) -> str:
        """What is still to do, for a run's first lines."""
        known = read_results(run)["stages"]
        done = sum(label in known for label, _ in self.checkpoints)
        return f"{len(self.checkpoints) - done} of {len(self.checkpoints)} checkpoints to evaluate"

    def programs(self, name: str, at):
        params = at.parameters(at.model, models.shapes(at.model))
        at.sampling(f"{name}/greedy", at.model, params, self.sampling.greedy, self.batch_size, 1, {})
        if self.num_samples:
            at.sampling(f"{name}/samples", at.model, params, self.sampling, self.batch_size, self.num_samples, {})


def refresh(name: str, stage: Stage, run: Run):
    """Takes figures and predictions away whose checkpoint is no longer the one that they were measured on, and all of a stage whose folder was
    removed; a stage that lacks any is no longer done."""
    results, there = read_results(run), run.folder(name).exists()
    known = results["stages"]
    fresh = lineage.fresh(run.workdir, stage, dict(run.config.stages), known) if there else ()
    for label, _ in stage.checkpoints:
        if label in known and label not in fresh:
            why = "its figures are not of the checkpoint that is there" if there else f"{run.folder(name)} was removed"
            print(f"{name}: {label} is measured again: {why}", flush=True)
            del known[label]
            write_json(run.workdir / "results.json", results)
            if distributed.is_primary():
                (run.folder(label) / "predictions.jsonl").unlink(missing_ok=True)
    if any(label not in known for label, _ in stage.checkpoints):
        run.resume(name)


def run(name: str, stage: Stage, run: Run):
    for label, source in stage.checkpoints:
        results = read_results(run)
        if label not in results["stages"]:
            known = results["stages"] | {label: evaluate(run, stage, label, source)}
            order = [one for _, other in run.config.stages for one, _ in getattr(other, "checkpoints", ())]
            results["stages"] = {one: known[one] for one in sorted(known, key=(order + list(known)).index)}
            write_json(run.workdir / "results.json", results)
            distributed.barrier(f"{label} is evaluated")
        run.stop_if_asked()
    run.finish(name)


def evaluate(run: Run, stage: Stage, label: str, source: str) -> dict:
    data = run.config.data
    purpose = run.config.purpose(source)
    params = begin.initial_params(run, source)
    facts = run.facts(source) if source in dict(run.config.stages) else {}

    result, lines = {}, []
    key = key_of(run.config.seed, "evaluate", 0, SAMPLE)
    greedy = Actor(run, run.model, stage.sampling.greedy, stage.batch_size)
    for split, records in (("dev", run.splits.dev), ("test", run.splits.test)):
        if not records:
            continue
        questions = ask(run, records, purpose)
        answers = answer_all(run, f"{label}: greedy {split}", greedy, params, questions, key)
        summary = greedy_summary(questions, answers) | {"monitors": greedy.watch(answers)}
        lines += predictions(questions, answers, data, split=split, mode="greedy")
        result = result | ({"dev": summary} if split == "dev" else summary)
    if stage.num_samples and run.splits.test:
        k = stage.num_samples
        questions = ask(run, run.splits.test, purpose, stage.num_questions)
        actor = Actor(run, run.model, stage.sampling, stage.batch_size, k)
        answers = answer_all(run, f"{label}: {k} samples", actor, params, questions, key)
        rows, scores, agree = answers.by_question(), None, matchers.same(data.matcher, score.answer_kind(data.task))
        result |= figures.sampled(rows, questions.num, k, agree)
        if (ranker := dict(stage.rerankers).get(label)) is not None:
            del params  # before the re-ranker's come
            scores = make_scorer(run, ranker)(answers.records, answers.texts, purpose).tolist()
            result |= figures.reranked(rows, answers.by_question(scores), questions.num, k, agree)
            result["reranker"] = ranker
        lines += predictions(questions, answers, data, split="test", mode="sampled", scores=scores)
    folder = run.folder(label)
    folder.mkdir(exist_ok=True)
    write_text(folder / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {
        "source": source,
        **result,
        "selected_on": facts.get("selected_on"),
        "step": facts.get("selected_step"),
        "epoch": facts.get("selected_epoch"),
        "matcher": data.matcher,
        "measured": lineage.measured(run.workdir, stage, dict(run.config.stages), label, source),
    }


def answer_all(run, title, actor, params, questions, key) -> Responses:
    """Graded responses to all questions, with a progress line; a stop that was asked for is obeyed between responses."""
    bar = Progress(title, len(questions.records) * actor.num_samples, unit="response")
    answers = actor.draw(params, questions, key, each=run.heard(bar))
    bar.close()
    return actor.graded(answers)


def greedy_summary(questions, answers: Responses) -> dict:
    """`figures.greedy`, the statuses' shares, and the accuracy by tag (for instance num_ops)."""
    rows, statuses = answers.by_question(), [grade.status for grade in answers.grades]
    return figures.greedy(rows, questions.num) | {
        "num_too_long": len(questions.fitted.too_long),
        "status": {status: statuses.count(status) / len(statuses) for status in sorted(set(statuses))},
        "by": figures.by_tag(answers.records, rows),
    }


def predictions(questions, answers: Responses, data, *, split: str, mode: str, scores=None) -> list[dict]:
    """One line per response, the questions that were too long to ask included. What was graded is `prefix` (the program's beginning,
    where the prompt held it) and `response`; `rerank_score` is P(right), where there are scores."""
    where = {"split": split, "mode": mode}
    lines = [
        {
            "item_id": record.item_id,
            "k": i % answers.num_samples,
            "prefix": prompts.completed(record, "", data, purpose=questions.purpose),
            "response": answers.texts[i],
            "extracted": answers.grades[i].extracted,
            "status": answers.grades[i].status,
            "gold": record.gold,
            **where,
            **({} if scores is None else {"rerank_score": scores[i]}),
        }
        for i, record in enumerate(answers.records)
    ]
    left_out = {"k": 0, "prefix": "", "response": None, "extracted": None, "status": "too_long", "gold": None, **where}
    return lines + [{"item_id": left.item_id, **left_out} for left in questions.fitted.too_long]


def read_results(run: Run) -> dict:
    path, data, verifier = run.workdir / "results.json", run.config.data, run.config.verifier
    if path.exists():
        return json.loads(path.read_text())
    # with these, and each label's matcher, predictions.jsonl can be graded again
    facts = {"seed": run.config.seed, "data": data.task, "cot": data.cot}
    return facts | {"timeout_s": verifier.timeout_s, "memory_mb": verifier.memory_mb, "stages": {}}


def results_table(results: dict) -> str:
    """The terminal tables of results.json, in %: all test questions, then slices of them where the data set has any."""
    stages = results["stages"]
    sampled = sorted({key for result in stages.values() for key in result if "@" in key and not key.endswith("_ci95")})
    header = ["", "test greedy", "95 % interval", "dev", *(key.replace("maj", "vote") for key in sampled), "chosen"]
    rows = [
        [
            label,
            percent(result),
            interval(result),
            percent(result.get("dev", {})),
            *(percent(result, key) for key in sampled),
            chosen(result),
        ]
        for label, result in stages.items()
    ]
    out = table(header, rows)
    slices = sorted(
        {(tag, value) for result in stages.values() for tag, values in result.get("by", {}).items() for value in values}
    )
    if slices:
        header = ["test greedy by", *(f"{tag} {value}" for tag, value in slices)]
        by = {
            label: [result.get("by", {}).get(tag, {}).get(value, {}) for tag, value in slices]
            for label, result in stages.items()
        }
        rows = [[label, *(f"{percent(part)} ({interval(part)})" for part in parts)] for label, parts in by.items()]
        out += "\n\n" + table(header, rows)
    return out


def percent(result: dict, name: str = "accuracy") -> str:
    return f"{100 * result[name]:.1f}" if name in result else "-"


def interval(result: dict) -> str:
    return "{:.1f}-{:.1f}".format(*(100 * bound for bound in result["ci95"])) if "ci95" in result else "-"


def chosen(result: dict) -> str:
    """Which checkpoint a label's figures are of."""
    if result["step"] is None:
        return "-"
    return f"{'best on ' + result['selected_on'] if result['selected_on'] else 'last'}, epoch {result['epoch']:.1f}"
