"""ReFT's second stage: online PPO on the training questions, the reward being whether the answer is right (section 3.2).

One step, as in the loop below: draw questions -> sample a CoT for each from the current policy -> grade the answers ->
log-probs and values by the training forward, of the policy and of the frozen warm-up model -> KL-penalised rewards,
GAE, whitening -> ppo.epochs passes of clipped updates over fresh permutations -> log, check on dev, save.
"""

import time

import jax
import numpy as np

from reft_jax import checkpoint, models, steps
from reft_jax.config import ReFT
from reft_jax.data import batching, prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.metrics import Lines, Progress
from reft_jax.optim import make_optimizer
from reft_jax.rewards import score as rewards
from reft_jax.stages import common
from reft_jax.stages.sft import finish, make_check, select
from reft_jax.types import Rollout, Sample


def run(name: str, stage: ReFT, run: common.Run):
    seed, size, ppo, data = run.config.seed, stage.batch_size, stage.ppo, run.config.data
    train = batching.fit(run.tokenizer, run.splits.train, data, purpose="reft")
    num, num_rows = len(train.records), size * stage.num_samples
    num_steps = common.num_steps(stage.epochs, size, num)
    total = common.num_steps(stage.optim.schedule_epochs or stage.epochs, size, num)
    tx = make_optimizer(stage.optim, total * ppo.epochs * (num_rows // ppo.minibatch_size))

    frozen, params = common.frozen_and_trained(run, name)
    ref_model, ref_params = common.reference(run, frozen, params)  # never donated: the state is a copy
    if "value_head" not in params:
        head_key = common.key_of(seed, name, 0, common.INIT)
        params = params | {
            "value_head": models.init_value_head(run.model, head_key, how=ppo.value_init, bias=ppo.value_bias)
        }
    state = steps.init_state(run.tuned, tx, params)

    checkpoints = checkpoint.Checkpoints(run.folder(name))
    progress = {"best_step": None, "best_accuracy": -1.0}
    if (start := checkpoints.latest()) is not None:
        state, progress = checkpoints.restore(start, state)
    sampler = common.make_sampler(run, run.tuned, stage.sampling, num_rows, stage.num_samples)
    score_fn, advantages_fn = steps.make_score(run.tuned, ref_model), steps.make_advantages(ppo)
    ppo_step = steps.make_ppo_step(run.tuned, tx, state.params, ppo, frozen=frozen)
    check = make_check(run, stage, "reft", frozen)

    metric_lines = Lines(run.folder(name) / "metrics.jsonl", after_step=-1 if start is None else start)
    sample_lines = Lines(run.folder(name) / "samples.jsonl", after_step=-1 if start is None else start)
    if start is None:  # where the warm-up stands; saved, so that a resumed run does not measure it twice
        start = 0
        metric_lines.write({"step": 0, "epoch": 0.0, "time": time.time(), **check(state)})
        checkpoints.save(0, state, progress)
    bar = Progress(name, num_steps, start)

    for step in range(start + 1, num_steps + 1):
        clock = [time.monotonic()]
        rows = batching.batch_indices(seed, step - 1, size, num)
        questions = common.make_prompts(run, train.encoded, rows)
        policy = models.join(frozen, state.params)
        sample = trim(run, sampler(policy, questions, common.key_of(seed, name, step, common.SAMPLE)))
        records = [train.records[row] for row in rows for _ in range(stage.num_samples)]
        texts = decode(run, sample)
        sample, questions = run.layout.batch((sample, repeat(questions, stage.num_samples)))
        clock.append(time.monotonic())

        # Dispatched first: the device works on it while the answers are graded.
        scored = score_fn(policy, ref_params, questions, sample.tokens, sample.mask)
        grades = grade(run, records, texts)
        score = rewards.score(grades, partial_reward=stage.partial_reward, partial_on=stage.partial_on, task=data.name)
        clock.append(time.monotonic())

        logp, ref_logp, values, entropy = scored
        rollout = Rollout(questions, sample, logp, ref_logp, values, entropy, run.layout.batch(score))
        batch, metrics, kl = advantages_fn(rollout)
        updates = []
        for epoch in range(ppo.epochs):
            order_key = jax.random.fold_in(common.key_of(seed, name, step, common.PERMUTE), epoch)
            for minibatch in jax.random.permutation(order_key, num_rows).reshape(-1, ppo.minibatch_size):
                state, update = ppo_step(state, batch, minibatch)
                updates.append(update)
        state = state.replace(step=state.step + 1)

        metrics = (
            common.host(metrics)
            | update_metrics(jax.device_get(updates))
            | sample_metrics(sample, grades, data.max_response)
        )
        clock.append(time.monotonic())
        common.check_finite(name, step, metrics)
        sample_s, reward_s, update_s = np.diff(clock).tolist()
        metrics |= {
            "time/sample_s": sample_s,
            "time/reward_s": reward_s,
            "time/update_s": update_s,
            "rate/sample_tokens_per_s": metrics["sample/length_mean"] * num_rows / sample_s,
        }
        bar.update(
            step,
            accuracy=f"{metrics['reward/accuracy']:.3f}",
            kl=f"{metrics['kl/mean']:.2f}",
            length=f"{metrics['sample/length_mean']:.0f}",
        )

        last = step == num_steps
        checked = last or common.crossed(step, stage.eval_every, size, num)
        if checked:
            metrics |= check(state)
            select(progress, step, metrics, stage)
        if checked or step % stage.log_every == 0:
            metric_lines.write({"step": step, "epoch": step * size / num, "time": time.time(), **metrics})
            log_samples(sample_lines, run, step, stage.log_samples, records, texts, grades, score, rollout, batch, kl)
        if checked or step % stage.save_every == 0:
            checkpoints.save(step, state, progress)
        if run.stop.requested:
            checkpoints.save(step, state, progress)
            run.stop_if_asked()

    finish(run, name, stage, checkpoints, progress, num_steps, num_steps * size / num)
    for closable in (bar, metric_lines, sample_lines, checkpoints):
        closable.close()


# ------------------------------------------------------------------ parts of a step


def repeat(questions, num_samples: int):
    """Each prompt num_samples times in a row, as the sampler orders its rows."""
    return jax.tree.map(lambda x: np.repeat(x, num_samples, axis=0), questions)


def trim(run, sample: Sample) -> Sample:
    """Cut to the bucket of the longest response: scoring and updates do not pay for the limit."""
    longest = int(np.asarray(sample.mask).sum(1).max())
    length = batching.bucket(longest, run.config.data.response_buckets)
    return jax.tree.map(lambda x: x[:, :length], sample)


def decode(run, sample: Sample) -> list[str]:
    tokens, mask = np.asarray(sample.tokens), np.asarray(sample.mask)
    return [
        tokenizers.decode(run.tokenizer, row[real].tolist(), ends=run.eos_ids)
        for row, real in zip(tokens, mask, strict=True)
    ]


def grade(run, records, texts) -> list[rewards.Grade]:
    data, limits = run.config.data, run.config.rewards
    return rewards.grade(
        data.name,
        data.cot,
        [prompts.completed(record, text, data, purpose="reft") for record, text in zip(records, texts, strict=True)],
        [record.answer for record in records],
        matcher=data.matcher,
        max_verifier_failures=limits.max_verifier_failures,
        timeout_s=limits.timeout_s,
        memory_mb=limits.memory_mb,
        workers=limits.workers,
    )


def update_metrics(updates: list[dict]) -> dict:
    """Means over the step's updates; the first update's ratio error is apart, since its ratios must be 1."""
    out = {key: float(np.mean([update[key] for update in updates])) for key in updates[0] if key != "ppo/ratio_error"}
    errors = [float(update["ppo/ratio_error"]) for update in updates]
    return out | {"ppo/first_ratio_error": errors[0], "ppo/ratio_error_max": max(errors)}


def sample_metrics(sample: Sample, grades, limit: int) -> dict:
    mask = np.asarray(sample.mask)
    lengths = mask.sum(1)
    out = {
        "reward/accuracy": np.mean([g.correct for g in grades]),
        "sample/length_mean": lengths.mean(),
        "sample/length_max": lengths.max(),
        "sample/at_limit": np.mean(lengths == limit),
    }
    out |= {f"status/{status}": np.mean([g.status == status for g in grades]) for status in rewards.STATUSES}
    return {key: float(value) for key, value in out.items()}


def log_samples(lines: Lines, run, step, num, records, texts, grades, score, rollout: Rollout, batch, kl):
    """The first `num` responses of the step, with the numbers of every token."""
    count = min(num, len(records))
    if not count:
        return
    arrays = jax.device_get(
        (
            rollout.sample.tokens[:count],
            rollout.sample.mask[:count],
            rollout.logp[:count],
            rollout.ref_logp[:count],
            rollout.values[:count],
            batch.adv[:count],
            kl[:count],
        )
    )
    tokens, mask, logp, ref_logp, values, adv, kl = arrays
    for i in range(count):
        real = mask[i]
        lines.write(
            {
                "step": step,
                "item_id": records[i].item_id,
                "question": records[i].question,
                "response": texts[i],
                "extracted": grades[i].extracted,
                "status": grades[i].status,
                "score": score[i],
                "kl": kl[i],
                "tokens": run.tokenizer.convert_ids_to_tokens(tokens[i][real].tolist()),
                "logp": logp[i][real],
                "ref_logp": ref_logp[i][real],
                "value": values[i][real],
                "adv": adv[i][real],
            }
        )
