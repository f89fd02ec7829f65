"""ReFT's second stage: online PPO on the training questions, the reward being whether the answer is right (section 3.2).

One step, as in the loop below: draw questions -> sample a CoT for each from the current policy -> grade the answers ->
log-probs and values by the training forward, of the policy and of the frozen warm-up model -> KL-penalised rewards,
GAE, whitening -> ppo.epochs passes of clipped updates over fresh permutations -> log, check on dev, save.
`ppo.advantage` puts another estimate in GAE's place, `ppo.critic` another critic or none in the value head's.
"""

import functools
import time

import jax
import numpy as np

from reft_jax import models
from reft_jax.config.settings import WHOLE, ReFT
from reft_jax.data import batching
from reft_jax.errors import RunError
from reft_jax.mesh import distributed
from reft_jax.rewards import score as rewards
from reft_jax.rollouts import actor as actor_lib
from reft_jax.rollouts import draw
from reft_jax.run import begin
from reft_jax.run.run import INIT, PERMUTE, SAMPLE, Run, key_of
from reft_jax.training import loop, online, steps
from reft_jax.training.optim import make_optimizer
from reft_jax.types import Rollout, Sample


def run(name: str, stage: ReFT, run: Run):
    seed, size, ppo, data = run.config.seed, stage.batch_size, stage.ppo, run.config.data
    train = batching.fit(run.tokenizer, run.splits.train, data, purpose="reft")
    num, num_rows = len(train.records), size * stage.num_samples
    total = loop.num_steps(stage.optim.schedule_epochs or stage.epochs, size, num)
    tx = make_optimizer(stage.optim, total * ppo.epochs * (num_rows // ppo.minibatch_size))

    frozen, params = begin.frozen_and_trained(run, name)
    ref_model, ref_params = begin.reference(run, frozen, params)  # never donated: the state is a copy
    head_key = key_of(seed, name, 0, INIT)
    value = dict(critic=ppo.critic, how=ppo.value_init, bias=ppo.value_bias)
    params = models.with_critic(run.model, params, head_key, **value)
    check = loop.make_check(run, stage, "reft", frozen)
    log = online.Log(name, stage, run, num, steps.init_state(run.tuned, tx, params), check)
    state = log.state

    actor = actor_lib.Actor(name, stage, run, num_rows)
    temperature = stage.sampling.temperature if ppo.correction == "temper" else 1.0  # of the policy that is trained
    score_fn = steps.make_score(run.tuned, ref_model, temperature=temperature, most=ppo.part_size)
    advantages_fn = steps.make_advantages(ppo)
    settings = dict(frozen=frozen, temperature=temperature, max_response=actor.sampler.max_new)
    ppo_step = steps.make_ppo_step(run.tuned, tx, state.params, ppo, **settings)
    compare(run, name, stage, actor.sampler, score_fn, train.encoded, models.join(frozen, state.params), ref_params)

    for step in log.steps():
        clock = [time.monotonic()]
        rows = batching.batch_indices(seed, step - 1, size, num)
        questions = draw.make_prompts(run, train.encoded, rows)
        policy = models.join(frozen, state.params)
        records = [train.records[row] for row in rows for _ in range(stage.num_samples)]
        sample, texts = actor.respond(step, policy, questions, records, log.bar)
        drawn, asked = trim(run, sample), repeat(questions, stage.num_samples)
        [together] = draw.pack(run, asked, drawn.mask, [np.arange(num_rows)])
        order_key = key_of(seed, name, step, PERMUTE)
        orders = [jax.random.permutation(jax.random.fold_in(order_key, i), num_rows) for i in range(ppo.epochs)]
        minibatches = np.concatenate(orders).reshape(-1, ppo.minibatch_size)
        packings = draw.pack(run, asked, drawn.mask, minibatches, ppo.accumulate)
        sample, questions = run.layout.batch((drawn, asked))
        clock.append(time.monotonic())

        # Dispatched first: the device works on it while the last answers are graded.
        scored = score_fn(policy, ref_params, questions, sample.tokens, sample.mask, together)
        grades = actor.grade(records, texts)
        score = rewards.score(grades, partial_reward=stage.partial_reward, partial_on=stage.partial_on, task=data.name)
        clock.append(time.monotonic())

        logp, ref_logp, values, entropy = scored
        scores = run.layout.batch(score)
        rollout = Rollout(questions, sample, logp, ref_logp, values, entropy, scores, stage.num_samples)
        batch, metrics, kl = advantages_fn(rollout)
        updates = []
        for minibatch, packing in zip(minibatches, packings, strict=True):
            state, update = ppo_step(state, batch, minibatch, packing=packing)
            updates.append(update)
        state = state.replace(step=state.step + 1)

        metrics = loop.host(metrics) | update_metrics(jax.device_get(updates))
        clock.append(time.monotonic())
        loop.check_finite(name, step, metrics)
        metrics |= actor.metrics(drawn, records, texts, grades, np.diff(clock))
        write = functools.partial(sample_lines, run, records, texts, grades, score, rollout, batch, kl)
        log.end(step, state, metrics, write)


# ------------------------------------------------------------------ parts of a step


def repeat(questions, num_samples: int):
    """Each prompt num_samples times in a row, as the sampler orders its rows."""
    return jax.tree.map(lambda x: np.repeat(x, num_samples, axis=0), questions)


def trim(run, sample: Sample) -> Sample:
    """Cut to the bucket of the longest response: scoring and updates do not pay for the limit."""
    longest = int(np.asarray(sample.mask).sum(1).max())
    length = batching.bucket(longest, run.config.data.response_buckets)
    return jax.tree.map(lambda x: x[:, :length], sample)


def compare(run, name, stage, sampler, score_fn, encoded, policy, ref_params):
    """Stops the run, before anything is trained, if the sampler's log-probs are not those that training computes: on real
    questions, drawn from the whole distribution where `stage.sampling` changes it."""
    if stage.ppo.correction == "importance" and stage.sampling != WHOLE:
        sampler = draw.make_sampler(run, run.tuned, WHOLE, sampler.sizes[-1], stage.num_samples)
    rows = batching.batch_indices(run.config.seed, 0, stage.batch_size, len(encoded))
    questions = draw.make_prompts(run, encoded, rows)
    sample = trim(run, sampler(policy, questions, key_of(run.config.seed, name, 0, SAMPLE)))
    questions = repeat(questions, stage.num_samples)
    [together] = draw.pack(run, questions, sample.mask, [np.arange(len(sample.mask))])
    questions, tokens, mask = run.layout.batch((questions, sample.tokens, sample.mask))
    logp = score_fn(policy, ref_params, questions, tokens, mask, together)[0]
    gap = np.abs(distributed.fetch(logp) - sample.logp)[sample.mask]
    limit = stage.max_logp_gap or {"float32": 1e-4, "bfloat16": 0.05}[run.model.compute_dtype]
    print(
        f"[{name}] log-probs of sampling and of training differ by {gap.mean():.1e} on average, {gap.max():.1e} at most",
        flush=True,
    )
    if not gap.mean() <= limit:
        raise RunError(
            f"{name}: the sampler's log-probs differ from those that training computes by {gap.mean():.3g} on average, over "
            f"{len(gap)} tokens (at most {gap.max():.3g}); stages.{name}.max_logp_gap allows {limit:g}. The samples would be another "
            "policy's: try model.compute_dtype='float32', or allow more and let ppo.correction='importance' weight the tokens for it"
        )


def update_metrics(updates: list[dict]) -> dict:
    """Means over the step's updates; the first update's ratio error is apart, since its ratios must be 1."""
    out = {key: float(np.mean([update[key] for update in updates])) for key in updates[0] if key != "ppo/ratio_error"}
    errors = [float(update["ppo/ratio_error"]) for update in updates]
    return out | {"ppo/first_ratio_error": errors[0], "ppo/ratio_error_max": max(errors)}


def sample_lines(run, records, texts, grades, score, rollout: Rollout, batch, kl, num: int):
    """Lines for the first `num` responses of a step, with the numbers of every token."""
    count = min(num, len(records))
    if not count:
        return
    arrays = distributed.fetch(
        (
            rollout.sample.tokens[:count],
            rollout.sample.mask[:count],
            rollout.logp[:count],
            rollout.ref_logp[:count],
            batch.adv[:count],
            kl[:count],
            {} if rollout.values is None else {"value": rollout.values[:count]},
        )
    )
    tokens, mask, logp, ref_logp, adv, kl, values = arrays
    for i in range(count):
        real = mask[i]
        yield actor_lib.about(records[i], texts[i], grades[i], score[i]) | {
            "kl": kl[i],
            "tokens": run.tokenizer.convert_ids_to_tokens(tokens[i][real].tolist()),
            "logp": logp[i][real],
            "ref_logp": ref_logp[i][real],
            **{key: value[i][real] for key, value in values.items()},
            "adv": adv[i][real],
        }
