"""What the default recipe is held to: every seed alone and all together, on held-out questions that chose nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.lab.analysis import KINDS, Results, Values
from benchmarks.lab.study import DEFAULT
from benchmarks.lab.wording import points

SEEDS = 5
VALID_FORMAT, IOU, RELATION, GAIN, LOST, TAKEN = 0.95, 0.6, 0.80, 0.15, 0.05, 0.5
MINUTES = 10
ALL_SEEDS = "all seeds"
RIGHT = ("relation", "count")


@dataclass(frozen=True)
class Check:
    """One demand: the number, what is asked of it, and whether it is met.

    Attributes:
        seed: the number of one, or ALL_SEEDS.
    """

    seed: str
    what: str
    found: str
    asked: str
    met: bool


def checks(results: Results, arm: str = DEFAULT) -> Iterator[Check]:
    """By seed, in the order of the demands; then over all seeds those that are differences."""
    found = {
        "valid": results.values(arm, "valid_format", KINDS),
        "iou": results.values(arm, "iou", KINDS),
        "relation": results.values(arm, "correct", ["relation"]),
        **differences(results, arm),
    }
    for row in results.rows[arm]:
        seed = {name: values.of_seed(row["seed"]) for name, values in found.items()}
        name = str(row["seed"])
        yield _least(name, "valid format", seed["valid"].mean, VALID_FORMAT)
        yield _least(name, "grounding IoU", seed["iou"].mean, IOU, percent=False)
        yield _least(name, "position-relation accuracy", seed["relation"].mean, RELATION)
        yield from _of_differences(name, seed)
        yield _quick(name, row["train"])
    yield from _of_differences(ALL_SEEDS, found)


def differences(results: Results, arm: str) -> dict[str, Values]:
    """What is gained above the best way to ask the untrained model, and what is left of it with wrong boxes."""
    best = {kind: results.values(results.best_untrained(kind), "correct_lenient", [kind]) for kind in RIGHT}
    gained = {kind: results.values(arm, "correct", [kind]).above_untrained(best[kind]) for kind in RIGHT}
    return {**{f"{kind} gained": gap for kind, gap in gained.items()}, "hangs on boxes": _hangs(results, arm, best)}


def _hangs(results: Results, arm: str, untrained: dict[str, Values]) -> Values:
    """What wrong boxes take away beyond half of what was gained, on the questions that were asked again."""
    before, after = (results.faithful(arm, name) for name in ("unchanged", "wrong_boxes"))
    floor = untrained["relation"].first(before.table.shape[1])
    table = before.table - after.table - TAKEN * (before.table - floor.table)
    return replace(before, table=table, is_share=False)


def _of_differences(seed: str, found: dict[str, Values]) -> Iterator[Check]:
    relation, count, hangs = (found[name] for name in ("relation gained", "count gained", "hangs on boxes"))
    yield _gain(seed, "relation above untrained, at its best", relation)
    yield _no_loss(seed, "counting above untrained, at its best", count)
    asked = "interval above 0"
    yield Check(
        seed, "taken by wrong boxes, beyond half the gain", points(hangs.interval()), asked, hangs.interval().low > 0
    )


def _quick(seed: str, train: Mapping[str, Any]) -> Check:
    """What a killed part of a training took is not known."""
    minutes, whole = train.get("wall_seconds", 0) / 60, train.get("resumed") is False
    shown = f"{minutes:.1f}" if whole else "interrupted"
    return Check(seed, "minutes to train", shown, f"at most {MINUTES}", whole and 0 < minutes <= MINUTES)


def _least(seed: str, what: str, value: float, least: float, *, percent: bool = True) -> Check:
    shown, asked = (f"{100 * x:.1f} %" if percent else f"{x:.2f}" for x in (value, least))
    return Check(seed, what, shown, f"at least {asked}", value >= least)


def _gain(seed: str, what: str, gap: Values) -> Check:
    met = gap.mean >= GAIN and gap.interval().low > 0
    return Check(seed, what, points(gap.interval()), f"at least +{100 * GAIN:.0f} points, interval above 0", met)


def _no_loss(seed: str, what: str, gap: Values) -> Check:
    """Not shown to be lower, and shown not to be lower by the margin: a wide interval alone does not pass."""
    found = gap.interval()
    asked = f"interval reaches 0, and not −{100 * LOST:.0f} points"
    return Check(seed, what, points(found), asked, found.low > -LOST and found.high >= 0)


def report(results: Results) -> tuple[str, bool]:
    """The checks as lines, and whether there are enough seeds and all are met."""
    found = list(checks(results))
    lines = [
        f"{'ok ' if one.met else 'NO '} {one.seed if one.seed == ALL_SEEDS else f'seed {one.seed}'}  "
        f"{one.what}: {one.found}; asked: {one.asked}"
        for one in found
    ]
    seeds = {one.seed for one in found if one.seed != ALL_SEEDS}
    good = {seed for seed in seeds if all(one.met for one in found if one.seed == seed)}
    lines.append(f"{len(good)} of {len(seeds)} seeds meet all of it; {SEEDS} are asked for.")
    return "\n".join(lines), all(one.met for one in found) and len(seeds) >= SEEDS
