"""The re-ranker: its head and loss against float64, that it learns what a vote cannot know, and which responses it is taught."""

import jax
import numpy as np
import pytest

from reft_jax import models
from reft_jax.errors import InputError
from reft_jax.losses import classifier
from reft_jax.models import make_classifier_score
from reft_jax.rewards.score import Grade
from reft_jax.rollouts import figures
from reft_jax.run import begin, checkpoint
from reft_jax.stages import reranker
from reft_jax.training.state import init_state
from reft_jax.training.update import make_update
from reft_jax.types import Batch, Outputs
from tests import tiny

LOSSES = (classifier.Loss(),)

# ------------------------------------------------------------------ head and loss


def test_the_loss_is_cross_entropy_also_where_exp_overflows():
    logits = np.array([0.3, -1.2, 4.0, -0.1, 200.0, -200.0, 200.0], np.float32)
    right = np.array([1, 0, 0, 1, 1, 0, 0], bool)
    expected = np.mean([np.logaddexp(0.0, -x if y else x) for x, y in zip(logits.astype(float), right, strict=True)])

    def loss_of(logits):
        return LOSSES[0](Outputs(right_logits=logits), Batch(None, None, None, dict(right=right)), None)

    loss, metrics = jax.jit(loss_of)(logits)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert metrics["reranker/accuracy"] == pytest.approx(4 / 7) and metrics["reranker/right"] == pytest.approx(3 / 7)
    grads = jax.grad(lambda x: loss_of(x)[0])(logits)
    sigmoid = 1 / (1 + np.exp(-np.clip(logits.astype(float), -600, 600)))
    np.testing.assert_allclose(grads, (sigmoid - right) / 7, atol=1e-7)


def with_classifier(model, seed=0):
    params = tiny.params(model, seed)
    return params | {"classifier": models.init_classifier(model, jax.random.key(seed)) | {"bias": np.float32(0.25)}}


def sequences(rng, lengths, size=9):
    mask = tiny.lengths_mask(lengths, size, left=False)
    return rng.integers(2, tiny.VOCAB, mask.shape).astype(np.int32), mask


def test_the_head_reads_the_state_of_the_last_token_alone():
    model, rng = tiny.model(), np.random.default_rng(0)
    params = with_classifier(model)
    tokens, mask = sequences(rng, [9, 1, 4, 6])
    score = make_classifier_score(model)
    logits = np.asarray(score(params, tokens, mask))
    kernel = np.asarray(params["classifier"]["kernel"], np.float64)
    for row, length in enumerate([9, 1, 4, 6]):
        alone = tokens[row : row + 1, :length]
        hidden, _ = models.forward(
            model, params, alone, np.arange(length, dtype=np.int32)[None], np.ones_like(alone, bool)
        )
        assert logits[row] == pytest.approx(np.asarray(hidden[0, -1], np.float64) @ kernel + 0.25, abs=1e-5)
    padded = np.where(mask, tokens, 5)
    np.testing.assert_array_equal(logits, score(params, padded.astype(np.int32), mask))


def test_an_update_is_the_same_for_any_split_and_device_count():
    rng, tx = np.random.default_rng(0), tiny.optim()(10)
    tokens, mask = sequences(rng, [9, 1, 4, 6, 2, 2, 7, 8])
    right, results = np.array([1, 0, 0, 1, 1, 1, 0, 0], bool), []
    for where, parts in (("one", 1), ("mixed", 2)):
        model = tiny.model(where)
        params = with_classifier(model)
        step = make_update(model, tx, params, LOSSES, name="reranker", reduce="sequence", accumulate=parts)
        state = init_state(model, tx, params)
        results.append(jax.device_get(step(state, model.layout.batch(Batch(None, tokens, mask, dict(right=right))))))
    logits = np.asarray(make_classifier_score(tiny.model())(with_classifier(tiny.model()), tokens, mask), np.float64)
    expected = np.logaddexp(0.0, np.where(right, -logits, logits)).mean()
    assert results[0][1]["reranker/loss"] == pytest.approx(expected, rel=1e-5)
    for state, metrics in results[1:]:
        assert metrics["reranker/loss"] == pytest.approx(results[0][1]["reranker/loss"], rel=1e-5)
        tiny.assert_trees_close(state, results[0][0], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ what it is for


def test_it_learns_what_a_vote_cannot_know():
    """Responses with token 7 are right, and every question has one among three that agree on a wrong answer: the vote is always wrong.
    The re-ranker is taught on other sequences, its loss falls, and its choice is right."""
    rng, model = np.random.default_rng(0), tiny.model()
    tx = tiny.optim(0.01)(100)
    state = init_state(model, tx, with_classifier(model))
    step = make_update(model, tx, state.params, LOSSES, name="reranker", reduce="sequence")

    def made(num):
        tokens, mask = sequences(rng, rng.integers(5, 10, num))
        right = rng.random(num) < 0.4
        tokens = np.where(tokens == 7, 8, tokens)
        tokens[np.arange(num), rng.integers(1, 5, num)] = np.where(right, 7, 8)
        return tokens, mask, right

    losses = []
    for _ in range(60):
        tokens, mask, right = made(64)
        state, metrics = step(state, model.layout.batch(Batch(None, tokens, mask, dict(right=right))))
        losses.append(float(metrics["reranker/loss"]))
    assert np.mean(losses[-10:]) < 0.35 * np.mean(losses[:3])

    score, grades, scores = make_classifier_score(model), [], []
    for _ in range(20):
        tokens, mask, right = made(32)
        chosen = [*np.flatnonzero(~right)[:3], np.flatnonzero(right)[0]]
        rng.shuffle(chosen)
        logits = np.asarray(score(state.params, tokens[chosen], mask[chosen]))
        scores.append((1 / (1 + np.exp(-logits.astype(float)))).tolist())
        grades.append([Grade("correct", "1", True) if right[i] else Grade("wrong", "2", False) for i in chosen])
    voted, ranked = figures.sampled(grades, 20, 4), figures.reranked(grades, scores, 20, 4)
    assert voted["maj@4"] == 0 and ranked["rerank@4"] >= 0.9 and ranked["oracle@4"] == 1


# ------------------------------------------------------------------ what it is taught


def test_balanced_means_as_many_right_as_wrong_of_each_question():
    right = [True, False, False, True, False, False]
    chosen = {}
    for seed in range(4):
        used = chosen[seed] = reranker.balance(right, seed=seed, item_id="a")
        assert used == reranker.balance(right, seed=seed, item_id="a") and used[0] and used[3] and sum(used) == 4
    assert len(set(map(tuple, chosen.values()))) > 1
    assert not any(reranker.balance([True] * 3, seed=0, item_id="a"))  # nothing to tell apart


def test_a_rerankers_checkpoint_is_no_policy(tmp_path):
    model = tiny.model()
    checkpoint.write_params(tmp_path / "ranker", with_classifier(model))
    with pytest.raises(InputError, match="is a re-ranker, which answers no questions"):
        begin.check_stored(tmp_path / "ranker", "init_from=x", models.shapes(model))
    assert "classifier" in begin.check_stored(tmp_path / "ranker", "x", models.shapes(model), classifier=True)
