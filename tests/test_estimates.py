"""Estimates against sums over all subsets and against published values."""

import itertools
import math

import pytest

from reft_jax.rewards.estimates import majority, pass_at_k, wilson


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
