"""ReFT's second stage: online PPO on the training questions, the reward being whether the answer is right (section 3.2).

One step, as in the loop below: draw questions -> sample a CoT for each from the current policy -> grade the answers ->
log-probs and values by the training forward, of the policy and of the frozen warm-up model -> KL-penalised rewards,
GAE, whitening -> ppo.epochs passes of clipped updates over fresh permutations -> log, check on dev, save.
`advantage` puts another estimate in GAE's place (its settings are the KL's and the critic's), `rewards` says what a response is paid,
`losses` what is minimised beside what the advantage brings.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax import models
from reft_jax.advantages import owned
from reft_jax.config.records import choice, choices_of, setting
from reft_jax.config.settings import OUTPUTS, WHOLE, Checked, Sampling, unmet, whole
from reft_jax.data import batching
from reft_jax.errors import RunError
from reft_jax.mesh import distributed
from reft_jax.rewards.total import total
from reft_jax.rollouts.actor import Actor
from reft_jax.rollouts.questions import ask, make_prompts, pack
from reft_jax.run import begin
from reft_jax.run.run import INIT, PERMUTE, SAMPLE, Run, key_of
from reft_jax.training import loop
from reft_jax.training.reinforce import PPO, make_advantages, make_learner
from reft_jax.training.scoring import make_score
from reft_jax.training.state import init_state
from reft_jax.types import Rollout, Sample

TAKEN = ("mean", "accuracy", "with_kl", "equal_groups")  # after reward/, by what every step logs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    """One step = batch_size questions x num_samples responses, graded, then ppo.epochs passes."""

    num_samples: int = setting(1, default=1)
    sampling: Sampling = Sampling()
    rewards: tuple = choices_of("rewards/terms", default=dict(right={}, partial={}))
    advantage: object = choice("advantages", default="gae")
    losses: tuple = choices_of("losses", default=dict(policy={}))
    # constant: a sum over tokens / (rows x the longest that a response may be), Dr. GRPO's
    reduce: str = setting(one_of=("token", "sequence", "constant"), default="sequence")
    ppo: PPO = setting()
    log_every: int = setting(1, default=1, free=True)
    log_samples: int = setting(0, default=16, free=True)  # responses a step that samples.jsonl keeps
    save_every: int = setting(1, default=10, free=True)
    # The run stops before training if the sampler's log-probs differ by more than this, on average, from those that training
    # computes; 0 = 1e-4 with compute_dtype float32, 0.05 with bfloat16.
    max_logp_gap: float = setting(0, default=0.0)

    explores = True
    learns_from_grades = True

    @property
    def critic(self):
        """The advantage's `Critic`; None without one."""
        return getattr(self.advantage, "critic", None)

    @property
    def objective(self) -> tuple:
        """All losses: those of `losses`, and those that the advantage's settings bring along."""
        return super().objective + owned(self.advantage)

    @property
    def keeps_reference(self) -> bool:
        """Whether a loss reads the reference's log-probabilities."""
        return any("ref_logp" in getattr(loss, "reads", ()) for loss in self.objective)

    @property
    def how(self) -> dict:
        return dict(reduce=self.reduce, accumulate=self.ppo.accumulate, temperature=self.temperature)

    @property
    def temperature(self) -> float:
        """Of the policy that is trained."""
        return self.sampling.temperature if self.ppo.correction == "temper" else 1.0

    @property
    def importance_cap(self) -> float:
        return self.ppo.importance_cap if self.ppo.correction == "importance" else 0.0

    def check(self):
        yield from super().check()
        rows, ppo = self.batch_size * self.num_samples, self.ppo
        if rows % ppo.minibatch_size:
            yield "ppo.minibatch_size", f"it must divide batch_size x num_samples = {rows}"
        if getattr(self.advantage, "compares", False) and self.num_samples < 2:
            yield "num_samples", "its advantage compares the responses to one question; it must be >= 2"
        outputs, columns = OUTPUTS, ["old_logp", "adv", "ref_logp"]
        if self.critic is not None:
            outputs, columns = (*OUTPUTS, "values"), [*columns, "old_values", "returns"]
        columns += ["weights"] if self.importance_cap else []
        what = f"a reft stage {'without' if self.critic is None else 'with'} a critic"
        yield from unmet(self.losses, outputs, columns, what)
        yield from whole(self.losses, ppo.accumulate, "ppo.accumulate")
        if not self.rewards:
            yield "rewards", "a response must be paid by something: legal is a group of one term or more"
        for label, _ in self.rewards:
            if label in TAKEN:
                yield f"rewards.{label}", f"reward/{label} is another metric's name; give the term another label"
        yield from self._on_policy()

    def _on_policy(self):
        """Refuses sampling whose log-probs would not be those of the policy that PPO trains, unless it is told how to account for them."""
        sampling, correction = self.sampling, self.ppo.correction
        if sampling.temperature == 0.0:
            yield "sampling.temperature", "PPO explores by sampling: it must be > 0"
        tempered = sampling.temperature != 1.0 and correction == "none"
        if tempered or sampling.shapes_distribution and correction != "importance":
            names = [f.name for f in dataclasses.fields(sampling) if f.name not in ("stop", "max_new")]
            given = [f"{n}={getattr(sampling, n)!r}" for n in names if getattr(sampling, n) != getattr(WHOLE, n)]
            told = (
                f"got {', '.join(given)}; PPO's log-probs are those of the whole distribution: temperature 1, top_k 0, top_p 1 and no "
                "other changes. Or set ppo.correction: 'temper' trains the tempered policy (a temperature alone), 'importance' weights "
                "tokens by min(p / q, importance_cap)"
            )
            yield "sampling", told

    def rows(self) -> dict:
        trained = {"batch_size": self.batch_size, "ppo.minibatch_size": self.ppo.part_size}
        return trained | {"eval_batch_size": self.eval_batch_size}

    def asks(self, recipe) -> tuple:
        return ("rollout",)

    def programs(self, name: str, at):
        ppo, num = self.ppo, self.batch_size * self.num_samples
        params = at.with_critic(self.critic)
        own = {key: node for key, node in params.items() if key not in at.trained}  # what the policy has not
        state = at.state(self, params)
        policy = models.join(at.frozen, params)
        tuned = bool(at.tuned.lora)  # a base is there once
        held = dict(reference=models.only_adapters(at.reference) if tuned else at.reference)
        beside = held | own | dict(opt_state=state.opt_state)
        at.sampling(name, at.tuned, at.everything, self.sampling, num, self.num_samples, beside)
        at.check(name, self, beside)
        score = make_score(at.tuned, at.ref_model, temperature=self.temperature, most=ppo.part_size)
        tokens, mask = at.answers(num, jnp.int32, bool)

        def forwards(num, num_policies):
            """Operations of so many policies' forwards and of a separate critic's, over `num` sequences."""
            separate = self.critic is not None and self.critic.trunk == "separate"
            return num_policies * at.forward(num) + (at.forward(num, logits=0) if separate else 0.0)

        arguments = (policy, at.reference, at.asked(num), tokens, mask, at.together(num))
        at.add(f"{name}/score", score, arguments, forwards(num, 2), dict(opt_state=state.opt_state), at.frozen)
        [number] = at.answers(num, jnp.float32)
        values = None if self.critic is None else number
        sample = Sample(tokens, mask, number)
        told = number, number, values, number, at.rows((num,), jnp.float32)
        rollout = Rollout(at.asked(num), sample, *told, self.num_samples)
        advantages = make_advantages(
            self.advantage, importance_cap=self.importance_cap, keep_reference=self.keeps_reference
        )
        at.add(f"{name}/advantages", advantages, (rollout,), 0.0, beside | at.everything)
        columns = ["old_logp", "adv"] + (["old_values", "returns"] if self.critic is not None else [])
        columns += ["weights"] if self.importance_cap else []
        batch = at.batch(num, *columns, *(["ref_logp"] if self.keeps_reference else []))
        size, length = ppo.minibatch_size, self.sampling.max_new or at.config.data.max_response
        at.update(f"{name}/ppo_step", self, "ppo", state, batch, 3 * forwards(size, 1), held, num=size, length=length)


def run(name: str, stage: Stage, run: Run):
    seed, size, ppo, k = run.config.seed, stage.batch_size, stage.ppo, stage.num_samples
    if note := getattr(getattr(stage.advantage, "kl", None), "note", ""):
        print(f"[{name}] {note}", flush=True)
    questions = ask(run, run.splits.train, "rollout")
    num, num_rows = len(questions.records), size * k
    tx = stage.optim(loop.num_scheduled(stage, num) * ppo.epochs * (num_rows // ppo.minibatch_size))
    frozen, params = begin.frozen_and_trained(run, name)
    ref_model, ref_params = begin.reference(run, frozen, params)  # never donated: the state is a copy
    params = models.with_critic(run.model, params, key_of(seed, name, 0, INIT), stage.critic)

    actor = Actor(run, run.tuned, stage.sampling, num_rows, k)
    learner = make_learner(run.tuned, tx, params, stage, frozen, (ref_model, ref_params), length=actor.sampler.max_new)
    check = loop.make_check(run, stage, "rollout", frozen)
    state = init_state(run.tuned, tx, params)
    steps = loop.Loop(name, stage, run, num, state, check, shown=loop.ROLLOUTS, samples=True)
    state = steps.state
    compare(run, name, stage, learner.score, questions, models.join(frozen, state.params), ref_params)

    for step in steps.steps():
        clock = [time.monotonic()]
        rows = batching.batch_indices(seed, step - 1, size, num)
        policy, key = models.join(frozen, state.params), key_of(seed, name, step, SAMPLE)
        each = functools.partial(steps.bar.phase, "sampling", total=num_rows)
        drawn = actor.draw(policy, questions, key, rows, each=each, in_order=True)
        asked, sample, together = arrays(run, actor, questions, rows, drawn)
        minibatches = learner.minibatches(key_of(seed, name, step, PERMUTE), num_rows)
        packings = pack(run, asked, sample.mask, minibatches, stage)
        asked, sample = run.layout.batch((asked, sample))
        clock.append(time.monotonic())

        # Dispatched first: the device works on it while the last answers are graded.
        scored = learner.score(policy, ref_params, asked, sample.tokens, sample.mask, together)
        drawn = actor.graded(drawn, step)
        scores, paid = total(stage.rewards, drawn, wanted(stage.rewards, scored))
        clock.append(time.monotonic())

        placed = run.layout.batch(as_wide(scores, sample.mask.shape[1]))
        rollout = Rollout(asked, sample, *scored, placed, k)
        state, batch, kl, learnt = learner.learn(state, rollout, minibatches, packings)
        clock.append(time.monotonic())

        metrics = learnt | paid | actor.metrics(drawn, np.diff(clock))
        numbers = functools.partial(numbers_of, rollout, batch, kl)
        told = scores if scores.ndim == 1 else scores.sum(1)
        steps.end(step, state, metrics, samples=functools.partial(actor.lines, drawn, told, numbers=numbers))


# ------------------------------------------------------------------ parts of a step


def arrays(run, actor: Actor, questions, rows, drawn):
    """(Prompts, Sample, how all sequences share rows) of responses to the questions `rows`; host arrays, a row for each response."""
    asked = make_prompts(run, questions.encoded, rows)
    asked = jax.tree.map(lambda x: np.repeat(x, drawn.num_samples, axis=0), asked)
    sample = actor.sample(drawn)
    [together] = pack(run, asked, sample.mask, [np.arange(len(sample.mask))])
    return asked, sample, together


def compare(run, name, stage, score, questions, policy, ref_params):
    """Stops the run, before anything is trained, if the sampler's log-probs are not those that training computes: on real
    questions, drawn from the whole distribution where `stage.sampling` changes it."""
    sampling = WHOLE if stage.ppo.correction == "importance" else stage.sampling
    actor = Actor(run, run.tuned, sampling, stage.batch_size * stage.num_samples, stage.num_samples, ahead=False)
    rows = batching.batch_indices(run.config.seed, 0, stage.batch_size, len(questions.records))
    drawn = actor.draw(policy, questions, key_of(run.config.seed, name, 0, SAMPLE), rows, in_order=True)
    asked, sample, together = arrays(run, actor, questions, rows, drawn)
    asked, tokens, mask = run.layout.batch((asked, sample.tokens, sample.mask))
    logp = score(policy, ref_params, asked, tokens, mask, together)[0]
    gap = np.abs(distributed.fetch(logp) - sample.logp)[sample.mask]
    limit = stage.max_logp_gap or {"float32": 1e-4, "bfloat16": 0.05}[run.model.compute_dtype]
    differ = f"differ by {gap.mean():.1e} on average, {gap.max():.1e} at most"
    print(f"[{name}] log-probs of sampling and of training {differ}", flush=True)
    if not gap.mean() <= limit:
        raise RunError(
            f"{name}: the sampler's log-probs differ from those that training computes by {gap.mean():.3g} on average, over "
            f"{len(gap)} tokens (at most {gap.max():.3g}); stages.{name}.max_logp_gap allows {limit:g}. The samples would be another "
            "policy's: try model.compute_dtype='float32', or allow more and let ppo.correction='importance' weight the tokens for it"
        )


def as_wide(score, width: int):
    """f32[B] as it is; f32[B, R] of tokens with `width` columns: behind a response's end is nothing but zeros."""
    if score.ndim == 1:
        return score
    return np.pad(score[:, :width], ((0, 0), (0, max(width - score.shape[1], 0))))


def wanted(terms, scored) -> dict:
    """What the terms need of (logp, ref_logp, values, entropy), as host arrays f32[B, R]."""
    there = dict(zip(("logp", "ref_logp", "values", "entropy"), scored, strict=True))
    needed = {name for _, term in terms for name in getattr(term, "needs", ())}
    return distributed.fetch({name: there[name] for name in sorted(needed)}) if needed else {}


def numbers_of(rollout: Rollout, batch, kl, count: int) -> dict:
    """What samples.jsonl has of the first `count` responses: the KL of each, and of its tokens what is known of them."""
    numbers = dict(kl=kl, logp=rollout.logp, ref_logp=rollout.ref_logp, value=rollout.values, adv=batch.adv)
    there = {name: x[:count] for name, x in numbers.items() if x is not None}
    fetched = distributed.fetch(there)
    return {name: fetched[name] for name in there}  # in that order
