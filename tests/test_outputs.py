"""What the model says of a batch: only what is needed, and each of it as the equations have it, alone, sliced and where sequences share rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models
from reft_jax.config.records import setting
from reft_jax.data import packing
from reft_jax.training import scoring
from reft_jax.training.state import init_state
from reft_jax.training.update import make_update
from reft_jax.types import COLUMNS, Batch, Outputs
from tests import reference, tiny

PROMPTS, RESPONSES = [3, 6, 1, 2], [5, 2, 3, 7]
ROWS = np.arange(4, dtype=np.int32)
EVERYTHING = ("logp", "entropy", "hidden", "values", "ref_logp", "ref_kl")


def batch_of(**columns) -> Batch:
    return tiny.sft_batch(np.random.default_rng(0), PROMPTS, RESPONSES).put(**columns)


def sequence(batch, row, tokens=None):
    """The real tokens of a row, and how many of them are the prompt's."""
    prompt = np.asarray(batch.prompts.tokens)[row, np.asarray(batch.prompts.mask)[row]]
    tokens = batch.tokens if tokens is None else tokens
    return [*prompt, *np.asarray(tokens)[row, : RESPONSES[row]]], len(prompt)


@pytest.fixture(scope="module", params=[128, 3], ids=["whole", "chunked"])
def made(request):
    """(model, parameters with a value head, (model, parameters) of a reference), the logits in so many positions at a time."""
    model = tiny.model(logits_chunk=request.param)
    return model, tiny.params(model, value_head=True), (model, tiny.params(model, seed=1))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_divergence_from_the_reference_is_that_of_whole_vocabularies(made, temperature):
    model, params, (_, other) = made
    batch = batch_of()
    got = scoring.outputs(model, params, batch, needs=EVERYTHING, temperature=temperature, reference=made[2])
    for row in range(4):
        tokens, before = sequence(batch, row)
        ours, theirs = (reference.llama_logits(model.arch, tree, tokens) / temperature for tree in (params, other))
        for t in range(RESPONSES[row]):
            p, q = (reference.log_softmax(x[before - 1 + t]) for x in (ours, theirs))
            np.testing.assert_allclose(got.ref_kl[row, t], (np.exp(p) * (p - q)).sum(), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(got.ref_logp[row, t], q[tokens[before + t]], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(got.logp[row, t], p[tokens[before + t]], rtol=1e-4, atol=1e-4)


def test_shared_rows_and_slices_change_nothing(made):
    model, params, (_, other) = made
    batch = batch_of()
    [together] = packing.pack(batch.prompts.mask, batch.mask, [ROWS])
    assert len(together.source) < 4
    real, how = np.asarray(batch.mask), dict(needs=EVERYTHING, reference=(model, other))
    whole = scoring.outputs(model, params, batch, **how)
    for packed, most in ((together, 0), (together, 1), (None, 2)):
        got = scoring.outputs(model, params, batch, packed, most=most, **how)
        for name in EVERYTHING:
            ours, theirs = (np.asarray(getattr(x, name))[real] for x in (got, whole))
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_nothing_is_computed_that_is_not_needed(made):
    model, params, _ = made
    for needs in ({"logp"}, {"hidden"}, {"values"}, {"entropy", "values"}):
        out = scoring.outputs(model, params, batch_of(), needs=needs)
        assert {field.name for field in dataclasses.fields(Outputs) if getattr(out, field.name) is not None} == needs

    def text(need):
        return (
            jax.jit(lambda: getattr(scoring.outputs(model, params, batch_of(), needs={need}), need)).lower().as_text()
        )

    assert "stablehlo.log " in text("logp") and "stablehlo.log " not in text("values")  # no softmax over the vocabulary


def test_the_attention_row_is_the_last_layers_of_the_last_response_token(made):
    model, params, _ = made
    batch = batch_of()
    got = np.asarray(scoring.outputs(model, params, batch, needs=("attention_row",)).attention_row)
    for row in range(4):
        tokens, before = sequence(batch, row)
        kept = []
        reference.llama_logits(model.arch, params, tokens, attention=kept)
        heads = [weights for layer, t, _, weights in kept if (layer, t) == (model.arch.num_layers - 1, len(tokens) - 1)]
        expected = np.mean(heads, axis=0)[before:]
        assert len(heads) == model.arch.num_heads and expected.sum() < 1
        np.testing.assert_allclose(got[row, : RESPONSES[row]], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got[row, RESPONSES[row] :], 0.0, atol=1e-7)


def test_what_is_read_may_differ_from_what_is_learnt():
    model = tiny.model()
    params, other = tiny.params(model), np.random.default_rng(7).integers(2, tiny.VOCAB, (4, 7)).astype(np.int32)
    batch = batch_of(inputs=other)
    logp = scoring.outputs(model, params, batch, needs=("logp",)).logp
    for row in range(4):
        tokens, before = sequence(batch, row, other)
        rows = reference.llama_logits(model.arch, params, tokens)
        for t in range(RESPONSES[row]):
            expected = reference.log_softmax(rows[before - 1 + t])[batch.tokens[row, t]]
            np.testing.assert_allclose(logp[row, t], expected, rtol=1e-4, atol=1e-4)


def test_positions_and_who_sees_whom_may_be_given():
    model, rng = tiny.model(), np.random.default_rng(3)
    params, size = tiny.params(model), 6 + 7
    seen = rng.random((4, size, size)) < 0.6
    seen |= np.eye(size, dtype=bool)
    positions = np.sort(rng.integers(0, 20, (4, size)), axis=1).astype(np.int32)
    batch = batch_of(attention=seen, positions=positions)
    [together] = packing.pack(batch.prompts.mask, batch.mask, [ROWS])
    for packed in (None, together):
        logp = scoring.outputs(model, params, batch, packed, needs=("logp",)).logp
        for row in range(4):
            tokens, before = sequence(batch, row)
            here = slice(6 - before, 6 - before + len(tokens))
            rows = reference.llama_logits(
                model.arch, params, tokens, positions=positions[row, here], seen=seen[row, here, here]
            )
            for t in range(RESPONSES[row]):
                expected = reference.log_softmax(rows[before - 1 + t])[batch.tokens[row, t]]
                np.testing.assert_allclose(logp[row, t], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_tokens_that_are_not_learnt_are_read_all_the_same(together):
    """A mask with holes: what stands in them is seen by later tokens, and has no part in the loss."""
    model = tiny.model()
    params, whole = tiny.params(model), batch_of()
    holes = np.array(whole.mask)
    holes[:, 1::2] = False
    holes[3, 6] = True
    batch = whole.replace(mask=holes)
    packed = packing.pack(batch.prompts.mask, holes, [ROWS])[0] if together else None
    expected = scoring.outputs(model, params, whole, needs=("logp",)).logp
    got = scoring.outputs(model, params, batch, packed, needs=("logp",)).logp
    np.testing.assert_allclose(np.asarray(got)[holes], np.asarray(expected)[holes], rtol=1e-5, atol=1e-5)


def test_a_classifier_reads_prompts_and_responses_as_it_does_whole_sequences():
    model = tiny.model()
    params = tiny.params(model) | {"classifier": models.init_classifier(model, jax.random.key(0))}
    batch = batch_of()
    got = scoring.outputs(model, params, batch, needs=("right_logits",)).right_logits
    rows = [sequence(batch, row)[0] for row in range(4)]
    tokens, mask = np.zeros((4, 13), np.int32), np.zeros((4, 13), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    np.testing.assert_allclose(got, models.make_classifier_score(model)(params, tokens, mask), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ coefficients that are driven, losses with a reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distil:
    """Towards the reference, over whole vocabularies."""

    coef: float = setting(0, default=1.0, traced=True)

    needs, reads, together = ("ref_kl",), (), "token"

    def __call__(self, out, batch, mean):
        loss = mean(out.ref_kl)
        return loss, {"distil/loss": loss}


def test_a_driven_coefficient_is_an_array_and_compiles_nothing_anew():
    model, tx = tiny.model(), tiny.optim()(10)
    params, other = tiny.params(model), tiny.params(model, seed=1)
    losses = (*tiny.NLL, Distil(coef=0.5))
    update = make_update(model, tx, params, losses, name="sft", reduce="token", reference=(model, other))
    told = {}
    for coef in (0.5, 2.0, 0.0):
        state, metrics = update(init_state(model, tx, params), batch_of(), coefs=({}, {"coef": coef}))
        told[coef] = jax.device_get(metrics)
    assert update.func._cache_size() == 1
    nll = told[0.0]["sft/loss"]
    for coef, metrics in told.items():
        assert (
            metrics["distil/loss"] == pytest.approx(told[0.0]["distil/loss"], rel=1e-6) and metrics["distil/loss"] > 0
        )
        assert metrics["sft/loss"] == pytest.approx(nll + coef * metrics["distil/loss"], rel=1e-5)
    _, usual = update(init_state(model, tx, params), batch_of())
    assert usual["sft/loss"] == told[0.5]["sft/loss"]


def test_columns_say_their_shapes_and_a_batch_has_no_others():
    assert all(set(column.axes) <= set("BPRTS") and jnp.dtype(column.dtype) for column in COLUMNS.values())
    batch = batch_of(adv=np.ones((4, 7), np.float32))
    assert batch.adv.sum() == 28 and batch.old_logp is None
    with pytest.raises(AttributeError, match="'advantage' is no column of a batch; types.COLUMNS has old_logp"):
        batch.advantage  # noqa: B018
