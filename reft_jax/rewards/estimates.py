"""Estimates from graded samples: confidence intervals, unbiased pass@k, and the ways to choose one answer of several.

Of equals, whatever is chosen, the one seen at the lowest index wins. `values` are the matcher's canonical answers, None where a sample has
none: None does not vote, and a question all of whose samples have none has no vote and is wrong.
"""

import itertools
import math
import operator
from collections.abc import Callable, Hashable, Sequence

Agree = Callable[[Hashable, Hashable], bool]


def wilson(num_correct: float, num: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as fractions (default 95 %); (0, 1) when `num` is 0. Wilson (1927)."""
    if not 0 <= num_correct <= num:
        raise ValueError(f"num_correct={num_correct} must lie in 0..num={num}")
    if num == 0:
        return 0.0, 1.0
    p = num_correct / num
    denominator = 1 + z * z / num
    centre = (p + z * z / (2 * num)) / denominator
    half = z / denominator * math.sqrt(p * (1 - p) / num + z * z / (4 * num * num))
    # The ends are exact by algebra where nothing or everything is right; rounding would leave 1e-17 there.
    lo = 0.0 if num_correct == 0 else max(0.0, centre - half)
    hi = 1.0 if num_correct == num else min(1.0, centre + half)
    return lo, hi


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that k of the samples, drawn without replacement, hold a right one: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), section 2.1. ValueError when k > num_samples or a count is impossible.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} must lie in 1..num_samples={num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct={num_correct} must lie in 0..num_samples={num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority(values: Sequence[Hashable | None], agree: Agree = operator.eq) -> Hashable | None:
    """`weighted_majority` of equal weights: the most frequent value."""
    return weighted_majority(values, [1] * len(values), agree)


def weighted_majority(
    values: Sequence[Hashable | None], weights: Sequence[float], agree: Agree = operator.eq
) -> Hashable | None:
    """The value with the largest sum of weights of all samples that agree with it; None does not vote; None if all are None.

    `agree` (symmetric, `matchers.same`) says whether two different values are one answer: 6.67 and 6.667 vote for each other. Of values with
    equal sums the one with more weight of its own wins, then the one seen at the lowest index. Sums are exact (`math.fsum`), so that the
    order of samples decides such ties and nothing else. Weights are finite and >= 0. Each pair of different values is compared once.
    """
    _check_weights(values, weights)
    own: dict[Hashable, list[float]] = {}  # in the order of first appearance
    for value, weight in zip(values, weights, strict=True):
        if value is not None:
            own.setdefault(value, []).append(weight)
    votes = {value: list(parts) for value, parts in own.items()}
    for a, b in itertools.combinations(own, 2):
        if agree(a, b):
            votes[a] += own[b]
            votes[b] += own[a]
    # max() returns the first maximum.
    return max(votes, key=lambda value: (math.fsum(votes[value]), math.fsum(own[value]))) if votes else None


def best_of(weights: Sequence[float]) -> int:
    """The index of the highest weight (re-ranking), of equals the lowest. ValueError without samples or for NaN."""
    if not weights or any(math.isnan(weight) for weight in weights):
        raise ValueError(f"weights must be numbers, at least one of them: got {list(weights)[:8]}")
    return max(range(len(weights)), key=weights.__getitem__)


def oracle_at_k(correct: Sequence[bool], k: int) -> bool:
    """Whether one of the first k samples is right: what a perfect judge would make of them."""
    if not 1 <= k <= len(correct):
        raise ValueError(f"k={k} must lie in 1..num_samples={len(correct)}")
    return any(correct[:k])


def vote_is_right(
    values: Sequence[Hashable | None],
    correct: Sequence[bool],
    weights: Sequence[float] | None = None,
    agree: Agree = operator.eq,
) -> bool:
    """Whether the voted value is right: equal values are graded alike, so any sample that holds it tells. No vote is wrong."""
    vote = majority(values, agree) if weights is None else weighted_majority(values, weights, agree)
    return vote is not None and bool(correct[list(values).index(vote)])


def _check_weights(values: Sequence, weights: Sequence[float]) -> None:
    if len(values) != len(weights):
        raise ValueError(f"{len(values)} values but {len(weights)} weights: they must be parallel")
    if wrong := [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]:
        raise ValueError(f"weight {wrong[0]}: weights must be finite and not negative")
