"""Estimates against sums over all subsets and against published values."""

import collections
import itertools
import math
import time

import numpy as np
import pytest

from reft_jax.rewards import matchers
from reft_jax.rewards.estimates import (
    best_of,
    majority,
    oracle_at_k,
    pass_at_k,
    vote_is_right,
    weighted_majority,
    wilson,
)


@pytest.mark.parametrize(("num_samples", "num_correct"), [(1, 0), (1, 1), (5, 2), (7, 0), (7, 6), (8, 8)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample(num_samples, num_correct):
    right = [i < num_correct for i in range(num_samples)]
    for k in range(1, num_samples + 1):
        subsets = list(itertools.combinations(right, k))
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_of_large_counts_and_k_1():
    assert pass_at_k(10_000, 3_000, 1) == pytest.approx(0.3)
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    assert pass_at_k(200, 200, 200) == 1.0


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(num_samples, num_correct, k):
    with pytest.raises(ValueError, match="must lie in"):
        pass_at_k(num_samples, num_correct, k)


def test_wilson_solves_its_defining_equation():
    for num_correct, num in [(1, 10), (5, 10), (861, 1000), (3, 1319)]:
        p = num_correct / num
        for bound in wilson(num_correct, num):
            assert abs(p - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / num), abs=1e-9)
        lo, hi = wilson(num_correct, num)
        assert lo < p < hi


def test_wilson_at_the_ends_and_without_data():
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson(10, 10) == (pytest.approx(0.722467, abs=1e-6), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="num_correct=3"):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("values", "winner"),
    [
        (["1", "2", "2"], "2"),
        (["2", "1", "1", "2"], "2"),
        (["3", "1", "1", "2", "2"], "1"),
        ([None, None, None, "5"], "5"),
        ([None, None], None),
        ([], None),
    ],
)
def test_majority_ignores_none_and_breaks_ties_by_the_lowest_index(values, winner):
    assert majority(values) == winner


@pytest.mark.parametrize(
    ("values", "weights", "winner"),
    [
        (["1", "2", "2"], [0.9, 0.3, 0.5], "1"),
        (["1", "2", "2"], [0.9, 0.4, 0.6], "2"),
        (["2", "1"], [0.5, 0.5], "2"),
        (["1", "2", "2", "1"], [0.1, 0.2, 0.1, 0.2], "1"),  # 0.1 + 0.2 both ways
        ([None, "5"], [9.0, 0.0], "5"),
        (["3", "5"], [0.0, 0.0], "3"),
        ([None, None], [1.0, 1.0], None),
        ([], [], None),
    ],
)
def test_a_weighted_vote_sums_per_value_and_breaks_ties_by_the_lowest_index(values, weights, winner):
    assert weighted_majority(values, weights) == winner


@pytest.mark.parametrize(
    ("matcher", "kind", "values", "winner"),
    [
        ("reft", "number", ["7", "7", "6.67", "6.667", "6.67"], "6.67"),
        ("reft", "number", ["7", "7", "6.667", "6.67", "6.67"], "6.67"),  # whatever the order
        ("reft", "number", ["1", "1.01", "1.02", "1.02", "5", "5"], "1.01"),  # the one with most votes around it
        ("reft", "number", ["42", None, "43", "43"], "43"),
        ("reft", "choice", ["a", "b", "b"], "b"),
        (
            "math",
            "expression",
            ["1/3", "333333333/1000000000", "2", "2", "333333333/1000000000"],
            "333333333/1000000000",
        ),
        ("math", "expression", ["x+1", "x+1", "5 foot", "5", "5 foot"], "5 foot"),
        ("math", "expression", ["5 foot", "5 meter", "7", "7"], "7"),
        ("auto", "number", ["50 percent", "1/2", "3", "3", "1/2"], "1/2"),
        ("gsm8k_strict", "number", ["42", "42.0", "7", "7"], "7"),
    ],
)
def test_answers_that_agree_vote_for_each_other(matcher, kind, values, winner):
    agree = matchers.same(matcher, kind)
    assert majority(values, agree) == winner == weighted_majority(values, [0.1] * len(values), agree)
    assert majority(values[::-1], agree) == winner
    correct = [value == winner for value in values]
    assert vote_is_right(values, correct, agree=agree)


def test_a_question_of_a_hundred_different_answers_votes_in_milliseconds():
    for name in ("reft", "math"):
        values, agree = [f"{i}/7" if name == "math" else f"{i}.5" for i in range(1, 101)], matchers.same(name, "number")
        majority(values, agree)
        start = time.process_time()
        majority(values, agree)
        assert time.process_time() - start < 0.5


def test_equal_weights_are_the_plain_vote_whatever_the_order():
    for values in itertools.product(["1", "2", "3", None], repeat=5):
        counts = collections.Counter(value for value in values if value is not None)
        want = min(counts, key=lambda value: (-counts[value], values.index(value))) if counts else None
        assert majority(values) == want == weighted_majority(values, [0.1] * 5)


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, math.inf], [1.0, -1.0]])
def test_weights_are_checked(weights):
    with pytest.raises(ValueError, match="weight"):
        weighted_majority(["1", "2"], weights)


def test_the_best_of_several_is_the_highest_weight_at_the_lowest_index():
    assert best_of([0.2, 0.9, 0.9]) == 1 and best_of([-3.0]) == 0 and best_of([-math.inf, -5.0]) == 1
    for wrong in ([], [0.1, math.nan]):
        with pytest.raises(ValueError, match="at least one"):
            best_of(wrong)


def test_an_oracle_looks_at_the_first_k():
    assert not oracle_at_k([False, False, True], 2) and oracle_at_k([False, False, True], 3)
    for k in (0, 4):
        with pytest.raises(ValueError, match=r"must lie in 1\.\.num_samples=3"):
            oracle_at_k([False, False, True], k)


def test_pass_at_k_is_the_mean_of_the_oracle_over_orders():
    correct = [True, False, True, False, False]
    for k in range(1, 6):
        orders = list(itertools.permutations(correct))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(oracle_at_k(order, k) for order in orders) / len(orders))


def test_a_vote_is_right_as_its_samples_are_and_no_vote_is_wrong():
    assert vote_is_right(["1", "2", "2"], [False, True, True])
    assert not vote_is_right(["1", "2", "2"], [True, False, False])
    assert vote_is_right(["1", "2", "2"], [True, False, False], [0.9, 0.1, 0.1])
    assert not vote_is_right([None, None], [False, False]) and not vote_is_right([], [])


def test_the_interval_of_a_sum_of_fractions_is_wider_than_their_own_and_covers_the_truth():
    """Fractions in [0, 1] vary at most as zeros and ones do, whose interval Wilson's is."""
    rng, inside = np.random.default_rng(3), 0
    for _ in range(300):
        values = rng.beta(0.5, 0.5, 80)
        lo, hi = wilson(values.sum(), 80)
        half = 1.959964 * values.std() / math.sqrt(80)
        assert hi - lo > 2 * half
        inside += lo <= 0.5 <= hi
    assert inside / 300 >= 0.95
    assert wilson(3.0, 9) == wilson(3, 9)
