"""Estimates from counts of right answers: confidence interval, unbiased pass@k, majority vote. Pure Python."""

import collections
import math
from collections.abc import Hashable, Sequence


def wilson(num_correct: int, num: int, z: float = 1.959964) -> tuple[float, float]:
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
    counts = collections.Counter(value for value in values if value is not None)
    # Counter keeps the order of first appearance and max() returns the first maximum.
    return max(counts, key=counts.__getitem__) if counts else None
