"""How sure a number is: an interval for a share, for a mean, and for the difference of two systems on the same rows.

Shares of right answers get Wilson's interval. Means of anything else, and every paired difference, get a percentile
bootstrap with a fixed seed, so that a result file is the same on every machine. Nothing here knows of models or images.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95


class Cell(NamedTuple):
    """A number with its interval and the count of rows behind it; None where there are too few rows to say."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """How much the first system is above the second on the same `n` rows, with its interval."""

    difference: float | None
    low: float | None
    high: float | None
    n: int


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Cell:
    """The share `successes / n` with Wilson's score interval, which keeps inside [0, 1] and holds for small `n`."""
    if n == 0:
        return Cell(None, None, None, 0)
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Cell(successes / n, float(interval.low), float(interval.high), n)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = SEED) -> Cell:
    """The mean with a percentile bootstrap interval; one value alone has no interval.

    Overlaps are bounded and pile up at 0 and 1, where a t interval would leave the range. The percentile interval
    cannot, and unlike BCa it is defined when all values are equal; it is a point then, which says little for small `n`.
    """
    if not len(values):
        return Cell(None, None, None, 0)
    sums = np.asarray(values, dtype=float)
    low, high = _bootstrap_ratio(sums, np.ones_like(sums), confidence, seed)
    return Cell(float(sums.mean()), low, high, len(sums))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Difference:
    """The mean of `a - b` over rows that both systems answered, with a bootstrap interval over clusters of rows.

    Args:
        a, b: one value a row, in the same order.
        clusters: what a row shares with others (its image, say); rows of a cluster are drawn together. None: every row
            is its own cluster.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values must come in pairs, got {len(a)} and {len(b)}")
    if not len(a):
        return Difference(None, None, None, 0)
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    low, high = _bootstrap_ratio(*_by_cluster(gaps, clusters), confidence, seed)
    return Difference(float(gaps.mean()), low, high, len(gaps))


def ratio(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Cell:
    """The mean of `a` over the mean of `b` on the same rows, with a bootstrap interval over clusters of rows.

    Where the interval of the mean of `b` reaches zero there is nothing to divide by: value and interval are None.
    """
    below = paired_difference(b, [0.0] * len(b), clusters, confidence, seed)
    if below.low is None or below.low <= 0:
        return Cell(None, None, None, len(b))
    (sums, _), (parts, _) = (_by_cluster(np.asarray(values, dtype=float), clusters) for values in (a, b))
    low, high = _bootstrap_ratio(sums, parts, confidence, seed)
    return Cell(float(sum(a) / sum(b)), low, high, len(b))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """The exact two-sided p of McNemar's test: does `a` alone have rows right as often as `b` alone?"""
    only_a = sum(right and not other for right, other in zip(a, b, strict=True))
    only_b = sum(other and not right for right, other in zip(a, b, strict=True))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the count of values of each cluster, in the order in which clusters first appear."""
    if clusters is None:
        return values, np.ones_like(values)
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    return np.bincount(index, weights=values), np.bincount(index).astype(float)


def _bootstrap_ratio(
    sums: np.ndarray, counts: np.ndarray, confidence: float, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of sum over count when clusters are drawn with replacement; one cluster has none."""
    if len(sums) < 2:
        return None, None
    interval = stats.bootstrap(
        (sums, counts),
        # A draw with nothing to divide by, which only `ratio` can meet, counts as far out.
        lambda s, c, axis: s.sum(axis=axis) / np.maximum(c.sum(axis=axis), 1e-9),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1_000,  # 1,000 resamples of 500 rows are 4 MB
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
