"""What the model says of a batch: the one place where tokens and states are shifted by one, and where sequences share rows.

Scoring before an update and the update itself go through `outputs`; it computes what is asked for and nothing else.
"""

import jax
import jax.numpy as jnp

from reft_jax import masked, models
from reft_jax.types import Batch, Outputs

TOKENS = {"logp", "entropy", "ref_logp", "ref_kl"}  # what is of the vocabulary
OF_REFERENCE = {"ref_logp", "ref_kl"}
ALONE = {"right_logits", "attention_row"}  # what is computed of sequences that have a row each
GIVEN = ("inputs", "positions", "attention")  # columns by which the model reads otherwise


def outputs(
    model, params, batch: Batch, packing=None, *, needs, temperature=1.0, rate=0.0, key=None, most=0, reference=None
) -> Outputs:
    """The fields of Outputs that `needs` names; anything may stand where the mask is False.

    packing (data/packing.py): how these sequences share rows; what comes out is the same. rate, key: dropout's. most: rows at a time, and no more
    than `model.slice_tokens` allows; 0 = all. reference: (model, params) of the frozen one, for ref_logp and ref_kl.
    """
    needs, noise = frozenset(needs), dict(rate=rate, key=key)
    given = {name: batch.columns[name] for name in GIVEN if name in batch.columns}

    def read(hidden, states, tokens):
        """Of tokens that the states `hidden` emit; `states`: (model, parameters) -> other states that emit them."""
        out = {"hidden": hidden}
        if needs & TOKENS:
            against = (*reference, states(*reference)) if needs & OF_REFERENCE else None
            out |= models.token_outputs(model, params, hidden, tokens, temperature=temperature, reference=against)
        if "values" in needs:
            critic = models.critic_params(params) if "critic" in params else None
            out["values"] = (
                models.values(critic, states(model, critic, **noise)) if critic else models.values(params, hidden)
            )
        return {name: out[name] for name in out if name in needs}

    def alone(prompts, tokens, mask, given):
        read_tokens, real = given.get("inputs", tokens), masked.reach(mask)
        if prompts is not None:
            read_tokens = jnp.concatenate([prompts.tokens, read_tokens], axis=1)
            real = jnp.concatenate([prompts.mask, real], axis=1)
        positions = given["positions"] if "positions" in given else models.positions_of(real)
        seen = real[:, None] & given["attention"] if "attention" in given else real
        before = 0 if prompts is None else prompts.tokens.shape[1]

        def whole(model, params, **noise):
            return models.forward(model, params, read_tokens, positions, seen, **noise)[0]

        def emit(hidden):
            return hidden[:, before - 1 : before - 1 + tokens.shape[1]]

        if prompts is None and needs - ALONE:
            raise ValueError(f"{', '.join(sorted(needs - ALONE))}: of responses to prompts, which the batch has not")
        hidden, out = whole(model, params, **noise), {}
        if needs - ALONE:
            out = read(emit(hidden), lambda *of, **noise: emit(whole(*of, **noise)), tokens)
        if "right_logits" in needs:
            out["right_logits"] = models.classify(params, hidden, real)
        if "attention_row" in needs:
            query = before + tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
            row = models.attention_row(model, params, read_tokens, positions, seen, query)
            out["attention_row"] = row[:, before:]
        return out

    def sharing(packed, position, segment):
        def states(model, params, **noise):
            return models.forward(model, params, packed, position, segment, **noise)[0]

        return read(states(model, params, **noise), states, jnp.roll(packed, -1, axis=1))

    multiple = model.layout.parts("batch") if model.layout else 1
    prompts, tokens, mask = batch.prompts, batch.tokens, batch.mask
    if most and model.slice_tokens:
        most = min(most, max(model.slice_tokens // batch.length, 1) * multiple)
    if packing is None or needs & ALONE or given:
        return Outputs(**in_slices(alone, (prompts, tokens, mask, given), most, multiple))
    constrain = model.layout.constrain
    everything = jnp.concatenate([prompts.tokens, tokens], axis=1).reshape(-1)
    packed = constrain(everything[packing.source], "batch", None)
    out = in_slices(sharing, (packed, packing.position, packing.segment), most, multiple)

    def back(x):
        return constrain(x.reshape(-1, *x.shape[2:])[packing.place], "batch", *(None,) * (x.ndim - 1))

    return Outputs(**jax.tree.map(back, out))


def in_slices(function, rows, most: int, multiple: int):
    """function(*rows) for a tree of arrays [B, ...] whose rows do not matter to each other, at most `most` of them at a time (0 = all),
    and a multiple of `multiple`."""
    num = jax.tree.leaves(rows)[0].shape[0]
    size = max((n for n in range(multiple, most + 1, multiple) if num % n == 0), default=num)
    if size == num or not most:
        return function(*rows)
    slices = jax.tree.map(lambda x: x.reshape(size, num // size, *x.shape[1:]).swapaxes(0, 1), rows)
    out = jax.lax.map(lambda some: function(*some), slices)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(num, *x.shape[2:]), out)


def make_score(model, ref_model=None, *, temperature: float = 1.0, most: int = 0):
    """(params, ref_params, Prompts, tokens, mask, packing=None) -> (logp, ref_logp, values, entropy), each f32[B, R]; values None
    without a critic.

    `ref_params` are of `ref_model` (None = of the same). The training forward without dropout: old log-probs and values are
    recomputed with it (section 4 of the recipe). `temperature`: of the policy and the reference, where PPO trains a tempered one.
    `most`: rows at a time, so that many samples need no more memory than an update (0 = all).
    """
    ref_model = model if ref_model is None else ref_model

    def score(params, ref_params, prompts, tokens, mask, packing=None):
        rows, how = (Batch(prompts, tokens, mask), packing), dict(temperature=temperature, most=most)
        needs = {"logp", "entropy"} | ({"values"} if params.keys() & {"critic", "value_head"} else set())
        own = outputs(model, params, *rows, needs=needs, **how)
        reference = outputs(ref_model, ref_params, *rows, needs={"logp"}, **how)
        return own.logp, reference.logp, own.values, own.entropy

    return jax.jit(score)
