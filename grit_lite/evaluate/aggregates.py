"""Numbers over many rows beside their accuracy: POPE's F1, MME's score, pair accuracy, CV-Bench, MMHal's rate.

Each is made of shares: of the rows that count for it, how many hold. Its interval is that of its shares, which know of
shared images and of repeated draws. A difference of two systems is drawn: rows are read once, and what the clusters
bring is added up 10,000 times, which takes about a second for 3,000 rows.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grit_lite.errors import RecipeError
from grit_lite.evaluate import statistics
from grit_lite.evaluate.statistics import Cell, Difference
from grit_lite.judge import MMHAL
from grit_lite.recipe import nearest
from grit_lite.scorers import read_yes_no

Row = Mapping[str, Any]
Array = np.ndarray


def _same(share: Array) -> Array:
    return share


@dataclass(frozen=True)
class Aggregate:
    """A number over rows of `eval/<benchmark>.jsonl` of one system: a weighted sum of shares.

    Args:
        shares: rows -> (n, S, 2): of each share, what a row adds to it (1 where it holds), and whether it counts. Rows
            that belong together (a pair) bring it with the first of them, so they have to be of one cluster.
        weights: (S,) positive ones.
        together: so many shares, one behind the other, are of the same rows; others are of rows of their own.
        form: a rising function of the sum that is the number itself.
        interval: of one share.
    """

    name: str
    shares: Callable[[Sequence[Row]], Array]
    weights: tuple[float, ...] = (1.0,)
    together: int = 1
    form: Callable[[Any], Any] = _same
    interval: Callable[..., Cell] = statistics.share

    def __call__(self, rows: Sequence[Row]) -> float | None:
        """The number itself; None where these rows do not have one."""
        value = float(self._value(self.shares(rows).sum(axis=0))) if rows else float("nan")
        return None if np.isnan(value) else value

    def _value(self, sums: Array) -> Array:
        """(…, S, 2) sums -> (…) values, nan where a share has no row."""
        return self.form(_ratio(sums[..., 0], sums[..., 1]) @ np.array(self.weights))

    def cell(self, rows: Sequence[Row], clusters: Sequence[Hashable]) -> Cell:
        """The number with its interval, and the count of what it is a share of."""
        brought, draws = self.shares(rows), [row.get("draw", 0) for row in rows]
        cells = [self._cell(brought[:, place], clusters, draws) for place in range(len(self.weights))]
        whole = cells[0] if len(cells) == 1 else statistics.weighted_sum(cells, self.weights, self.together)
        value, low, high = (None if number is None else float(self.form(number)) for number in whole[:3])
        return Cell(value, low, high, whole.n)

    def _cell(self, brought: Array, clusters: Sequence[Hashable], draws: Sequence[Hashable]) -> Cell:
        counts = np.flatnonzero(brought[:, 1]).tolist()
        return self.interval(
            brought[counts, 0].tolist(), [clusters[place] for place in counts], [draws[place] for place in counts]
        )

    def difference(self, a: Sequence[Row], b: Sequence[Row], clusters: Sequence[Hashable]) -> Difference:
        """How much the number of `a` is above that of `b`, both on the same rows, in the same order.

        The interval is a percentile bootstrap over clusters, within each part of a sum, under the rule of
        `statistics.can_be_drawn`. Draws without a value are left out; where they are more than one in twenty, there is
        no interval.
        """
        both = np.stack([self.shares(a), self.shares(b)], axis=1)  # (n, 2, S, 2)
        n = int(both[:, :, :: self.together, 1].any(axis=(1, 2)).sum())
        value = float(np.subtract(*self._value(both.sum(axis=0))))
        if np.isnan(value):
            return Difference(None, None, None, n)
        drawn = np.subtract(*np.moveaxis(self._value(self._drawn(both, clusters)), -1, 0))
        known = drawn[~np.isnan(drawn)]
        apart = statistics.sums_by_cluster((both[:, 0] != both[:, 1]).any(axis=(1, 2)), clusters)
        if len(known) < 0.95 * len(drawn) or not statistics.can_be_drawn(apart):
            return Difference(value, None, None, n)
        return Difference(value, *statistics.central(known), n)

    def _drawn(self, both: Array, clusters: Sequence[Hashable]) -> Array:
        """(resamples, 2, S, 2) sums, each part drawn from its own clusters."""
        total = np.zeros((statistics.RESAMPLES, *both.shape[1:]))
        for part, rows in enumerate(self._parts(both)):
            sums = statistics.sums_by_cluster(both[rows].reshape(len(rows), -1), [clusters[row] for row in rows])
            rng = np.random.default_rng([statistics.SEED, part])
            total += statistics.resampled(sums, rng).reshape(total.shape)
        return total

    def _parts(self, both: Array) -> list[Array]:
        """The places of the rows of each part."""
        if len(self.weights) == self.together:
            return [np.arange(len(both))]
        counts = both[..., 1].sum(axis=1).reshape(len(both), -1, self.together).sum(axis=2)  # (n, parts)
        return [np.flatnonzero(of) for of in counts.T]


def _ratio(part: Array, whole: Array) -> Array:
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


# yes or no: POPE (arXiv 2305.10355, section 3), where yes is the positive answer


def _pope(name: str, of: Callable[[Array, Array], tuple[Any, Any]], **form: Any) -> Aggregate:
    """`of` is given whether yes was said (1; 0 for no; nan for neither), and whether it is right to say yes; it gives
    whether a row holds and whether it counts.

    An answer that is neither is wrong and did not say yes.
    """

    def shares(rows: Sequence[Row]) -> Array:
        said = np.array([_as_number(read_yes_no(row["answer"])) for row in rows])
        gold = np.array([bool(read_yes_no(row["gold"])) for row in rows], dtype=bool)
        holds, counts = (np.broadcast_to(flags, len(rows)) for flags in of(said, gold))
        return np.stack([holds & counts, counts], axis=-1).astype(float)[:, None]

    return Aggregate(name, shares, **form)


def _as_number(said: bool | None) -> float:
    return np.nan if said is None else float(said)


def _f1(jaccard: Any) -> Any:
    """2 TP / (2 TP + FP + FN) of TP / (TP + FP + FN), which is a share of rows."""
    return 2 * jaccard / (1 + jaccard)


# pairs: MMVP (arXiv 2401.06209), and MME's accuracy+ (arXiv 2306.13394, section 2.2)


def _right(row: Row) -> float | None:
    """None where the judge abstained."""
    return row["score"] if "score" in row else float(row["correct"])


def _pairs(rows: Sequence[Row]) -> Array:
    """(n, 1, 2): with the first row of each pair, whether all of it is right, and 1. A row alone is no pair."""
    members: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        pair = row.get("facts", {}).get("pair") or row["cluster"] or place
        members.setdefault((row.get("draw", 0), row["dataset"], pair), []).append(place)
    counts = np.zeros((len(rows), 1, 2))
    for places in members.values():
        scores = [_right(rows[place]) for place in places]
        if len(places) > 1 and None not in scores:
            counts[places[0]] = all(score == 1.0 for score in scores), 1
    return counts


def _scores(rows: Sequence[Row]) -> Array:
    """(n, 1, 2): the score, and 1; zeros where the judge abstained."""
    scores = [_right(row) for row in rows]
    return np.array([(score or 0.0, score is not None) for score in scores], dtype=float).reshape(-1, 1, 2)


def _by_part(rows: Sequence[Row], parts: Sequence[str], shares: Array) -> Array:
    """(n, parts · S, 2): the shares of a row in the columns of its part, zeros in the others."""
    inside = np.array([[row["dataset"] == part for part in parts] for row in rows], dtype=float)
    return (inside[:, :, None, None] * shares[:, None]).reshape(len(rows), -1, 2)


# MME's two scores are published apart, of at most 2,000 and 800: 100 · accuracy + 100 · accuracy+ of each category.
# The names of the categories are the dataset's; which score they belong to, lmms-eval's mme task says as well.
_MME = {
    "mme_perception": (
        *("existence", "count", "position", "color", "posters"),
        *("celebrity", "scene", "landmark", "artwork", "OCR"),
    ),
    "mme_cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}


def _mme(name: str, categories: Sequence[str]) -> Aggregate:
    def shares(rows: Sequence[Row]) -> Array:
        return _by_part(rows, categories, np.concatenate([_scores(rows), _pairs(rows)], axis=1))

    return Aggregate(name, shares, (100.0,) * (2 * len(categories)), together=2)


# CV-Bench (arXiv 2406.16860): 2D from two sources, 3D from one

_CV_SOURCES = {"ADE20K": 0.25, "COCO": 0.25, "Omni3D": 0.5}


def _cv_bench(rows: Sequence[Row]) -> Array:
    return _by_part(rows, tuple(_CV_SOURCES), _scores(rows))


# ratings: MMHal-Bench (arXiv 2309.14525, section 3.3): from 0 to 6, and below 3 the answer makes something up


def _made_up(rows: Sequence[Row]) -> Array:
    """(n, 1, 2): whether the answer makes something up, and 1; zeros where the judge abstained."""
    ratings = [_right(row) for row in rows]
    made_up = [(one is not None and one < MMHAL.right_from, one is not None) for one in ratings]
    return np.array(made_up, dtype=float).reshape(-1, 1, 2)


# their names


_ALL = (
    _pope("pope_accuracy", lambda said, yes: (said == yes, True)),
    _pope("pope_precision", lambda said, yes: (yes, said == 1)),
    _pope("pope_recall", lambda said, yes: (said == 1, yes)),
    _pope("pope_f1", lambda said, yes: ((said == 1) & yes, (said == 1) | yes), form=_f1),
    _pope("pope_yes_ratio", lambda said, yes: (said == 1, True)),  # of predictions, not of the gold answers
    Aggregate("mme_accuracy", _scores),
    Aggregate("mme_accuracy_plus", _pairs),
    *(_mme(name, categories) for name, categories in _MME.items()),
    Aggregate("pair_accuracy", _pairs),
    Aggregate("mmhal_rating", _scores, interval=statistics.mean_interval),
    Aggregate("mmhal_hallucination_rate", _made_up),
    Aggregate("cv_bench", _cv_bench, tuple(_CV_SOURCES.values())),
)
AGGREGATES: dict[str, Aggregate] = {aggregate.name: aggregate for aggregate in _ALL}
# What a benchmark names to be reported with all of them.
GROUPS: dict[str, tuple[str, ...]] = {
    "pope": tuple(name for name in AGGREGATES if name.startswith("pope_")),
    "mme": tuple(name for name in AGGREGATES if name.startswith("mme_")),
    "mmhal": tuple(name for name in AGGREGATES if name.startswith("mmhal_")),
    "pairs": ("pair_accuracy",),
}


def find(names: Sequence[str]) -> list[Aggregate]:
    """The aggregates of these names, and those of these groups.

    Raises:
        RecipeError: there is no such aggregate.
    """
    return [AGGREGATES[single] for name in names for single in _expanded(name)]


def _expanded(name: str) -> Iterator[str]:
    known = {**GROUPS, **AGGREGATES}
    if name not in known:
        raise RecipeError(f"There is no aggregate '{name}'.{nearest(name, known)} There are {', '.join(known)}.")
    yield from GROUPS.get(name, (name,))
