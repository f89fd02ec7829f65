"""The re-ranker (ReFT, section 4.3): a classifier of (question, response) that tells how likely the answer is right.

It learns from num_samples responses of `sample_from`'s model to every training question, graded; `balanced` takes of each question as
many right as wrong ones, chosen by a hash of (seed, item_id, k). It reads prompt, response and end-of-sequence; a response that is too
long for config.data's limits is cut before its end-of-sequence. <stage>/reranker.jsonl says of every response whether it was used.
`make_scorer` is what `evaluate` ranks samples with: rerank@k takes the response with the highest P(right).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax import models
from reft_jax.config.records import choices_of, setting
from reft_jax.config.setting import divides
from reft_jax.config.settings import Sampling, Training, sampled, source_answers, unmet, whole
from reft_jax.data import batching, splits
from reft_jax.errors import RunError
from reft_jax.models import init_classifier
from reft_jax.rollouts import rank, stored
from reft_jax.run import begin
from reft_jax.run.run import INIT, Run, key_of
from reft_jax.training import loop, supervised
from reft_jax.training.state import init_state
from reft_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Training):
    """batch_size: responses."""

    sample_from: str = setting(path=True)  # an earlier stage, or a directory as in init_from
    num_samples: int = setting(1, default=100)  # responses per training question
    balanced: bool = setting(default=False)  # as many right as wrong ones of each question; else as they were sampled
    sampling: Sampling = Sampling()
    sample_batch_size: int = setting(1, default=200)  # responses that decode together
    accumulate: int = setting(1, default=1)
    losses: tuple = choices_of("losses", default=dict(classifier={}))

    reduce = "sequence"
    learns_from_grades = True

    def check(self):
        yield from super().check()
        yield from sampled(self)
        yield from divides(self.accumulate, self.batch_size)
        yield from unmet(self.losses, ("right_logits",), ("right",), "a re-ranker")
        yield from whole(self.losses, self.accumulate)

    def check_in(self, recipe, earlier):
        yield from source_answers(self, earlier)

    def rows(self) -> dict:
        return {"batch_size": self.batch_size // self.accumulate, "sample_batch_size": self.sample_batch_size}

    def asks(self, recipe) -> tuple:
        return (recipe.purpose(self.sample_from),)

    def programs(self, name: str, at):
        at.draws(name, self)
        num, model = self.batch_size, at.model
        head = dict(classifier=jax.eval_shape(lambda key: models.init_classifier(model, key), at.key))
        head = at.parameters(model, head)
        whole_model = at.parameters(model, models.shapes(model))
        state = at.state(self, at.trained | head)
        read = at.rows((num, at.length), jnp.int32), at.rows((num, at.length), bool)
        flops = at.forward(num, logits=0)
        batch = Batch(None, *read, at.columns(num, "right"))
        at.update(f"{name}/classifier_step", self, "reranker", state, batch, 3 * flops, {})
        score = models.make_classifier_score(model)
        at.add(f"{name}/classifier_score", score, (whole_model | head, *read), flops, {})


def run(name: str, stage: Stage, run: Run):
    purpose = run.config.purpose(stage.sample_from)
    lines = stored.kept(run, name, lambda: choose_all(run, name, stage))
    asked = batching.fit(run.tokenizer, run.splits.train, run.config.data, purpose=purpose).records
    used = [(asked[i // stage.num_samples], line) for i, line in enumerate(lines) if line["used"]]
    right = np.array([line["right"] for _, line in used], bool)
    if right.all() or not right.any():
        raise RunError(
            f"{name}: of {len(lines)} responses of {stage.sample_from}, {sum(line['right'] for line in lines)} are right, and "
            f"{len(used)} are used: there is nothing to tell apart. Sample more (num_samples), or from another stage (sample_from)"
        )
    rows = rank.sequences(run, [record for record, _ in used], [line["response"] for _, line in used], purpose)

    tx = stage.optim(loop.num_scheduled(stage, len(rows)))
    frozen, params = begin.frozen_and_trained(run, name)
    head = init_classifier(run.model, key_of(run.config.seed, name, 0, INIT))
    params = {key: node for key, node in params.items() if key != "value_head"} | {"classifier": head}
    update = supervised.update_of(run, stage, "reranker", tx, frozen, params)

    def learnt(state, step, chosen):
        tokens, mask = rank.pad(run, [rows[i] for i in chosen])
        return update(state, run.layout.batch(Batch(None, tokens, mask, dict(right=right[chosen]))))

    print(f"{name}: learns {len(rows)} of {len(lines)} responses, {right.mean():.0%} of them right", flush=True)
    facts = dict(num_used=len(rows), share_right=float(right.mean()))
    state = init_state(run.tuned, tx, params)
    del params  # the state has copies
    supervised.go(name, stage, run, [len(row) for row in rows], state, learnt, loss="reranker/loss", facts=facts)


# ------------------------------------------------------------------ what it learns from


def choose_all(run: Run, name: str, stage: Stage) -> list[dict]:
    """A line for every response of every question, in order."""
    asked, drawn = stored.collect(run, name, stage)
    out = []
    for record, row in zip(asked.records, drawn, strict=True):
        right = [line["status"] == "correct" for line in row]
        chosen = balance(right, seed=run.config.seed, item_id=record.item_id) if stage.balanced else [True] * len(row)
        for line, ok, used in zip(row, right, chosen, strict=True):
            about = {key: line[key] for key in ("item_id", "k", "response", "extracted", "status")}
            out.append(about | {"right": ok, "used": used})
    return out


def balance(right: list[bool], *, seed: int, item_id: str) -> list[bool]:
    """Which responses of a question are used: as many right as wrong ones, as many as can be; a function of (seed, item_id, k)."""
    ranked = sorted(range(len(right)), key=lambda k: splits.hashed(seed, item_id, k))
    num = min(sum(right), len(right) - sum(right))
    chosen = {k for kind in (True, False) for k in [k for k in ranked if right[k] == kind][:num]}
    return [k in chosen for k in range(len(right))]
