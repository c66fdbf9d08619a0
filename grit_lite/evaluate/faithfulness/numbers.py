"""From rows to numbers: how often each change turned the answer, and what that says next to its control."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grit_lite.evaluate.statistics import CONFIDENCE, Cell, aggregate, mean_interval, paired_difference, share

Row = Mapping[str, Any]
Reference = float | Mapping[str, float]

LEAST_HIDDEN = 0.05  # of the pixels of boxes: where fewer look different, what they show has not been taken away

# (measure, condition, control): the first minus the second.
EFFECTS = {
    "grounding": ("flipped", "mask_predicted", "mask_random"),
    "reading": ("flipped", "wrong_boxes", "same_boxes"),
    "reading_swapped": ("flipped", "swapped_boxes", "same_boxes"),
    "grounding_accuracy": ("correct", "mask_predicted", "mask_random"),
    "reading_accuracy": ("correct", "wrong_boxes", "same_boxes"),
    "reading_swapped_accuracy": ("correct", "swapped_boxes", "same_boxes"),
}


def summarise(rows: Sequence[Row], reference: Reference | None = None) -> dict[str, Any]:
    """What the rows come to, each number with its 95 % interval over images.

    Args:
        reference: the accuracy that boxes add to: one for all, or by id; for instance that of the base asked directly.

    Returns:
        `questions`; `without_boxes` and `nothing_covered` (boxes without a pixel of the image), which nothing else
        counts; `several_images`: how many of the others are about several, and only in the conditions that change all
        of these; `unanswered`, before anything was changed; `accuracy` of the unchanged, as all accuracies of those
        answers that were judged; by condition `n`, `accuracy`, `flip_rate` (the share of answers that are not the
        unchanged one), `unanswered`, and where boxes were painted over `hid_nothing`: how often that changed less than
        `LEAST_HIDDEN` of their pixels; `effects`, each of `EFFECTS` as a paired difference over the questions that have
        both; with a reference `taken_away`: (accuracy of the
        control - accuracy of the condition) / (accuracy of the control - reference), None where the control is not
        surely above it.
    """
    by_condition: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_condition[row["condition"]][row["id"]] = row
    without, off = (by_condition.pop(name, {}) for name in ("without_boxes", "nothing_covered"))
    unchanged = list(by_condition.pop("unchanged", {}).values())
    effects = {name: effect for name, effect in EFFECTS.items() if {*effect[1:]} <= by_condition.keys()}
    result = {
        "questions": len(unchanged) + len(without) + len(off),
        "without_boxes": len(without),
        "nothing_covered": len(off),
        "several_images": sum(row.get("images", 1) > 1 for row in unchanged),
        "unanswered": _unanswered(unchanged),
        "accuracy": _cell(unchanged, "correct"),
        "conditions": {name: _condition(list(own.values())) for name, own in by_condition.items()},
        "effects": {name: _effect(by_condition, *effect) for name, effect in effects.items()},
    }
    if reference is not None:
        pairs = dict(effect[1:] for effect in effects.values())
        result["taken_away"] = {
            name: _taken_away(by_condition[name], by_condition[control], reference) for name, control in pairs.items()
        }
    return result


def _condition(rows: Sequence[Row]) -> dict[str, Any]:
    cells = {"accuracy": _cell(rows, "correct"), "flip_rate": _cell(rows, "flipped")}
    hid = [row["hid"] for row in rows if "hid" in row]
    hid_nothing = {"hid_nothing": sum(part < LEAST_HIDDEN for part in hid)} if hid else {}
    return {"n": len(rows), **cells, "unanswered": _unanswered(rows), **hid_nothing}


def _unanswered(rows: Sequence[Row]) -> int:
    return sum(row["answer"] is None for row in rows)


def _cell(rows: Sequence[Row], measure: str) -> dict[str, Any]:
    known = [row for row in rows if row[measure] is not None]
    values, clusters = [row[measure] for row in known], [row["cluster"] for row in known]
    are_shares = set(values) <= {0, 1}  # some scorers give parts of a point
    return (share(values, clusters) if are_shares else mean_interval(values, clusters))._asdict()


def _both(
    changed: Mapping[str, Row], control: Mapping[str, Row], measure: str
) -> tuple[list[tuple[Row, Row]], list[str]]:
    """Both rows of each question that has them with this measure, and the cluster of each."""
    pairs = [(changed[id], control[id]) for id in changed if id in control]
    known = [pair for pair in pairs if all(row[measure] is not None for row in pair)]
    return known, [row["cluster"] for row, _ in known]


def _effect(by_condition: Mapping[str, Mapping[str, Row]], measure: str, name: str, control: str) -> dict[str, Any]:
    pairs, clusters = _both(by_condition[name], by_condition[control], measure)
    a, b = ([pair[side][measure] for pair in pairs] for side in (0, 1))
    return paired_difference(a, b, clusters)._asdict()


def _taken_away(changed: Mapping[str, Row], control: Mapping[str, Row], reference: Reference) -> dict[str, Any]:
    pairs, clusters = _both(changed, control, "correct")
    before, after = (np.array([pair[side]["correct"] for pair in pairs], dtype=float) for side in (1, 0))
    floor = [reference[pair[0]["id"]] if isinstance(reference, Mapping) else reference for pair in pairs]
    if (mean_interval((before - floor).tolist(), clusters).low or 0) <= 0:
        return Cell(None, None, None, len(pairs))._asdict()
    lost, gained = before - after, before - floor

    def part(rows: Sequence[int]) -> float:
        below = gained[rows].sum()
        return lost[rows].sum() / below if below > 0 else float("inf")

    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(aggregate(part, clusters), tails, method="inverted_cdf").tolist()
    return Cell(part(range(len(pairs))), low, high if np.isfinite(high) else None, len(pairs))._asdict()
