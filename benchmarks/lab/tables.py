"""The page's tables, in Markdown: one line an arm, each number with its interval."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from statistics import fmean

from benchmarks.lab.analysis import FAITHFUL, PLAIN, Comparison, Interval, Results, Values, compare
from benchmarks.lab.measuring import HARDER_SPLITS, SAMPLED
from benchmarks.lab.study import DEFAULT, Arm, Group, Study
from benchmarks.lab.target import checks

COMPARED = (("correct", ("relation",)), ("correct", ("count",)), ("valid_format", PLAIN))
NOTHING = "–"
Column = Callable[[str], str]


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table of GitHub's Markdown; so many of its first columns are text, the others are numbers."""
    rule = ["---" if column < texts else "--:" for column in range(len(titles))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *lines))


def percent(cell: Interval) -> str:
    return f"{100 * cell.value:.1f} ({100 * cell.low:.1f}–{100 * cell.high:.1f})"


def decimals(cell: Interval) -> str:
    return f"{cell.value:.2f} ({cell.low:.2f}–{cell.high:.2f})"


def points(cell: Interval) -> str:
    text = f"{100 * cell.value:+.1f} ({100 * cell.low:+.1f} … {100 * cell.high:+.1f})"
    return text.replace("-", "−")


class Tables:
    """Everything that the page shows as a table, from the rows of one file."""

    def __init__(self, results: Results, study: Study) -> None:
        self.results, self.study = results, study

    @cached_property
    def comparisons(self) -> dict[tuple[str, tuple[str, ...]], Mapping[str, Comparison]]:
        """By measure and sets, then by arm."""
        return {(name, sets): compare(self.results, name, sets, self.study.held_against()) for name, sets in COMPARED}

    def measured(self, group: Group) -> list[str]:
        """What the group is held against and its own arms, as far as they have rows."""
        arms = [group.against, *(arm.id for arm in group.arms)]
        return [arm for arm in dict.fromkeys(arms) if arm in self.results.rows]

    def name(self, arm: str, group: Group) -> str:
        """The arm as the rows call it, and what it is among the others of the group."""
        said = f" {group.against_is}" if arm == group.against and group.against_is else ""
        return f"`{arm}`{said}"

    def answers(self, group: Group) -> str:
        """Form and answers by kind, and how far they are from those of the arm in the first line."""
        titles = ["arm", "seeds", "valid format", *PLAIN, "relation − first", "p", "count − first", "p"]
        columns: list[Column] = [
            lambda arm: str(len(self.results.rows[arm])),
            lambda arm: percent(self._all(arm, "valid_format").interval()),
            *(self._accuracy(kind) for kind in PLAIN),
            *self._against("relation"),
            *self._against("count"),
        ]
        return self._table(titles, columns, group)

    def boxes(self, group: Group) -> str:
        """Overlap, and what the boxes are worth."""
        titles = ["arm", "IoU", "F1@0.5", "relation as asked", "boxes masked", "others masked"]
        titles += ["wrong boxes in the chain", "boxes swapped"]
        columns: list[Column] = [
            *(lambda arm, name=name: decimals(self._all(arm, name).interval()) for name in ("iou", "f1")),
            *(self._faithful(name) for name in ("unchanged", "mask_predicted", "mask_random")),
            *(self._faithful(name) for name in ("wrong_boxes", "swapped_boxes")),
        ]
        return self._table(titles, columns, group)

    def samples(self, group: Group) -> str:
        """What samples at temperature 1 are like, and what training cost."""
        titles = ["arm", "samples of valid format", "right samples", "tokens, greedy", "groups that teach"]
        titles += ["trained in CPU s (clock)"]
        columns: list[Column] = [
            *(self._sampled(measure) for measure in ("valid_format", "correct")),
            lambda arm: f"{self._all(arm, 'tokens').mean:.0f}",
            self._groups_that_teach,
            self._seconds,
        ]
        return self._table(titles, columns, group)

    def harder(self, arms: Sequence[str]) -> str | None:
        """Answers on the splits that pre-training never saw; None where they were not asked."""
        splits = [name for name in HARDER_SPLITS if f"{name}/relation" in self.results.header["scenes"]]
        if not splits:
            return None
        sets = [f"{split}/{kind}" for kind in ("relation", "count") for split in splits]
        lines = [
            [f"`{arm}`", *(percent(self.results.values(arm, "correct", [name]).interval()) for name in sets)]
            for arm in arms
            if arm in self.results.rows
        ]
        return markdown(["arm", *(name.replace("_", " ").replace("/", ": ") for name in sets)], lines)

    def by_seed(self, arm: str = DEFAULT) -> str:
        """Each seed of an arm alone, its intervals over scenes."""
        titles = ["seed", "valid format", *PLAIN, "IoU", "relation with wrong boxes"]
        lines = []
        for row in self.results.rows[arm]:
            seed = row["seed"]
            right = [self.results.values(arm, "correct", [kind]).of_seed(seed) for kind in PLAIN]
            shares = [self._all(arm, "valid_format").of_seed(seed), *right]
            iou = decimals(self._all(arm, "iou").of_seed(seed).interval())
            wrong = percent(self.results.faithful(arm, "wrong_boxes").of_seed(seed).interval())
            lines.append([str(seed), *(percent(share.interval()) for share in shares), iou, wrong])
        return markdown(titles, lines)

    def share(self, arm: str, kind: str) -> str:
        """Of right greedy answers, in percent, for a sentence."""
        return f"{100 * self.results.values(arm, 'correct', [kind]).mean:.0f}"

    def faithful_share(self, arm: str, condition: str) -> str:
        """Of right answers to relation questions under a condition, in percent, for a sentence."""
        return f"{100 * self.results.faithful(arm, condition).mean:.0f}"

    def settings(self, group: Group) -> str:
        """What each arm of a group changes, and why."""
        lines = [[f"`{arm.id}`", _said(arm), arm.why] for arm in group.arms]
        return markdown(["arm", "differs in", "because"], lines, texts=3)

    def target(self) -> str:
        """What each seed of the default arm is held to; a cross stands at what is not met."""
        found = list(checks(self.results))
        seeds = sorted({one.seed for one in found})
        demands = list(dict.fromkeys((one.what, one.asked) for one in found))
        at = {(one.what, one.seed): f"{one.found} {'✓' if one.met else '✗'}" for one in found}
        lines = [[what, asked, *(at[what, seed] for seed in seeds)] for what, asked in demands]
        return markdown(["", "asked", *(f"seed {seed}" for seed in seeds)], lines, texts=2)

    def _table(self, titles: Sequence[str], columns: Sequence[Column], group: Group) -> str:
        arms = self.measured(group)
        return markdown(titles, [[self.name(arm, group), *(column(arm) for column in columns)] for arm in arms])

    def _all(self, arm: str, measure: str) -> Values:
        return self.results.values(arm, measure, PLAIN)

    def _accuracy(self, kind: str) -> Column:
        return lambda arm: percent(self.results.values(arm, "correct", [kind]).interval())

    def _sampled(self, measure: str) -> Column:
        return lambda arm: percent(self.results.values(arm, measure, list(SAMPLED)).interval())

    def _against(self, kind: str) -> list[Column]:
        found = self.comparisons["correct", (kind,)]

        def gap(arm: str) -> str:
            return points(found[arm].difference) if arm in found else NOTHING

        return [gap, lambda arm: f"{found[arm].p:.3f}" if arm in found else NOTHING]

    def _faithful(self, condition: str) -> Column:
        def cell(arm: str) -> str:
            if FAITHFUL not in self.results.rows[arm][0]["outcomes"]:
                return NOTHING
            return percent(self.results.faithful(arm, condition).interval())

        return cell

    def _groups_that_teach(self, arm: str) -> str:
        curves = [row["train"].get("curve", {}).get("groups_that_teach") for row in self.results.rows[arm]]
        known = [fmean(curve) for curve in curves if curve]
        return f"{100 * fmean(known):.0f} %" if known else NOTHING

    def _seconds(self, arm: str) -> str:
        """Of training, in runs that were not interrupted."""
        known = [row["train"] for row in self.results.rows[arm] if row["train"].get("resumed") is False]
        cpu, clock = ([one[name] for one in known] for name in ("cpu_seconds", "wall_seconds"))
        return f"{fmean(cpu):.0f} ({fmean(clock):.0f})" if known else NOTHING


def _said(arm: Arm) -> str:
    said = {**({} if arm.method == "grpo" else {"method": arm.method}), **arm.settings}
    return ", ".join(
        f"`{key}: {json.dumps(value) if isinstance(value, dict) else value}`" for key, value in said.items()
    )
