"""Self-training (ReFT, section 4.2): learning from own responses whose answers are right, without a reward's size, KL or critic.

offline: the model of `sample_from` answers every training question num_samples times; of the right answers, at most
max_per_question different ones join the gold CoTs, and SFT begins anew from `init_from` on both. <stage>/self_train.jsonl
says of every response whether it is learnt, and why not:

- a status other than correct; unfinished: it ran to its limit without ending, so that an end would be made up; too_long: over the
  limits of SFT with its prompt;
- duplicate: of a response with a lower k; gold: of the gold CoT. Texts are the same if they differ in white space alone; programs also
  if they are the same but for comments, blank lines and layout, that is, if their syntax trees are equal;
- over_cap: what is left is ranked by a hash of (seed, item_id, k), and the first max_per_question are learnt.

online: one step = sample responses to a batch of questions from the current policy -> grade -> one update on own_weight NLL(right
responses) + gold_weight NLL(gold CoTs) -> log, check on dev, save. Questions are asked as ReFT asks them.
"""

import ast
import collections
import hashlib
import time
import warnings

import numpy as np

from reft_jax import checkpoint, distributed, models, steps
from reft_jax.config import SelfTrain
from reft_jax.data import batching, prompts
from reft_jax.metrics import Lines, Progress
from reft_jax.optim import make_optimizer
from reft_jax.stages import collect, common, sft
from reft_jax.stages.reft import respond, sample_metrics
from reft_jax.steps_supervised import MixedBatch, make_self_train_step


def run(name: str, stage: SelfTrain, run: common.Run):
    (offline if stage.mode == "offline" else online)(name, stage, run)


# ------------------------------------------------------------------ offline


def offline(name: str, stage: SelfTrain, run: common.Run):
    gold = batching.fit(run.tokenizer, run.splits.train, run.config.data, purpose="sft")
    lines = collect.kept(run, name, lambda: choose_all(run, name, stage))
    purpose = common.purpose(run, stage.sample_from)
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
    print(
        f"{name}: learns {len(gold.records)} gold CoTs and {len(own)} of {len(lines)} responses; {facts['not_kept']}",
        flush=True,
    )
    sft.learn(name, stage, run, (*gold.encoded, *own), **facts)


def examples(run, records, texts, purpose: str) -> list[prompts.Encoded]:
    """Responses as SFT learns them: all after the prompt, program prefix and end-of-sequence included."""
    return [prompts.Encoded(ask, prefix + rest) for ask, prefix, rest in collect.pieces(run, records, texts, purpose)]


def choose_all(run: common.Run, name: str, stage: SelfTrain) -> list[dict]:
    """A line for every response of every question, in order."""
    data = run.config.data
    asked, drawn = collect.collect(run, name, stage)
    records = asked.fitted.records
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
    out = []
    for record, row, why in zip(records, drawn, whys, strict=True):
        why = capped(why, stage.max_per_question, seed=run.config.seed, item_id=record.item_id)
        for line, reason in zip(row, why, strict=True):
            about = {key: line[key] for key in ("item_id", "k", "response", "extracted", "status")}
            out.append(about | {"kept": not reason, "why": reason})
    return out


def without_duplicates(lines: list[dict], texts: list[str], gold: str, *, program: bool) -> list[str]:
    """Why each of a question's responses (`collect`'s lines, and their whole texts) is not learnt; "" = it may be."""
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
    rank = {k: hashlib.sha256(f"{seed}\x1f{item_id}\x1f{k}".encode()).digest() for k in left}
    over = set(sorted(left, key=rank.__getitem__)[cap:])
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


def online(name: str, stage: SelfTrain, run: common.Run):
    seed, size, data = run.config.seed, stage.batch_size, run.config.data
    asked = batching.fit(
        run.tokenizer, batching.fit(run.tokenizer, run.splits.train, data, purpose="sft").records, data, purpose="reft"
    )
    gold = prompts.encode_all(run.tokenizer, asked.records, data, purpose="sft")
    num, num_rows = len(asked.records), size * stage.num_samples
    num_steps = common.num_steps(stage.epochs, size, num)
    tx = make_optimizer(stage.optim, common.num_steps(stage.optim.schedule_epochs or stage.epochs, size, num))
    frozen, params = common.frozen_and_trained(run, name)
    state = steps.init_state(run.tuned, tx, params)

    checkpoints = checkpoint.Checkpoints(run.folder(name))
    progress = {"best_step": None, "best_accuracy": -1.0}
    start = None
    if (saved := checkpoints.go_on(state)) is not None:
        start, state, progress = saved
    sampler = common.make_sampler(run, run.tuned, stage.sampling, stage.sample_batch_size, stage.num_samples)
    ahead = common.programs_ahead(run)
    train_step = make_self_train_step(run.tuned, tx, state.params, stage, frozen=frozen)
    check = sft.make_check(run, stage, "reft", frozen)

    metric_lines = Lines(run.folder(name) / "metrics.jsonl", after_step=-1 if start is None else start)
    sample_lines = Lines(run.folder(name) / "samples.jsonl", after_step=-1 if start is None else start)
    if start is None:  # where it begins; saved, so that a resumed run does not measure it twice
        start = 0
        metric_lines.write({"step": 0, "epoch": 0.0, "time": time.time(), **check(state)})
        checkpoints.save(0, state, progress)
    bar = Progress(name, num_steps, start)

    for step in range(start + 1, num_steps + 1):
        distributed.beat()
        clock = [time.monotonic()]
        rows = batching.batch_indices(seed, step - 1, size, num)
        records = [asked.records[row] for row in rows for _ in range(stage.num_samples)]
        slot_steps = sampler.counts["slot_steps"]
        key = common.key_of(seed, name, step, common.SAMPLE)
        policy = models.join(frozen, state.params)
        questions = common.make_prompts(run, asked.encoded, rows)
        sample, texts = respond(run, sampler, policy, questions, key, records, ahead)
        clock.append(time.monotonic())

        grades = common.grade(run, records, texts, "reft", ahead)
        clock.append(time.monotonic())

        responses = [tokens[real].tolist() for tokens, real in zip(sample.tokens, sample.mask, strict=True)]
        own = [
            prompts.Encoded(asked.encoded[rows[i // stage.num_samples]].prompt, responses[i] if grade.correct else [])
            for i, grade in enumerate(grades)
        ]
        batch, packing = mixed_batch(run, own, [gold[row] for row in rows], stage.accumulate)
        state, metrics = train_step(state, batch, common.key_of(seed, name, step, common.DROPOUT), packing=packing)
        metrics = common.host(metrics) | sample_metrics(sample, grades, sampler.max_new)
        clock.append(time.monotonic())
        common.check_finite(name, step, metrics)
        sample_s, reward_s, update_s = np.diff(clock).tolist()
        num_tokens = metrics["sample/length_mean"] * num_rows
        metrics |= {
            "reward/mean": metrics["reward/accuracy"],  # a right answer is 1 and any other 0
            "time/sample_s": sample_s,
            "time/reward_s": reward_s,
            "time/reward_hidden_s": ahead.hidden_s if ahead else 0.0,
            "time/update_s": update_s,
            "rate/sample_tokens_per_s": num_tokens / sample_s,
            "sample/slot_use": num_tokens / (sampler.counts["slot_steps"] - slot_steps),
            # a count, but named like times: it depends on the process (compiled anew after a restart), not on the run
            "time/sample_programs": sampler.num_programs,
        }
        bar.update(step, accuracy=f"{metrics['reward/accuracy']:.3f}", length=f"{metrics['sample/length_mean']:.0f}")

        last = step == num_steps
        checked = last or common.crossed(step, stage.eval_every, size, num)
        if checked:
            metrics |= check(state)
            sft.select(progress, step, metrics, stage)
        if checked or step % stage.log_every == 0:
            metric_lines.write({"step": step, "epoch": step * size / num, "time": time.time(), **metrics})
            log_samples(sample_lines, run, step, stage.log_samples, records, texts, grades, responses, sample)
        if checked or step % stage.save_every == 0:
            checkpoints.save(step, state, progress, wait=False)
        if run.stop.requested:
            checkpoints.save(step, state, progress)
            run.stop_if_asked()

    checkpoints.wait()
    sft.finish(run, name, stage, progress, num_steps, num_steps * size / num)
    for closable in (bar, metric_lines, sample_lines, checkpoints):
        closable.close()


def mixed_batch(run, own, gold, accumulate: int):
    """(MixedBatch, packing) of own responses, then gold CoTs; own ones without tokens are wrong and are not learnt."""
    batch, packing = sft.make_batch(run, [*own, *gold], range(len(own) + len(gold)), accumulate)
    whose = run.layout.batch(np.arange(len(own) + len(gold)) < len(own))
    return MixedBatch(batch.prompts, batch.tokens, batch.mask, whose), packing


def log_samples(lines: Lines, run, step, num, records, texts, grades, responses, sample):
    """The first `num` responses of the step, with the sampler's log-probability of every token."""
    for i in range(min(num, len(records))):
        lines.write(
            {
                "step": step,
                "item_id": records[i].item_id,
                "question": records[i].question,
                "response": texts[i],
                "extracted": grades[i].extracted,
                "status": grades[i].status,
                "score": float(grades[i].correct),
                "tokens": run.tokenizer.convert_ids_to_tokens(responses[i]),
                "logp": sample.logp[i][sample.mask[i]],
            }
        )
