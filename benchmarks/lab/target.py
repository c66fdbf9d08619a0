"""What the default recipe is held to: every seed alone, on the held-out questions of the laboratory."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.lab.analysis import PLAIN, Results, Values
from benchmarks.lab.study import DEFAULT

VALID_FORMAT, IOU, RELATION, GAIN, TAKEN = 0.95, 0.6, 0.80, 0.15, 0.5


@dataclass(frozen=True)
class Check:
    """One demand on one seed: the number, what is asked of it, and whether it is met."""

    seed: int
    what: str
    found: str
    asked: str
    met: bool


def checks(results: Results, arm: str = DEFAULT) -> Iterator[Check]:
    """By seed, in the order of the demands."""
    prompts = {kind: results.best_untrained(kind) for kind in ("relation", "count")}
    valid, iou = results.values(arm, "valid_format", PLAIN), results.values(arm, "iou", PLAIN)
    right = {kind: results.values(arm, "correct", [kind]) for kind in prompts}
    before = {kind: results.values(prompts[kind], "correct", [kind]) for kind in prompts}
    for seed in valid.seeds:
        yield _least(seed, "valid format", valid.of_seed(seed).mean, VALID_FORMAT)
        yield _least(seed, "grounding IoU", iou.of_seed(seed).mean, IOU, percent=False)
        yield _least(seed, "position-relation accuracy", right["relation"].of_seed(seed).mean, RELATION)
        gain = right["relation"].of_seed(seed).above_untrained(before["relation"])
        yield _gain(seed, f"relation above {_prompt(prompts['relation'])}", gain)
        yield _no_loss(
            seed,
            f"counting above {_prompt(prompts['count'])}",
            right["count"].of_seed(seed).above_untrained(before["count"]),
        )
        taken = taken_away(results, arm, seed, prompts["relation"])
        yield _least(seed, "share of the relation gain that wrong boxes take away", taken, TAKEN)


def _prompt(arm: str) -> str:
    return f"untrained ({arm.removeprefix('untrained/')})"


def taken_away(results: Results, arm: str, seed: int, untrained: str) -> float:
    """(accuracy - accuracy with wrong boxes) / (accuracy - an untrained arm's), on the questions that were asked again;
    0 where nothing was gained."""
    before, after = (results.faithful(arm, name).of_seed(seed) for name in ("unchanged", "wrong_boxes"))
    floor = results.values(untrained, "correct", ["relation"]).first(before.table.shape[1])
    gain = before.mean - floor.mean
    return (before.mean - after.mean) / gain if gain > 0 else 0.0


def _least(seed: int, what: str, value: float, least: float, *, percent: bool = True) -> Check:
    shown, asked = (f"{100 * x:.1f} %" if percent else f"{x:.2f}" for x in (value, least))
    return Check(seed, what, shown, f"at least {asked}", value >= least)


def _gain(seed: int, what: str, gap: Values) -> Check:
    met = gap.mean >= GAIN and gap.interval().low > 0
    return Check(seed, what, _points(gap), f"at least +{100 * GAIN:.0f} points, interval above 0", met)


def _no_loss(seed: int, what: str, gap: Values) -> Check:
    return Check(seed, what, _points(gap), "interval reaches 0", gap.interval().high >= 0)


def _points(gap: Values) -> str:
    value, low, high, _ = gap.interval()
    return f"{100 * value:+.1f} ({100 * low:+.1f} … {100 * high:+.1f})".replace("-", "−")


def report(results: Results) -> tuple[str, bool]:
    """The checks as lines, and whether all are met."""
    found = list(checks(results))
    lines = [
        f"{'ok ' if one.met else 'NO '} seed {one.seed}  {one.what}: {one.found}; asked: {one.asked}" for one in found
    ]
    seeds = {one.seed for one in found}
    good = {seed for seed in seeds if all(one.met for one in found if one.seed == seed)}
    return "\n".join([*lines, f"{len(good)} of {len(seeds)} seeds meet all of it."]), good == seeds
