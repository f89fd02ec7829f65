"""Self-training (ReFT, section 4.2): learning from own responses whose answers are right, without a reward's size, KL or critic.

offline: the model of `sample_from` answers every training question num_samples times; of the right answers, at most
max_per_question different ones join the gold CoTs, and SFT begins anew from `init_from` on both. <stage>/self_train.jsonl
says of every response whether it is learnt, and why not:

- a status other than correct; unfinished: it ran to its limit without ending, so that an end would be made up; too_long: over the
  limits of SFT with its prompt; unknown_token: pieces of a closed vocabulary that stand side by side and read as one that it lacks;
- duplicate: of a response with a lower k; gold: of the gold CoT. Texts are the same if they differ in white space alone; programs also
  if they are the same but for comments, blank lines and layout, that is, if their syntax trees are equal;
- over_cap: what is left is ranked by a hash of (seed, item_id, k), and the first max_per_question are learnt.

online: one step = sample responses to a batch of questions from the current policy -> grade -> one update on own NLL(right
responses) + gold NLL(gold CoTs) -> log, check on dev, save. Questions are asked as ReFT asks them.
"""

import ast
import collections
import dataclasses
import functools
import time
import warnings

import numpy as np

from reft_jax import models
from reft_jax.config.records import choices_of, setting
from reft_jax.config.setting import divides
from reft_jax.config.settings import OUTPUTS, Checked, Sampling, sampled, source_answers, unmet, whole
from reft_jax.data import batching, prompts, splits
from reft_jax.rollouts import stored
from reft_jax.rollouts.actor import Actor
from reft_jax.rollouts.questions import ask
from reft_jax.run import begin
from reft_jax.run.run import DROPOUT, SAMPLE, Run, key_of
from reft_jax.training import loop, supervised
from reft_jax.training.state import init_state
from reft_jax.training.update import host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    """offline: SFT from `init_from` on the gold CoTs and on right responses of what `sample_from` names. online: each step is one update on the
    right ones of the current policy's own responses and on the gold CoTs."""

    mode: str = setting(one_of=("offline", "online"))
    # offline: an earlier stage, or a directory as in init_from; online: ""
    sample_from: str = setting(default="", path=True)
    num_samples: int = setting(1, default=1)  # responses per training question; online: per question of a step
    max_per_question: int = setting(1, default=10)  # offline: at most so many different right responses are learnt
    sampling: Sampling = Sampling()
    sample_batch_size: int = setting(1, default=200)  # responses that decode together
    # batch_size: sequences; online: questions. eval_every: epochs, offline of all that is learnt, online of the questions
    accumulate: int = setting(1, default=1)
    dropout: float = setting(0, 0.9, default=0.0)
    losses: tuple = choices_of(
        "losses", default=lambda stage: {"nll" if stage.get("mode") == "offline" else "own_gold": {}}
    )
    reduce: str = setting(one_of=("token", "sequence"), default="token")
    log_samples: int = setting(0, default=16, free=True)  # online: responses a step that samples.jsonl keeps

    learns_from_grades = True

    @property
    def explores(self) -> bool:
        return self.mode == "online"

    def check(self):
        yield from super().check()
        yield from sampled(self)
        rows, what = self.batch_size, "batch_size"
        if self.explores:
            rows, what = self.batch_size * (self.num_samples + 1), "batch_size x (num_samples + 1)"
            if self.sample_from:
                yield "sample_from", "mode 'online' samples from the policy that it trains: set ''"
        yield from divides(self.accumulate, rows, what)
        columns = ("own",) if self.explores else ()
        yield from unmet(self.losses, OUTPUTS, columns, f"a self_train stage of mode {self.mode!r}")
        yield from whole(self.losses, self.accumulate)

    def check_in(self, recipe, earlier):
        yield from super().check_in(recipe, earlier)
        if not self.explores:
            yield from source_answers(self, earlier)

    def rows(self) -> dict:
        times = self.num_samples + 1 if self.explores else 1
        return {
            "batch_size": self.batch_size * times // self.accumulate,
            "sample_batch_size": self.sample_batch_size,
            "eval_batch_size": self.eval_batch_size,
        }

    def asks(self, recipe) -> tuple:
        return "teach", "rollout" if self.explores else recipe.purpose(self.sample_from)

    def programs(self, name: str, at):
        if not self.explores:
            at.learns_texts(name, self)
            at.draws(name, self)
            return
        num, state = self.batch_size * (self.num_samples + 1), at.state(self, at.trained)
        beside = dict(opt_state=state.opt_state)
        at.check(name, self, beside)
        batch = at.batch(num, "own")
        at.update(f"{name}/self_train_step", self, "self_train", state, batch, 3 * at.forward(num), {}, key=at.key)
        at.sampling(name, at.tuned, at.everything, self.sampling, self.sample_batch_size, self.num_samples, beside)


def run(name: str, stage: Stage, run: Run):
    (learn_offline if stage.mode == "offline" else learn_online)(name, stage, run)


# ------------------------------------------------------------------ offline


def learn_offline(name: str, stage: Stage, run: Run):
    gold = batching.fit(run.tokenizer, run.splits.train, run.config.data, purpose="teach")
    lines = stored.kept(run, name, lambda: choose_all(run, name, stage))
    purpose = run.config.purpose(stage.sample_from)
    asked = batching.fit(run.tokenizer, run.splits.train, run.config.data, purpose=purpose).records
    learnt = [(asked[i // stage.num_samples], line) for i, line in enumerate(lines) if line["kept"]]
    own = examples(run, [record for record, _ in learnt], [line["response"] for _, line in learnt], purpose)
    counts = collections.Counter(line["why"] for line in lines)
    facts = dict(
        num_gold=len(gold.records),
        num_own=len(own),
        num_questions_with_own=len({i // stage.num_samples for i, line in enumerate(lines) if line["kept"]}),
        num_sampled=len(lines),
        not_kept={why: count for why, count in sorted(counts.items()) if why},
    )
    learns = f"{len(gold.records)} gold CoTs and {len(own)} of {len(lines)} responses"
    print(f"{name}: learns {learns}; {facts['not_kept']}", flush=True)
    supervised.learn(name, stage, run, (*gold.encoded, *own), **facts)


def examples(run, records, texts, purpose: str) -> list[prompts.Encoded]:
    """Responses as SFT learns them: all after the prompt, program prefix and end-of-sequence included. What the vocabulary cannot spell is
    the unknown token."""
    pieces = stored.pieces(run, records, texts, purpose, keep_unknown=True)
    return [prompts.Encoded(ask, prefix + rest) for ask, prefix, rest in pieces]


def choose_all(run: Run, name: str, stage: Stage) -> list[dict]:
    """A line for every response of every question, in order."""
    data = run.config.data
    asked, drawn = stored.collect(run, name, stage)
    records = asked.records
    texts = [[prompts.completed(record, line["response"], data, purpose=asked.purpose) for line in row]
             for record, row in zip(records, drawn, strict=True)]  # fmt: skip
    golds = [prompts.target(record, docstring=data.docstring) for record in records]
    whys = [
        without_duplicates(row, text, gold, program=data.cot == "program")
        for row, text, gold in zip(drawn, texts, golds, strict=True)
    ]
    left = [(i, k) for i, row in enumerate(whys) for k, why in enumerate(row) if not why]
    encoded = examples(run, [records[i] for i, _ in left], [drawn[i][k]["response"] for i, k in left], asked.purpose)
    for (i, k), example in zip(left, encoded, strict=True):
        if len(example.prompt) > data.max_prompt or len(example.response) > data.max_response:
            whys[i][k] = "too_long"
        elif run.tokenizer.unk_token_id in example.response[:-1]:  # but for the end, which is the same token for some
            whys[i][k] = "unknown_token"
    out = []
    for record, row, why in zip(records, drawn, whys, strict=True):
        why = capped(why, stage.max_per_question, seed=run.config.seed, item_id=record.item_id)
        for line, reason in zip(row, why, strict=True):
            about = {key: line[key] for key in ("item_id", "k", "response", "extracted", "status")}
            out.append(about | {"kept": not reason, "why": reason})
    return out


def without_duplicates(lines: list[dict], texts: list[str], gold: str, *, program: bool) -> list[str]:
    """Why each of a question's responses (`stored`'s lines, and their whole texts) is not learnt; "" = it may be."""
    seen, out = {same(gold, program=program): "gold"}, []
    for line, text in zip(lines, texts, strict=True):
        if line["status"] != "correct":
            out.append(line["status"])
        elif not line["ended"]:
            out.append("unfinished")
        else:
            key = same(text, program=program)
            out.append(seen.get(key, ""))
            seen.setdefault(key, "duplicate")
    return out


def capped(whys: list[str], cap: int, *, seed: int, item_id: str) -> list[str]:
    """`whys` with all but `cap` of the "" made "over_cap"; which is a function of (seed, item_id, k)."""
    left = [k for k, why in enumerate(whys) if not why]
    over = set(sorted(left, key=lambda k: splits.hashed(seed, item_id, k))[cap:])
    return ["over_cap" if k in over else why for k, why in enumerate(whys)]


def same(text: str, *, program: bool) -> str:
    """What two texts share that count as the same: their words, or a program's syntax tree (its words if it has none)."""
    if program:
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes in strings
                return ast.dump(ast.parse(text))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass
    return " ".join(text.split())


# ------------------------------------------------------------------ online


def learn_online(name: str, stage: Stage, run: Run):
    seed, size, data, k = run.config.seed, stage.batch_size, run.config.data, stage.num_samples
    taught = batching.fit(run.tokenizer, run.splits.train, data, purpose="teach").records
    questions = ask(run, taught, "rollout")
    gold = prompts.encode_all(run.tokenizer, questions.records, data, purpose="teach")
    num = len(questions.records)
    tx = stage.optim(loop.num_scheduled(stage, num))
    frozen, params = begin.frozen_and_trained(run, name)
    check = loop.make_check(run, stage, "rollout", frozen)
    state = init_state(run.tuned, tx, params)
    steps = loop.Loop(name, stage, run, num, state, check, shown=loop.ROLLOUTS, samples=True)
    state, actor = steps.state, Actor(run, run.tuned, stage.sampling, stage.sample_batch_size, k)
    update = supervised.update_of(run, stage, "self_train", tx, frozen, params)
    del params  # the state has copies

    for step in steps.steps():
        clock = [time.monotonic()]
        rows = batching.batch_indices(seed, step - 1, size, num)
        policy, key = models.join(frozen, state.params), key_of(seed, name, step, SAMPLE)
        each = functools.partial(steps.bar.phase, "sampling", total=size * k)
        drawn = actor.draw(policy, questions, key, rows, each=each, in_order=True)
        clock.append(time.monotonic())

        drawn = actor.graded(drawn, step)
        clock.append(time.monotonic())

        own = [
            prompts.Encoded(questions.encoded[rows[i // k]].prompt, tokens if grade.correct else [])
            for i, (tokens, grade) in enumerate(zip(drawn.tokens, drawn.grades, strict=True))
        ]
        batch, packing = mixed_batch(run, own, [gold[row] for row in rows], stage)
        state, metrics = update(state, batch, key=key_of(seed, name, step, DROPOUT), packing=packing)
        state, metrics = state.replace(step=state.step + 1), host(metrics)
        clock.append(time.monotonic())
        metrics |= actor.metrics(drawn, np.diff(clock))
        metrics["reward/mean"] = metrics["reward/accuracy"]  # a right answer is 1 and any other 0
        scores = [float(grade.correct) for grade in drawn.grades]
        steps.end(step, state, metrics, samples=functools.partial(actor.lines, drawn, scores))


def mixed_batch(run, own, gold, stage):
    """(Batch, packing) of own responses, then gold CoTs; own ones without tokens are wrong and are not learnt."""
    batch, packing = supervised.make_batch(run, [*own, *gold], range(len(own) + len(gold)), stage)
    whose = run.layout.batch(np.arange(len(own) + len(gold)) < len(own))
    return batch.put(own=whose), packing
