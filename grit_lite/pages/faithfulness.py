"""What an evaluation says of faithfulness, as text: the cells of its table and the sentences below it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from grit_lite.pages.wording import number, percent

Result = Mapping[str, Any]

UNCHANGED = "nothing changed"
LABELS = {
    "mask_predicted": "its boxes painted over",
    "mask_random": "other places painted over",
    "keep_predicted": "only its boxes left",
    "blank": "a blank image",
    "shuffled": "another image",
    "same_boxes": "its chain, same boxes",
    "wrong_boxes": "its chain, wrong boxes",
    "swapped_boxes": "its chain, boxes swapped",
}
_EFFECTS = {"mask_predicted": "grounding", "wrong_boxes": "reading", "swapped_boxes": "reading_swapped"}


class Line(NamedTuple):
    """A row of the table: (value, interval) of right answers, of other answers, and of the latter above their control.

    The control of boxes that are painted over are boxes elsewhere, that of other boxes in a chain are its own.
    """

    label: str
    n: int
    right: tuple[str, str]
    flipped: tuple[str, str]
    effect: tuple[str, str]


def lines(result: Result) -> list[Line]:
    """The unchanged answers, then every condition."""
    asked = result["questions"] - result["without_boxes"]
    first = Line(UNCHANGED, asked, _cell(result["accuracy"]), ("–", ""), ("–", ""))
    return [first, *(_line(result, name, one) for name, one in result["conditions"].items())]


def _line(result: Result, name: str, condition: Mapping[str, Any]) -> Line:
    effect = result["effects"].get(_EFFECTS.get(name), {})
    above = _cell({**effect, "value": effect.get("difference")}, sign="+")
    cells = _cell(condition["accuracy"]), _cell(condition["flip_rate"])
    return Line(LABELS.get(name, name.replace("_", " ")), condition["n"], *cells, above)


def _cell(cell: Mapping[str, Any], sign: str = "") -> tuple[str, str]:
    if cell.get("value") is None:
        return "–", ""
    return percent(cell["value"], sign), _interval(cell, sign)


def _interval(cell: Mapping[str, Any], sign: str = "") -> str:
    return "" if cell["low"] is None else f"{percent(cell['low'], sign)} … {percent(cell['high'], sign)}"


def sentences(result: Result) -> list[str]:
    """Who was asked, what wrong boxes take away, and whether the text of a chain can be told to belong to its boxes."""
    taken = result.get("taken_away", {}).get("wrong_boxes", {})
    return [_asked(result), *_taken_away(taken), *_correlation(result["correlation"])]


def _asked(result: Result) -> str:
    said = f"Of {result['questions']} questions, {result['without_boxes']} were answered without a box and stay out"
    left_out = result["settings"]["left_out"]
    return f"{said}; {left_out} more were not asked." if left_out else f"{said}."


def _taken_away(taken: Mapping[str, Any]) -> list[str]:
    if taken.get("value") is None:
        return []
    gained = "of what the chain gains over the base asked directly"
    return [f"Wrong boxes take away {percent(taken['value'])} % ({_interval(taken)}) {gained}."]


def _correlation(found: Mapping[str, Any]) -> list[str]:
    if "obstacle" in found:
        return [f"No reasoning correlation: {found['obstacle']}"]
    own, other, gap = (found[name] for name in ("correlation", "other_text", "difference"))
    if own["value"] is None:
        return []
    said = f"Reasoning correlation, with the model as its own reader: {number(own['value'])} ({_decimals(own)})"
    apart = f"so that {number(gap['difference'], 2, '+')} ({_decimals(gap)}) is owed to the text. By chance it is 0.50."
    return [f"{said}; with the text of another chain {number(other['value'])}, {apart}"]


def _decimals(cell: Mapping[str, Any]) -> str:
    return f"{number(cell['low'])} … {number(cell['high'])}"
