"""The before-and-after table of an evaluation, as text: what a page writes into its cells."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from grit_lite.pages.wording import number, percent

SYSTEMS = {"base_direct": "base, asked directly", "base": "base, GRIT prompt", "tuned": "tuned, GRIT prompt"}


def datasets(result: Mapping[str, Any]) -> list[str]:
    return list(next(iter(result["systems"].values()))["accuracy"])


class Gap(NamedTuple):
    """A paired difference, as text: with its interval, its p and what could have been seen; `verdict` is that of it."""

    value: str
    interval: str = ""
    tested: str = ""
    verdict: str = ""


class Line(NamedTuple):
    """A row of the before-and-after table, as text: (value, interval) per system, and the paired differences.

    `part` rows belong to the one above them.
    """

    label: str
    note: str
    part: bool
    cells: list[tuple[str, str]]
    differences: list[Gap]


_MEASURES = {
    "accuracy": ("Right answers", "in the answer tag"),
    "accuracy_lenient": ("Right answers, leniently", "a short last line without tags counts too"),
    "valid_format": ("Valid format", "every tag once, in order, with text in it"),
    "union_iou": ("Box overlap", "union IoU of the reasoning’s boxes and the evidence"),
    "f1": ("Boxes found", "F1 at IoU 0.5, matched one to one"),
    "matched_iou": ("Box overlap, matched", "mean IoU of boxes matched one to one"),
    "union_iou_released": (
        "Box overlap, released script",
        "union IoU as in the paper’s Table 1: four integers anywhere, Qwen’s boxes unscaled",
    ),
    "n_boxes": ("Boxes", "per completion"),
    "without_box": ("Without a box", "of all completions"),
    "off_image_rate": ("Off the image", "of the boxes of a completion"),
    "tokens": ("Tokens", "per completion"),
}
_SHARES = ("accuracy", "accuracy_lenient", "valid_format", "without_box", "off_image_rate")  # in percent
SIGNIFICANT = 0.05
_DECIMALS = {"tokens": 0}  # the others have two
# A direct question asks for no tags and no boxes.
_BOXES = ("union_iou", "f1", "matched_iou", "union_iou_released", "n_boxes", "without_box", "off_image_rate")
_NOT_ASKED_DIRECTLY = ("valid_format", *_BOXES)


def lines(result: Mapping[str, Any]) -> list[Line]:
    """The table of an evaluation: answers in all and by dataset, then every other measure that the summary holds."""
    return [_line(result, metric, dataset) for metric, dataset in _wanted(list(result["systems"].values())[-1])]


def _wanted(system: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(metric, dataset) of each line. Only right answers are split by dataset; an unknown measure comes last."""
    others = [name for name in _MEASURES if name in system and name != "accuracy"]
    others += [name for name, cell in system.items() if name not in _MEASURES and isinstance(cell, Mapping)]
    lines: list[tuple[str, str | None]] = [("accuracy", name) for name in system["accuracy"]]
    lines += [(name, None if "value" in system[name] else "all") for name in others]
    return [(name, part) for name, part in lines if _cell_of(system, name, part)]


def _cell_of(system: Mapping[str, Any], metric: str, dataset: str | None) -> Mapping[str, Any]:
    """One number of a system with its interval and count; empty where it was not measured."""
    found = system.get(metric) or {}
    return found.get(dataset, {}) if dataset else found


def _line(result: Mapping[str, Any], metric: str, dataset: str | None) -> Line:
    systems = {name: _cell_of(system, metric, dataset) for name, system in result["systems"].items()}
    label, note = _MEASURES.get(metric, (metric.replace("_", " ").capitalize(), ""))
    if dataset not in (None, "all"):
        label, note = dataset, ""
    *others, last = systems
    skipped = ("base_direct",) if metric in _NOT_ASKED_DIRECTLY else ()
    n = systems[last]["n"]
    return Line(
        label,
        f"{note}{', ' if note else ''}n = {n}",
        dataset not in (None, "all"),
        [_cell({} if name in skipped else cell, metric, n) for name, cell in systems.items()],
        [difference({} if name in skipped else pair(result, metric, dataset, name), metric) for name in others],
    )


def pair(result: Mapping[str, Any], metric: str, dataset: str | None, against: str) -> Mapping[str, Any]:
    wanted = {"metric": metric, "dataset": dataset or "all", "against": against}
    return next((row for row in result["paired"] if wanted.items() <= row.items()), {})


def _cell(cell: Mapping[str, Any], metric: str, n: int) -> tuple[str, str]:
    """The number, and its interval; with its count where that is not the `n` of the whole line."""
    if cell.get("value") is None:
        return "–", ""
    interval = "" if cell["low"] is None else f"{_written(cell['low'], metric)} – {_written(cell['high'], metric)}"
    count = "" if cell["n"] == n else f"n = {cell['n']}"
    return _written(cell["value"], metric), ", ".join(filter(None, (interval, count)))


def difference(row: Mapping[str, Any], metric: str) -> Gap:
    if row.get("difference") is None:
        return Gap("–")
    low, high = (None if row[key] is None else _written(row[key], metric, sign="+") for key in ("low", "high"))
    seen = "" if row.get("detectable") is None else f"detectable {_written(row['detectable'], metric)}"
    return Gap(
        _written(row["difference"], metric, sign="+"),
        "no interval" if low is None else f"{low} … {high}",
        ", ".join(filter(None, (p_of(row), seen))),
        verdict(row),
    )


def p_of(row: Mapping[str, Any]) -> str:
    """ "p 0.012", Holm's; nothing where nothing was tested."""
    p = row.get("p_holm")
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p {p:.3f}"


_LESS_IS_BETTER = ("mmhal_hallucination_rate",)
_NEITHER = ("pope_yes_ratio",)


def verdict(row: Mapping[str, Any]) -> str:
    """ "better" or "worse" if that can be said, else "". It can where the interval leaves 0 out, and, of what was
    tested, Holm's p is below 0.05 too: the percentile interval of few questions that differ is too narrow for it.
    """
    if row.get("low") is None or row.get("p_holm", 0.0) >= SIGNIFICANT or row["metric"] in _NEITHER:
        return ""
    sign = (row["low"] > 0) - (row["high"] < 0)
    return ("", "better", "worse")[-sign if row["metric"] in _LESS_IS_BETTER else sign]


def _written(value: float, metric: str, sign: str = "") -> str:
    return percent(value, sign) if metric in _SHARES else number(value, _DECIMALS.get(metric, 2), sign)
