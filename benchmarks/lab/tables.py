"""The page's tables, in Markdown: one line an arm, each number with its interval."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from statistics import fmean

from benchmarks.lab.analysis import KINDS, Comparison, Results, Values, compare, where_samples_stop
from benchmarks.lab.measuring import HARDER_SPLITS, SAMPLED
from benchmarks.lab.results import Row
from benchmarks.lab.study import DEFAULT, DIRECT, Arm, Group, Study
from benchmarks.lab.target import ALL_SEEDS, checks
from benchmarks.lab.wording import NOTHING, between, decimals, markdown, p_value, percent, points

COMPARED: dict[str, tuple[str, Sequence[str]]] = {
    "relation": ("correct", ["relation"]),
    "count": ("correct", ["count"]),
    "valid samples": ("valid_format", list(SAMPLED)),
    "right samples": ("correct", list(SAMPLED)),
}
Column = Callable[[str], str]


class Tables:
    """Everything that the page shows as a table, and the numbers of its sentences, from the rows of one file."""

    def __init__(self, results: Results, study: Study) -> None:
        self.results, self.study = results, study

    @cached_property
    def comparisons(self) -> dict[str, Mapping[str, Comparison]]:
        """By name of what is compared, then by arm; the form only of arms that are asked for it."""
        held = self.study.held_against()
        asked = {arm: other for arm, other in held.items() if not self._is_direct(arm)}
        return {
            name: compare(self.results, measure, sets, asked if measure == "valid_format" else held)
            for name, (measure, sets) in COMPARED.items()
        }

    def measured(self, group: Group) -> list[str]:
        """What the group is held against and its own arms, as far as they have rows."""
        arms = [group.against, *(arm.id for arm in group.arms)]
        return [arm for arm in dict.fromkeys(arms) if arm in self.results.rows]

    def has_all(self, group: Group) -> bool:
        """Whether every arm of the group has a row: what is read off its tables can be said then."""
        return {arm.id for arm in group.arms} <= self.results.rows.keys()

    def name(self, arm: str, group: Group) -> str:
        """The arm as the rows call it, and what it is among the others of the group."""
        said = f" {group.against_is}" if arm == group.against and group.against_is else ""
        return f"`{arm}`{said}"

    def answers(self, group: Group) -> str:
        """Form and answers by kind, and how far they are from those of the arm in the first line."""
        titles = ["arm", "seeds", "valid format", *KINDS, "relation − first", "p", "count − first", "p"]
        columns: list[Column] = [
            lambda arm: str(len(self.results.rows[arm])),
            self._form(KINDS),
            *(self._accuracy(kind) for kind in KINDS),
            *self._against("relation", group),
            *self._against("count", group),
        ]
        return self._table(titles, columns, group)

    def leniently(self, group: Group) -> str:
        """Answers by kind where a short last line without tags counts as an answer too."""
        titles = ["arm, read leniently", *KINDS]
        columns = [self._accuracy(kind, "correct_lenient") for kind in KINDS]
        return self._table(titles, columns, group)

    def boxes(self, group: Group) -> str:
        """Overlap, and what the boxes are worth."""
        titles = ["arm", "IoU", "F1@0.5", "as asked", "its boxes masked", "answered then", "others masked"]
        titles += ["its − others", "wrong boxes", "wrong − as asked", "swapped"]
        columns: list[Column] = [
            *(self._overlap(name) for name in ("iou", "f1")),
            *(self._faithful(name) for name in ("unchanged", "mask_predicted")),
            self._faithful("mask_predicted", "answered"),
            self._faithful("mask_random"),
            self._drop("mask_predicted", "mask_random"),
            self._faithful("wrong_boxes"),
            self._drop("wrong_boxes", "unchanged"),
            self._faithful("swapped_boxes"),
        ]
        return self._table(titles, columns, group)

    def samples(self, group: Group) -> str:
        """What samples at temperature 1 are like."""
        titles = ["arm", "samples of valid format", "− first", "p"]
        titles += ["right samples", "− first", "p", "right, of the valid"]
        columns: list[Column] = [
            self._form(list(SAMPLED)),
            *self._against("valid samples", group),
            lambda arm: percent(self.results.values(arm, "correct", list(SAMPLED)).interval()),
            *self._against("right samples", group),
            self._grounded(self._right_of_valid),
        ]
        return self._table(titles, columns, group)

    def costs(self, group: Group) -> str:
        """Length, and what training cost: the least and the most of the seeds, where they differ."""
        titles = ["arm", "tokens, greedy", "groups that teach", "KL, last steps"]
        titles += ["÷ measuring", "trained in CPU s", "by the clock"]
        columns: list[Column] = [
            lambda arm: between(self._all(arm, "tokens").by_seed.tolist()),
            self._groups_that_teach,
            self._last_kl,
            self.of_measuring,
            lambda arm: self._seconds(arm, "cpu_seconds"),
            lambda arm: self._seconds(arm, "wall_seconds"),
        ]
        return self._table(titles, columns, group)

    def harder(self, arms: Sequence[str]) -> str | None:
        """Answers on the splits that pre-training never saw, the untrained model's read leniently, and the overlap of
        the boxes of relation questions; None where they were not asked."""
        sets = [f"{split}/{kind}" for kind in ("relation", "count") for split in HARDER_SPLITS]
        if not {*sets} <= self.results.header["scenes"].keys():
            return None
        relation = sets[: len(HARDER_SPLITS)]
        columns = [self._leniently_if_untrained(name) for name in sets]
        columns += [self._overlap("iou", [name]) for name in relation]
        lines = [[f"`{arm}`", *(column(arm) for column in columns)] for arm in arms if arm in self.results.rows]
        titles = ["arm", *sets, *(f"{name}, IoU" for name in relation)]
        return markdown([title.replace("_", " ").replace("/", ": ") for title in titles], lines)

    def by_seed(self, arm: str = DEFAULT) -> str:
        """Each seed of an arm alone, its intervals over scenes."""
        titles = ["seed", "valid format", *KINDS, "IoU", "relation with wrong boxes"]
        lines = []
        for row in self.results.rows[arm]:
            seed = row["seed"]
            right = [self.results.values(arm, "correct", [kind]).of_seed(seed) for kind in KINDS]
            shares = [self._all(arm, "valid_format").of_seed(seed), *right]
            iou = decimals(self._all(arm, "iou").of_seed(seed).interval())
            wrong = percent(self.results.faithful(arm, "wrong_boxes").of_seed(seed).interval())
            lines.append([str(seed), *(percent(share.interval()) for share in shares), iou, wrong])
        return markdown(titles, lines)

    def settings(self, group: Group) -> str:
        """What each arm of a group changes, and why."""
        lines = [[f"`{arm.id}`", _said(arm), arm.why] for arm in group.arms]
        return markdown(["arm", "differs in", "because"], lines, texts=3)

    def target(self) -> str:
        """What the default arm is held to, seed by seed and all together; a cross stands at what is not met."""
        found = list(checks(self.results))
        seeds = list(dict.fromkeys(one.seed for one in found))
        demands = list(dict.fromkeys((one.what, one.asked) for one in found))
        at = {(one.what, one.seed): f"{one.found} {'✓' if one.met else '✗'}" for one in found}
        lines = [[what, asked, *(at.get((what, seed), NOTHING) for seed in seeds)] for what, asked in demands]
        titles = [seed if seed == ALL_SEEDS else f"seed {seed}" for seed in seeds]
        return markdown(["", "asked", *titles], lines, texts=2)

    # For sentences: percent, or points, without an interval unless it is said

    def share(self, arm: str, kind: str, measure: str = "correct") -> str:
        """Of greedy answers."""
        return f"{100 * self.results.values(arm, measure, [kind]).mean:.1f}"

    def each_seed(self, arm: str, kind: str) -> str:
        """Right greedy answers of every seed, in order."""
        return ", ".join(f"{100 * mean:.1f}" for mean in self.results.values(arm, "correct", [kind]).by_seed)

    def seeds(self, arm: str, kind: str) -> str:
        """Right greedy answers of the worst and the best seed."""
        each = 100 * self.results.values(arm, "correct", [kind]).by_seed
        return f"{each.min():.1f} … {each.max():.1f}"

    def sampled(self, arm: str, measure: str = "valid_format") -> str:
        """Of samples."""
        return f"{100 * self.results.values(arm, measure, list(SAMPLED)).mean:.1f}"

    def rough_model(self, beta: float) -> tuple[str, str, str]:
        """p0, and what `where_samples_stop` says of it."""
        p0 = self.results.values("untrained/grounded", "valid_format", list(SAMPLED)).mean
        stop, least = where_samples_stop(p0, beta)
        return f"{p0:.3f}", f"{stop:.2f}", f"{least:.2f}"

    def of_valid(self, arm: str) -> tuple[int, int]:
        """How many samples of valid form are right, and how many there are."""
        valid, right = (self.results.values(arm, name, list(SAMPLED)).table for name in ("valid_format", "correct"))
        return int((valid * right).sum()), int(valid.sum())

    def right_by_boxes(self, arm: str, *, found: bool) -> str:
        """Right answers to relation questions where F1@0.5 is 1, or where it is less."""
        right, f1 = (self.results.values(arm, name, ["relation"]).table for name in ("correct", "f1"))
        return f"{100 * right[(f1 == 1) == found].mean():.1f}"

    def while_training(self, arm: str, step: int) -> str:
        """Valid form of what was sampled in the block of steps that ends with this one."""
        curves = [row["train"]["curve"] for row in self.results.rows[arm]]
        return f"{100 * fmean(curve['valid_format'][curve['step'].index(step)] for curve in curves):.0f}"

    def faithful_share(self, arm: str, condition: str, measure: str = "correct") -> str:
        """Of answers to relation questions under a condition."""
        return f"{100 * self.results.faithful(arm, condition, measure).mean:.1f}"

    def of_measuring(self, arm: str) -> str:
        """CPU time of training as a multiple of what measuring the same run took: a slow hour slows both."""
        known = [round(row["train"]["cpu_seconds"] / row["measure"]["cpu_seconds"], 1) for row in self._whole(arm)]
        return between(known) if known else NOTHING

    def gap(self, arm: str, what: str) -> str:
        """How far an arm is from the one that it is held against, with its interval and p."""
        return f"{points(self.comparisons[what][arm].difference)}, {self.p(arm, what)}"

    def p(self, arm: str, what: str) -> str:
        """Of the difference from the arm that it is held against."""
        return f"p {p_value(self.comparisons[what][arm].p)}"

    def gain(self, kind: str, arm: str = DEFAULT) -> str:
        """Above the best way to ask the untrained model, with its interval."""
        best = self.results.values(self.results.best_untrained(kind), "correct_lenient", [kind])
        return points(self.results.values(arm, "correct", [kind]).above_untrained(best).interval())

    def _table(self, titles: Sequence[str], columns: Sequence[Column], group: Group) -> str:
        """A line an arm, without the columns that none of them has."""
        arms = self.measured(group)
        cells = [[column(arm) for arm in arms] for column in (lambda arm: self.name(arm, group), *columns)]
        kept = [(title, column) for title, column in zip(titles, cells, strict=True) if {*column} != {NOTHING}]
        return markdown([title for title, _ in kept], list(zip(*(column for _, column in kept), strict=True)))

    def _all(self, arm: str, measure: str) -> Values:
        return self.results.values(arm, measure, KINDS)

    def _accuracy(self, kind: str, measure: str = "correct") -> Column:
        return lambda arm: percent(self.results.values(arm, measure, [kind]).interval())

    def _leniently_if_untrained(self, kind: str) -> Column:
        untrained = self.results.untrained()
        return lambda arm: self._accuracy(kind, "correct_lenient" if arm in untrained else "correct")(arm)

    def _form(self, sets: Sequence[str]) -> Column:
        return self._grounded(lambda arm: percent(self.results.values(arm, "valid_format", sets).interval()))

    def _overlap(self, measure: str, sets: Sequence[str] = KINDS) -> Column:
        return self._grounded(lambda arm: decimals(self.results.values(arm, measure, sets).interval()))

    def _grounded(self, column: Column) -> Column:
        """Of arms that are asked for chains."""
        return lambda arm: NOTHING if self._is_direct(arm) else column(arm)

    def _is_direct(self, arm: str) -> bool:
        return arm in self.results.rows and self.results.method(arm) in DIRECT

    def _against(self, what: str, group: Group) -> list[Column]:
        """The difference from the first line and its p. The first line itself may be held against another arm."""
        found = {arm: gap for arm, gap in self.comparisons[what].items() if arm != group.against}

        def gap(arm: str) -> str:
            return points(found[arm].difference) if arm in found else NOTHING

        return [gap, lambda arm: p_value(found[arm].p) if arm in found else NOTHING]

    def _faithful(self, condition: str, measure: str = "correct") -> Column:
        def cell(arm: str) -> str:
            if not self.results.writes_boxes(arm):
                return NOTHING
            return percent(self.results.faithful(arm, condition, measure).interval())

        return cell

    def _drop(self, condition: str, other: str) -> Column:
        def cell(arm: str) -> str:
            if not self.results.writes_boxes(arm):
                return NOTHING
            changed, as_before = (self.results.faithful(arm, name) for name in (condition, other))
            return points(changed.minus(as_before).interval())

        return cell

    def _right_of_valid(self, arm: str) -> str:
        right, valid = self.of_valid(arm)
        return f"{100 * right / valid:.1f} of {valid}" if valid else NOTHING

    def _last_kl(self, arm: str) -> str:
        """In the last block of steps, mean of the seeds."""
        curves = [row["train"].get("curve", {}).get("kl") for row in self.results.rows[arm]]
        known = [curve[-1] for curve in curves if curve and curve[-1] is not None]
        return f"{fmean(known):.3f}" if known else NOTHING

    def _groups_that_teach(self, arm: str) -> str:
        curves = [row["train"].get("curve", {}).get("groups_that_teach") for row in self.results.rows[arm]]
        known = [fmean(curve) for curve in curves if curve]
        return f"{100 * fmean(known):.0f} %" if known else NOTHING

    def _seconds(self, arm: str, clock: str) -> str:
        known = [row["train"][clock] for row in self._whole(arm)]
        return between(known) if known else NOTHING

    def _whole(self, arm: str) -> list[Row]:
        """Rows of runs whose training was not interrupted."""
        return [row for row in self.results.rows[arm] if row["train"].get("resumed") is False]


def _said(arm: Arm) -> str:
    said = {**({} if arm.method == "grpo" else {"method": arm.method}), **arm.settings}
    return ", ".join(
        f"`{key}: {json.dumps(value) if isinstance(value, dict) else value}`" for key, value in said.items()
    )
