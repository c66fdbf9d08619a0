"""How sure a number is: an interval for a share, for a mean, and for the difference of two systems on the same rows.

Rows that share an image are not independent: they are of one cluster, and every interval here knows it. Shares of right
answers get Wilson's interval, of as many rows as the clusters are worth. Means of anything else, and every paired
difference, get a percentile bootstrap over clusters with a fixed seed, so that a result file is the same on every
machine. Where completions were sampled more than once, the draws are resampled as well. Nothing here knows of models
or images.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 10_000
CHUNK = 1_000  # resamples at the same time, fewer of many clusters:
NUMBERS = 4_000_000  # at the same time, 32 MB
MANY = 2_000  # clusters above which percentiles are computed: to draw so many so often takes seconds for each number
SEED = 0
CONFIDENCE = 0.95
FEWEST = 10  # clusters that a difference needs for an interval
POWER = 0.8


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


class Outcomes(NamedTuple):
    """On how many rows the first system is above the second, below it, and like it."""

    wins: int
    losses: int
    ties: int


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Cell:
    """The share `successes / n` with Wilson's score interval, which keeps inside [0, 1] and holds for small `n`."""
    if n == 0:
        return Cell(None, None, None, 0)
    return Cell(successes / n, *wilson_limits(successes / n, n, confidence), n)


def wilson_limits(share: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson (1927), for a count of rows that need not be whole."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(
    values: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    draws: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
) -> Cell:
    """The share of rows that hold, with an interval for rows that are not all independent.

    Wilson's interval with the number of independent rows that would leave as much doubt, never more than there are:
    Dean and Pagano (2015), corrected for few clusters by the quantile of Student's t, as Korn and Graubard (1998) do.
    Several draws of the same rows get the interval of `mean_interval`. Where all rows are alike nothing is seen of how
    clusters vary, and each is then worth one row, however often it was drawn.

    Args:
        clusters: what a row shares with others (its image, say). None: every row is its own cluster.
        draws: which draw of a sampled completion a row is. None: there is one.
    """
    held = [float(value) for value in values]
    if draws is not None and len(set(draws)) > 1 and 0 < sum(held) < len(held):
        return mean_interval(held, clusters, draws, confidence)
    count = len(held) if clusters is None else len(set(clusters))
    if clusters is None or count in (0, len(held)):
        return wilson(round(sum(held)), len(held), confidence)
    value = sum(held) / len(held)
    if count == 1:
        return Cell(value, None, None, len(held))
    return Cell(value, *wilson_limits(value, _worth(held, clusters, count, confidence), confidence), len(held))


def _worth(held: Sequence[float], clusters: Sequence[Hashable], count: int, confidence: float) -> float:
    """The number of independent rows that leave as much doubt about a share as these do."""
    value = sum(held) / len(held)
    if value in (0.0, 1.0):
        return count
    # Answers that are right on one of two rows of each image leave no doubt at all; they are not worth more for it.
    doubt = max(standard_error(held, clusters) ** 2, value * (1 - value) / len(held))
    few = float(stats.norm.ppf((1 + confidence) / 2) / stats.t.ppf((1 + confidence) / 2, count - 1))
    return value * (1 - value) / doubt * few**2


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    draws: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Cell:
    """The mean with a percentile bootstrap interval over clusters and draws; one cluster alone has no interval.

    Overlaps are bounded and pile up at 0 and 1, where a t interval would leave the range. The percentile interval
    cannot, and unlike BCa it is defined when all values are equal; it is a point then, which says little for small `n`.

    Args:
        clusters, draws: as of `share`.
    """
    if not len(values):
        return Cell(None, None, None, 0)
    low, high = _bootstrap(*_by_draw_and_cluster(values, clusters, draws), confidence, seed)
    return Cell(float(np.mean(values)), low, high, len(values))


def weighted_sum(cells: Sequence[Cell], weights: Sequence[float], together: int = 1) -> Cell:
    """The sum of several numbers, each times a positive weight, with an interval from theirs; `n` counts rows once.

    MOVER, Zou and Donner (2008): the distance to each limit is the root of the sum of the squares of the numbers' own
    distances, weighted. Unlike a bootstrap it keeps a width where every row of a part is alike. So many cells
    `together` are of the same rows; how they depend on each other is not known, so their distances are simply added.
    """
    n = sum(cell.n for cell in cells[::together])
    if any(cell.value is None for cell in cells):
        return Cell(None, None, None, n)
    value = sum(weight * (cell.value or 0.0) for cell, weight in zip(cells, weights, strict=True))
    if any(cell.low is None for cell in cells):
        return Cell(value, None, None, n)
    table = np.array([cell[:3] for cell in cells], dtype=float) * np.array(weights)[:, None]  # (S, 3)
    apart = np.abs(table[:, 1:] - table[:, :1]).reshape(-1, together, 2).sum(axis=1)
    below, above = np.sqrt((apart**2).sum(axis=0)).tolist()
    return Cell(value, value - below, value + above, n)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
    draws: Sequence[Hashable] | None = None,
) -> Difference:
    """The mean of `a - b` over rows that both systems answered, with a bootstrap interval over clusters of rows.

    There is none where `can_be_drawn` says so.

    Args:
        a, b: one value a row, in the same order.
        clusters, draws: as of `share`; rows of a cluster are drawn together.
    """
    gaps = _gaps(a, b)
    if not can_be_drawn(_by_cluster(gaps, clusters)[0]):
        return Difference(float(np.mean(gaps)) if len(gaps) else None, None, None, len(gaps))
    return Difference(*mean_interval(gaps, clusters, draws, confidence, seed))


def can_be_drawn(gaps: np.ndarray) -> bool:
    """Whether clusters with these differences say how much others would differ: the rule of every paired interval.

    Where none differs, every sample is alike and the interval a point, however few there are: three ties would be as
    sure as three thousand. Below ten clusters percentiles are too narrow: the quantile of t and sqrt((K - 1) / K) make
    the right interval 1.2 times as wide for K = 10, 1.6 times for K = 5; and with two of two won, no sample loses.
    """
    return len(gaps) >= FEWEST and bool(np.any(gaps))


def outcomes(a: Sequence[float], b: Sequence[float]) -> Outcomes:
    """On how many rows `a` is above, below and like `b`."""
    gaps = _gaps(a, b)
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Outcomes(wins, losses, len(gaps) - wins - losses)


def mcnemar(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """The exact two-sided p of McNemar's test: does `a` alone have rows right as often as `b` alone?

    Of rows that share an image the test would take each for a witness of its own. With clusters it counts these instead
    of rows: those on which `a` has more rows right, and those on which `b` has. Clusters of one row are McNemar's rows.
    """
    gaps, _ = _by_cluster(_gaps(a, b), clusters)
    only_a, only_b = int((gaps > 0).sum()), int((gaps < 0).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number, in the same order; S. Holm (1979).

    A table holds many comparisons, of which some look significant by chance. The chance that any of those with a
    corrected p below 0.05 does is at most 5 %.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def standard_error(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None) -> float:
    """The cluster-robust standard error of a mean, sqrt(K / (K - 1) * sum over clusters of (sum of x - mean)²) / n.

    Of K clusters: Cameron and Miller (2015), section II, for the mean; as in Miller (2024), arXiv 2411.00640.
    """
    sums, counts = _by_cluster(np.asarray(values, dtype=float), clusters)
    if len(sums) < 2:
        return float("nan")
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(sqrt(len(sums) / (len(sums) - 1) * (residuals**2).sum()) / counts.sum())


def detectable(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float | None:
    """The smallest true difference that as many rows would show with this power, (z(1 - α/2) + z(power)) · error.

    The minimum detectable effect of Bloom (1995): 2.80 standard errors at 5 % and 80 %, here the paired, cluster-robust
    one of these very rows. None where no row differs, which says nothing of how much rows would.
    """
    error = standard_error(_gaps(a, b), clusters) if len(a) else 0.0
    steps = stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power)
    return float(steps * error) if error > 0 else None  # not for nan, either


def aggregate(
    function: Callable[[Sequence[int]], float],
    clusters: Sequence[Hashable],
    resamples: int = CHUNK,
    seed: int = SEED,
) -> np.ndarray:
    """(resamples,) values of a function of rows that is no mean, each on clusters drawn with replacement.

    Args:
        function: of the numbers of the rows that were drawn, those of a cluster together; nan where it has no value.
    """
    members: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    groups, rng = list(members.values()), np.random.default_rng(seed)
    drawn = (rng.integers(len(groups), size=len(groups)) for _ in range(resamples))
    return np.array([function([row for place in places for row in groups[place]]) for places in drawn])


def _gaps(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    if len(a) != len(b):
        raise ValueError(f"paired values must come in pairs, got {len(a)} and {len(b)}")
    return np.asarray(a, dtype=float) - np.asarray(b, dtype=float)


def _numbers(keys: Sequence[Hashable]) -> list[int]:
    """Each key as its number, in the order in which keys first appear."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the count of values of each cluster, in the order in which clusters first appear."""
    if clusters is None:
        return values, np.ones_like(values)
    index = _numbers(clusters)
    return np.bincount(index, weights=values), np.bincount(index).astype(float)


def _by_draw_and_cluster(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None, draws: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """(draws, clusters): the sum and the count of values of each."""
    columns = _numbers(range(len(values)) if clusters is None else clusters)
    rows = _numbers(draws) if draws is not None else [0] * len(values)
    sums, counts = (np.zeros((max(rows) + 1, max(columns) + 1)) for _ in range(2))
    np.add.at(sums, (rows, columns), np.asarray(values, dtype=float))
    np.add.at(counts, (rows, columns), 1.0)
    return sums, counts


def _bootstrap(
    sums: np.ndarray, counts: np.ndarray, confidence: float, seed: int
) -> tuple[float, float] | tuple[None, None]:
    if len(sums) > 1:
        return _bootstrap_table(sums, counts, confidence, seed)
    return _bootstrap_ratio(sums[0], counts[0], confidence, seed)


def _bootstrap_ratio(
    sums: np.ndarray, counts: np.ndarray, confidence: float, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of sum over count when clusters are drawn with replacement; one cluster has none."""
    if len(sums) < 2:
        return None, None
    if len(sums) > MANY:
        return _expanded(sums, counts, confidence)
    drawn = resampled(np.column_stack([sums, counts]), np.random.default_rng(seed))
    return central(drawn[:, 0] / drawn[:, 1], confidence)


def _expanded(sums: np.ndarray, counts: np.ndarray, confidence: float) -> tuple[float, float]:
    """The same without drawing: Cornish and Fisher's (1938) expansion of the percentiles, with the skewness of what
    would be drawn. What it leaves out falls with the number of clusters."""
    mean = sums.sum() / counts.sum()
    residuals = sums - mean * counts
    squares = float((residuals**2).sum())
    if squares == 0:
        return float(mean), float(mean)
    skewness = float((residuals**3).sum()) / squares**1.5
    z = stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = mean + sqrt(squares) / counts.sum() * (z + skewness * (z**2 - 1) / 6)
    each = sums / counts
    return max(float(low), float(each.min())), min(float(high), float(each.max()))


def resampled(sums: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(RESAMPLES, k): what as many rows as there are add up to, drawn with replacement.

    Args:
        sums: (K, k), a row for each cluster.
    """
    return np.concatenate([_times_drawn(size, len(sums), rng) @ sums for size in _chunks(len(sums))])


def _chunks(clusters: int) -> Iterator[int]:
    """How many resamples are made at a time, until there are all."""
    size = max(1, min(CHUNK, NUMBERS // max(1, clusters)))
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start)


def _times_drawn(size: int, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """(size, clusters): how often each was drawn in as many draws as there are."""
    drawn = rng.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters).astype(float)


def central(drawn: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The limits that hold the middle of what was drawn."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sums_by_cluster(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """(K, …): the sums of rows of each cluster, in the order in which clusters first appear."""
    index = _numbers(clusters)
    sums = np.zeros((max(index, default=-1) + 1, *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def _bootstrap_table(
    sums: np.ndarray, counts: np.ndarray, confidence: float, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The same where rows were drawn more than once: draws and clusters are both drawn with replacement.

    Owen (2007), "The pigeonhole bootstrap": no exact interval of such a table exists, and this one is no shorter than
    it should be.
    """
    draws, clusters = sums.shape
    if clusters < 2:
        return None, None
    rng, values = np.random.default_rng(seed), []
    for size in _chunks(clusters):
        rows = rng.multinomial(draws, np.full(draws, 1 / draws), size)  # how often each was drawn
        columns = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size)
        whole = ((rows @ counts) * columns).sum(1)
        if not whole.all():  # a sample without a row: there are too few to say
            return None, None
        values.append(((rows @ sums) * columns).sum(1) / whole)
    return central(np.concatenate(values), confidence)
