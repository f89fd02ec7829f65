"""Sequences that share rows: every one is there once, none sees another, and losses, gradients and scores are the unpacked ones."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from reft_jax.data import packing
from reft_jax.training import scoring
from reft_jax.training.state import init_state
from tests import tiny

PROMPTS = [6, 1, 3, 2, 5, 1, 4, 2]
RESPONSES = [7, 1, 2, 5, 1, 3, 0, 2]
TX, KEY = optax.sgd(1.0), jax.random.key(3)
ROWS = np.array([5, 0, 3, 6, 1, 7, 4, 2], np.int32)


def batches():
    rng = np.random.default_rng(0)
    return tiny.sft_batch(rng, PROMPTS, RESPONSES), tiny.ppo_batch(rng, PROMPTS, RESPONSES, fill=np.nan)


def packed(model, batch, group, parts=1):
    """On the mesh; in slices of two there is no room for sharing."""
    [out] = packing.pack(batch.prompts.mask, batch.mask, [group], parts=parts, multiple=model.layout.parts("batch"))
    assert len(out.source) < len(group) or parts == 4
    return model.layout.batch(out)


# ------------------------------------------------------------------ the plan


@pytest.mark.parametrize("seed", range(20))
def test_first_fit_places_each_sequence_once_and_fills_no_row_over(seed):
    rng = np.random.default_rng(seed)
    capacity, lengths = 100, rng.integers(1, 101, rng.integers(1, 60))
    rows = packing.first_fit(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    loads = [lengths[row].sum() for row in rows]
    assert max(loads) <= capacity
    assert len(rows) <= 11 / 9 * max(-(-lengths.sum() // capacity), (lengths > capacity / 2).sum()) + 1


@pytest.mark.parametrize("parts, multiple", [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
def test_a_packing_holds_every_token_in_order(parts, multiple):
    batch, _ = batches()
    prompts, mask, length = batch.prompts, batch.mask, 13
    everything = np.concatenate([prompts.tokens, batch.tokens], axis=1)
    real = np.concatenate([prompts.mask, mask], axis=1)
    groups = [ROWS, np.arange(8)]
    for group, out in zip(
        groups, packing.pack(prompts.mask, mask, groups, parts=parts, multiple=multiple), strict=True
    ):
        assert out.place.shape == (8, 7) and out.source.shape == out.segment.shape == out.position.shape
        assert out.source.shape[1] == length and len(out.source) % (parts * multiple) == 0
        assert (out.segment > 0).sum() == real.sum()
        for part in range(parts):
            rows = group[part::parts]  # what the update's slice of that number holds
            source, segment, position = (x[part::parts] for x in (out.source, out.segment, out.position))
            tokens = everything[rows].reshape(-1)[source]
            for i, row in enumerate(rows):
                places = out.place[part::parts][i, : mask[row].sum()]
                if not len(places):
                    continue
                at, first = places[0] // length, places[0] % length
                number = segment[at, first]
                here = segment[at] == number
                assert (tokens[at][here] == everything[row][real[row]]).all()
                assert (position[at][here] == np.arange(here.sum())).all()
                followers = tokens.reshape(-1)[places + 1]  # a state emits the next token
                assert (followers == batch.tokens[row][mask[row]]).all()
                assert (segment.reshape(-1)[places] == number).all()


def test_the_groups_of_a_step_have_few_shapes():
    rng = np.random.default_rng(1)
    prompt_mask = tiny.lengths_mask(rng.integers(1, 40, 64), 40, left=True)
    mask = tiny.lengths_mask(rng.integers(1, 90, 64), 90, left=False)
    groups = [rng.permutation(64) for _ in range(40)]
    packings = packing.pack(prompt_mask, mask, groups, parts=2)
    rows = {len(out.source) for out in packings}
    assert all(num % 4 == 0 for num in rows) and len(rows) <= 5  # slices of 32 rows, in steps of 2
    assert {out.place.shape for out in packings} == {(64, 90)}


# ------------------------------------------------------------------ the steps

ARCHS = {
    "plain": tiny.ARCH,
    "windows": dataclasses.replace(tiny.ARCH, windows=(0, 3), attention_softcap=5.0),
    "learned": dataclasses.replace(tiny.ARCH, positions="learned", max_positions=16, norm="layer"),
}


@pytest.mark.parametrize("where", ["one", "mixed"])
@pytest.mark.parametrize("arch", ARCHS)
def test_scores_are_the_unpacked_ones(where, arch):
    model = tiny.model(where, ARCHS[arch])
    params, (batch, _) = tiny.params(model, value_head=True), batches()
    given = (params, tiny.params(model, seed=1), batch.prompts, batch.tokens, batch.mask)
    score = scoring.make_score(model, temperature=0.7)
    for ours, theirs in zip(score(*given, packed(model, batch, np.arange(8))), score(*given), strict=True):
        np.testing.assert_allclose(np.where(batch.mask, ours, 0), np.where(batch.mask, theirs, 0), atol=2e-5)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("where, most", [("one", 2), ("one", 3), ("mixed", 4), ("mixed", 7)])
def test_scores_of_some_rows_at_a_time_are_those_of_all(where, most, together):
    model = tiny.model(where)
    params, (batch, _) = tiny.params(model, value_head=True), batches()
    given = [params, tiny.params(model, seed=1), batch.prompts, batch.tokens, batch.mask]
    given += [packed(model, batch, np.arange(8))] * together
    for ours, theirs in zip(
        scoring.make_score(model, most=most)(*given), scoring.make_score(model)(*given), strict=True
    ):
        np.testing.assert_allclose(np.where(batch.mask, ours, 0), np.where(batch.mask, theirs, 0), atol=2e-5)


@pytest.mark.parametrize(
    "where, parts, reduce",
    [
        ("one", 2, "sequence"),
        *(
            pytest.param("one", parts, how, marks=pytest.mark.slow)
            for parts, how in ((1, "token"), (2, "token"), (4, "token"), (4, "sequence"))
        ),
        *(pytest.param("mixed", 1, how, marks=pytest.mark.slow) for how in ("token", "sequence")),
    ],
)
def test_updates_are_the_unpacked_ones(where, parts, reduce):
    model = tiny.model(where)
    params, (sft, ppo) = tiny.params(model, value_head=True), batches()
    trees = [{name: node for name, node in params.items() if name != "value_head"}, params]
    settings = dict(accumulate=parts, reduce=reduce)
    sft_step = tiny.sft_step(model, TX, trees[0], **settings)
    ppo_step = tiny.ppo_step(model, TX, params, tiny.ppo(accumulate=parts, reduce=reduce))

    def update(step, tree, batch, **given):
        return step(init_state(model, TX, tree), batch, **given)

    together = packed(model, sft, np.arange(8), parts), packed(model, ppo, ROWS, parts)
    for step, tree, (batch, given), packing_ in (
        (sft_step, trees[0], (sft, dict(key=KEY)), together[0]),
        (ppo_step, params, (ppo, dict(rows=ROWS)), together[1]),
    ):
        tiny.assert_trees_close(
            update(step, tree, batch, packing=packing_, **given),
            update(step, tree, batch, **given),
            rtol=1e-4,
            atol=1e-5,
        )


def test_the_kernel_reads_segments_as_the_plain_way_does():
    arch = dataclasses.replace(tiny.ARCH, head_dim=16, windows=(0, 5))
    params, (_, ppo) = tiny.params(tiny.model("mixed", arch), value_head=True), batches()
    updated = []
    for way in ("xla", "kernel"):
        model = tiny.model("mixed", arch, attention=way)
        step = tiny.ppo_step(model, TX, params, tiny.ppo())
        updated.append(step(init_state(model, TX, params), ppo, ROWS, packing=packed(model, ppo, ROWS)))
    tiny.assert_trees_close(*updated, rtol=1e-4, atol=1e-5)
