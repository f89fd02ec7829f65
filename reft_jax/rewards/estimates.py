"""Estimates from graded samples: confidence intervals, unbiased pass@k, and the ways to choose one answer of several.

Of equals, whatever is chosen, the one seen at the lowest index wins. `values` are the matcher's canonical answers, None where a sample has
none: None does not vote, and a question all of whose samples have none has no vote and is wrong.
"""

import math
from collections.abc import Hashable, Sequence


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


def majority(values: Sequence[Hashable | None]) -> Hashable | None:
    """The most frequent value, of equals the one seen at the lowest index. None does not vote; None if all are None."""
    return weighted_majority(values, [1] * len(values))


def weighted_majority(values: Sequence[Hashable | None], weights: Sequence[float]) -> Hashable | None:
    """The value with the largest sum of weights, of equals the one seen at the lowest index; None does not vote.

    Sums are exact (`math.fsum`), so that the order of samples decides ties and nothing else. Weights are finite and >= 0.
    """
    _check_weights(values, weights)
    parts: dict[Hashable, list[float]] = {}
    for value, weight in zip(values, weights, strict=True):
        if value is not None:
            parts.setdefault(value, []).append(weight)
    # A dict keeps the order of first appearance and max() returns the first maximum.
    return max(parts, key=lambda value: math.fsum(parts[value])) if parts else None


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
    values: Sequence[Hashable | None], correct: Sequence[bool], weights: Sequence[float] | None = None
) -> bool:
    """Whether the voted value is right: equal values are graded alike, so any sample that holds it tells. No vote is wrong."""
    vote = majority(values) if weights is None else weighted_majority(values, weights)
    return vote is not None and bool(correct[list(values).index(vote)])


def _check_weights(values: Sequence, weights: Sequence[float]) -> None:
    if len(values) != len(weights):
        raise ValueError(f"{len(values)} values but {len(weights)} weights: they must be parallel")
    if wrong := [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]:
        raise ValueError(f"weight {wrong[0]}: weights must be finite and not negative")
