"""Rows to numbers: means with intervals over seeds and scenes, paired differences with their tests.

All runs answer the same questions, so seeds and scenes are crossed, and a mean varies with both. Five seeds are too few
to be drawn from, so nothing is resampled: the mean has an interval over seeds and one over scenes, each by Student's t,
and the squares of their widths are added, as `weighted_sum` of `grit_lite.evaluate.statistics` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import root_scalar
from scipy.special import logit

from benchmarks.lab.measuring import ASKED_OF, BITS, FAITHFUL, unpack_bits, unpack_levels
from benchmarks.lab.results import Row
from benchmarks.lab.study import ASKED
from grit_lite.errors import DataError
from grit_lite.evaluate.statistics import CONFIDENCE, holm, standard_error, wilson_limits

KINDS = tuple(ASKED_OF)
LEAST_P = 1e-12  # below which nothing is told apart


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
        is_share: whether each value is a yes or a no.
    """

    table: np.ndarray
    seeds: tuple[int, ...]
    counts: np.ndarray
    scenes: np.ndarray
    is_share: bool

    def minus(self, other: "Values") -> "Values":
        """Question by question, over the seeds that both have.

        Raises:
            DataError: they have none in common.
        """
        shared = tuple(seed for seed in self.seeds if seed in other.seeds)
        if not shared:
            raise DataError("Two arms have no seed in common, so they cannot be paired.")
        mine, theirs = (one.table[[one.seeds.index(seed) for seed in shared]] for one in (self, other))
        return replace(self, table=mine - theirs, seeds=shared, is_share=False)

    def above_untrained(self, untrained: "Values") -> "Values":
        """Question by question, above a model that has no seed: it was not trained, and answers greedily."""
        return replace(self, table=self.table - untrained.table, is_share=False)

    def first(self, n: int) -> "Values":
        """On the first n questions alone."""
        return replace(self, table=self.table[:, :n], counts=self.counts[:n], scenes=self.scenes[:n])

    def of_seed(self, seed: int) -> "Values":
        return replace(self, table=self.table[[self.seeds.index(seed)]], seeds=(seed,))

    @property
    def mean(self) -> float:
        return float(self.by_seed.mean())

    @property
    def by_seed(self) -> np.ndarray:
        """(seeds,) means."""
        return (self.table * self.counts).sum(1) / self.counts.sum()

    def interval(self) -> Interval:
        """A share has Wilson's, of as many questions as leave as much doubt; anything else has Student's."""
        half, n = self._half(1 - CONFIDENCE), int(self.counts.sum())
        if not self.is_share:
            return Interval(self.mean, self.mean - half, self.mean + half, n)
        return Interval(self.mean, *wilson_limits(self.mean, self._worth(half, n)), n)

    def _worth(self, half: float, n: int) -> float:
        """The number of independent questions that leave as much doubt as half an interval, never more than n.

        As `share` of `grit_lite.evaluate.statistics`: where all answers are alike, one scene is worth one question.
        """
        variance = self.mean * (1 - self.mean)
        if variance == 0:
            return len(np.unique(self.scenes[self.counts > 0]))
        doubt = half / stats.norm.ppf((1 + CONFIDENCE) / 2)
        return float(variance / max(doubt**2, variance / n))

    def p(self) -> float:
        """Two-sided, of a mean of 0: one less the confidence of the interval that just reaches it."""
        gap = abs(self.mean)
        if gap == 0 or self._half(LEAST_P) <= gap:
            return 1.0 if gap == 0 else LEAST_P
        return root_scalar(lambda p: self._half(p) - gap, bracket=(LEAST_P, 1.0)).root

    def _half(self, p: float) -> float:
        """Half the width of the interval that other seeds and other scenes leave with a probability of p.

        What an answer varies beyond both is counted in each of the two parts. It is so rather too wide than too narrow,
        and it does not guess how many degrees of freedom their sum has, which three seeds hardly tell.
        """
        return sqrt(sum((error * float(stats.t.isf(p / 2, degrees))) ** 2 for error, degrees in self._parts))

    @cached_property
    def _parts(self) -> list[tuple[float, int]]:
        """(standard error of the mean, its degrees of freedom) over scenes, and over seeds where there are several."""
        has_it = self.counts > 0
        scenes = self.scenes[has_it].tolist()
        parts = [(standard_error(self.table.mean(0)[has_it], scenes), len({*scenes}) - 1)]
        if len(self.seeds) > 1:
            parts.append((float(self.by_seed.std(ddof=1)) / sqrt(len(self.seeds)), len(self.seeds) - 1))
        return parts


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

    def method(self, arm: str) -> str:
        return self.rows[arm][0]["method"]

    def untrained(self) -> list[str]:
        """The arms that ask the model as it is."""
        return [arm for arm in self.rows if self.method(arm) in ASKED]

    def values(self, arm: str, measure: str, sets: Sequence[str]) -> Values:
        """A measure of an arm over all questions of the sets.

        Args:
            measure: correct, correct_lenient, valid_format, iou, f1 or tokens.
        """
        rows = self.rows[arm]
        table = np.stack([np.concatenate([_unpacked(row, measure, name) for name in sets]) for row in rows])
        counts = np.concatenate([_counted(rows[0], measure, name) for name in sets])
        scenes = np.concatenate([np.asarray(self.header["scenes"][name]) for name in sets])
        return Values(table, tuple(row["seed"] for row in rows), counts, scenes, measure in BITS)

    def faithful(self, arm: str, condition: str, measure: str = "correct") -> Values:
        """Which of the first relation questions are right, or answered, under a condition of `faithfulness`."""
        rows = self.rows[arm]
        kept = [row["outcomes"][FAITHFUL] for row in rows]
        bits = [one["answered"][condition] if measure == "answered" else one[condition] for one in kept]
        table = np.stack([unpack_bits(one, kept[0]["n"]) for one in bits]).astype(float)
        scenes = np.asarray(self.header["scenes"]["relation"][: table.shape[1]])
        return Values(table, tuple(row["seed"] for row in rows), np.ones(table.shape[1]), scenes, is_share=True)

    def writes_boxes(self, arm: str) -> bool:
        """Whether most of its answers to relation questions have boxes that can be changed."""
        return all(FAITHFUL in row["outcomes"] for row in self.rows[arm]) and self.faithful(arm, "applies").mean > 0.5

    def best_untrained(self, kind: str) -> str:
        """The arm that asks the untrained model in the way that answers most questions of a kind right, tags or none.

        Raises:
            DataError: no such arm has been measured.
        """
        if not self.untrained():
            raise DataError("There are no rows of the untrained model: python -m benchmarks.lab --only untrained")
        return max(self.untrained(), key=lambda arm: self.values(arm, "correct_lenient", [kind]).mean)


def _unpacked(row: Row, measure: str, name: str) -> np.ndarray:
    kept = row["outcomes"][name]
    if measure in BITS:
        return unpack_bits(kept[measure], kept["n"]).astype(float)
    return unpack_levels(measure, kept[measure])


def _counted(row: Row, measure: str, name: str) -> np.ndarray:
    """Boxes are measured where the truth has some; that does not depend on the run."""
    kept = row["outcomes"][name]
    has_all = measure in BITS or measure == "tokens"
    return np.ones(kept["n"]) if has_all else unpack_bits(kept["boxed"], kept["n"]).astype(float)


def where_samples_stop(p0: float, beta: float) -> tuple[float, float]:
    """Where, by the rough model that `readings/beta.md.j2` explains, no more samples come to have the form.

    Args:
        p0: how often the untrained model writes it, between 0 and 1.
        beta: the KL weight.

    Returns:
        The first share above p0 at which the KL term holds as strongly as the reward pulls, 1 if there is none; and the
        KL weight below which there is none.
    """
    p = np.linspace(p0, 1, 100_001)[1:-1]
    holds_at = 1 / (np.sqrt(p * (1 - p)) * (logit(p) - logit(p0)))  # the KL weight with which both are equal
    return float(np.append(p[holds_at <= beta], 1.0)[0]), float(holds_at.min())


class Comparison(NamedTuple):
    """An arm against another on the same questions and seeds.

    Attributes:
        seeds: how many both have.
        p: Holm's, over all arms that the same measure was compared for.
    """

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
    adjusted = holm([gap.p() for gap in gaps.values()])
    return {
        arm: Comparison(gap.interval(), len(gap.seeds), p) for (arm, gap), p in zip(gaps.items(), adjusted, strict=True)
    }
