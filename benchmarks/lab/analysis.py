"""Rows to numbers: means with intervals over seeds and scenes, paired differences with their tests, Holm's correction.

All runs answer the same questions, so seeds and scenes are crossed. The bootstrap draws seeds, then scenes, the same
drawn scenes for every drawn seed (Owen, "The pigeonhole bootstrap", 2007); questions about one scene are drawn
together. With one seed only scenes are drawn.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.lab.measuring import BITS, unpack_bits, unpack_levels
from grit_lite.errors import DataError
from grit_lite.evaluate.statistics import CONFIDENCE

RESAMPLES = 10_000
SEED = 0
FAITHFUL = "faithfulness"
PLAIN = ("relation", "count", "attribute", "existence")
Row = Mapping[str, Any]


class Interval(NamedTuple):
    """A mean over `n` questions and some seeds, with its interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Values:
    """One measure of one arm on the same questions.

    Attributes:
        table: (seeds, questions).
        seeds: of the rows of the table.
        counts: (questions,) 1 where the question has the measure, 0 where it has none, such as boxes.
        scenes: (questions,) the number of the scene that each is about.
    """

    table: np.ndarray
    seeds: tuple[int, ...]
    counts: np.ndarray
    scenes: np.ndarray

    def minus(self, other: "Values") -> "Values":
        """Question by question, over the seeds that both have.

        Raises:
            DataError: they have none in common.
        """
        shared = tuple(seed for seed in self.seeds if seed in other.seeds)
        if not shared:
            raise DataError("Two arms have no seed in common, so they cannot be paired.")
        mine, theirs = (one.table[[one.seeds.index(seed) for seed in shared]] for one in (self, other))
        return Values(mine - theirs, shared, self.counts, self.scenes)

    def above_untrained(self, untrained: "Values") -> "Values":
        """Question by question, above a model that has no seed: it was not trained, and answers greedily."""
        return Values(self.table - untrained.table, self.seeds, self.counts, self.scenes)

    def first(self, n: int) -> "Values":
        """On the first n questions alone."""
        return Values(self.table[:, :n], self.seeds, self.counts[:n], self.scenes[:n])

    def of_seed(self, seed: int) -> "Values":
        return Values(self.table[[self.seeds.index(seed)]], (seed,), self.counts, self.scenes)

    @property
    def mean(self) -> float:
        return float((self.table * self.counts).sum() / (self.counts.sum() * len(self.table)))

    @property
    def by_seed(self) -> np.ndarray:
        """(seeds,) means."""
        return (self.table * self.counts).sum(1) / self.counts.sum()

    @cached_property
    def draws(self) -> np.ndarray:
        """(RESAMPLES,) means over drawn seeds and drawn scenes."""
        numbers = np.unique(self.scenes, return_inverse=True)[1]
        scenes = numbers.max() + 1
        sums = np.stack([np.bincount(numbers, row * self.counts, scenes) for row in self.table])  # (seeds, scenes)
        sizes = np.bincount(numbers, self.counts, scenes)
        seeds, drawn = _times_drawn("seeds", len(self.table)), _times_drawn("scenes", scenes)
        of_seed = drawn @ sums.T.astype(np.float32)  # (RESAMPLES, seeds)
        return (seeds * of_seed).sum(1) / (len(self.table) * np.maximum(drawn @ sizes.astype(np.float32), 1e-12))

    def interval(self) -> Interval:
        low, high = np.percentile(self.draws, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        return Interval(self.mean, float(low), float(high), int(self.counts.sum()))

    def p(self) -> float:
        """Two-sided, of a mean of 0: twice the share of draws on the lesser side of it, never 0."""
        lesser = min((self.draws <= 0).sum(), (self.draws >= 0).sum())
        return float(min(1.0, 2 * (lesser + 1) / (RESAMPLES + 1)))


@functools.lru_cache(maxsize=16)
def _times_drawn(what: Literal["seeds", "scenes"], n: int) -> np.ndarray:
    """(RESAMPLES, n) float32: how often each of n is drawn, the same in every comparison; one alone is always drawn."""
    rng = np.random.default_rng([SEED, ("seeds", "scenes").index(what)])
    return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float32)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979), in the order of the given ones."""
    order = np.argsort(p)
    steps = np.minimum(1.0, np.asarray(p)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


class Results:
    """The finished rows of one file.

    Attributes:
        failed: rows of runs that have only failed so far.
    """

    def __init__(self, header: Row, rows: Sequence[Row]) -> None:
        self.header = header
        self.failed = [row for row in rows if "error" in row]
        self.rows: dict[str, list[Row]] = {}
        for row in sorted((row for row in rows if "error" not in row), key=lambda row: row["seed"]):
            self.rows.setdefault(row["arm"], []).append(row)

    def values(self, arm: str, measure: str, sets: Sequence[str]) -> Values:
        """A measure of an arm over all questions of the sets.

        Args:
            measure: correct, valid_format, finished, iou, f1 or tokens.
        """
        rows = self.rows[arm]
        table = np.stack([np.concatenate([_unpacked(row, measure, name) for name in sets]) for row in rows])
        counts = np.concatenate([_counted(rows[0], measure, name) for name in sets])
        scenes = np.concatenate([np.asarray(self.header["scenes"][name]) for name in sets])
        return Values(table, tuple(row["seed"] for row in rows), counts, scenes)

    def faithful(self, arm: str, condition: str) -> Values:
        """Which of the first relation questions are right under a condition of `faithfulness`."""
        rows = self.rows[arm]
        kept = [row["outcomes"][FAITHFUL] for row in rows]
        table = np.stack([unpack_bits(one[condition], one["n"]) for one in kept]).astype(float)
        scenes = np.asarray(self.header["scenes"]["relation"][: table.shape[1]])
        return Values(table, tuple(row["seed"] for row in rows), np.ones(table.shape[1]), scenes)

    def sets(self) -> list[str]:
        return list(self.header["scenes"])

    def best_untrained(self, kind: str) -> str:
        """The arm that asks the untrained model in the way that answers most questions of a kind right.

        Raises:
            DataError: no such arm has been measured.
        """
        arms = [arm for arm in self.rows if arm.startswith("untrained/")]
        if not arms:
            raise DataError("There are no rows of the untrained model: python -m benchmarks.lab --only untrained")
        return max(arms, key=lambda arm: self.values(arm, "correct", [kind]).mean)


def _unpacked(row: Row, measure: str, name: str) -> np.ndarray:
    kept = row["outcomes"][name]
    return (
        unpack_bits(kept[measure], kept["n"]).astype(float)
        if measure in BITS
        else unpack_levels(measure, kept[measure])
    )


def _counted(row: Row, measure: str, name: str) -> np.ndarray:
    """Boxes are measured where the truth has some; that does not depend on the run."""
    kept = row["outcomes"][name]
    has_all = measure in BITS or measure == "tokens"
    return np.ones(kept["n"]) if has_all else unpack_bits(kept["boxed"], kept["n"]).astype(float)


@dataclass(frozen=True)
class Comparison:
    """An arm against another on the same questions and seeds.

    Attributes:
        seeds: how many both have.
        p: Holm's, over all arms that the same measure was compared for.
    """

    arm: str
    difference: Interval
    seeds: int
    p: float


def compare(
    results: Results, measure: str, sets: Sequence[str], held_against: Mapping[str, str]
) -> dict[str, Comparison]:
    """Every arm of `held_against` that has rows against the one that it names, where they have a seed in common."""
    pairs = {arm: other for arm, other in held_against.items() if {arm, other} <= results.rows.keys()}
    found = {arm: results.values(arm, measure, sets) for arm in {*pairs, *pairs.values()}}
    gaps = {
        arm: found[arm].minus(found[other])
        for arm, other in pairs.items()
        if {*found[arm].seeds} & {*found[other].seeds}
    }
    adjusted = holm([gap.p() for gap in gaps.values()]) if gaps else []
    return {
        arm: Comparison(arm, gap.interval(), len(gap.seeds), p)
        for (arm, gap), p in zip(gaps.items(), adjusted, strict=True)
    }
