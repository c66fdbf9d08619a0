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

    The control of boxes that are painted over are boxes elsewhere, that of other boxes in a chain are its own. `part`
    rows are those of one dataset, and belong to the row above them.
    """

    label: str
    part: bool
    n: int
    right: tuple[str, str]
    flipped: tuple[str, str]
    effect: tuple[str, str]


def lines(result: Result) -> list[Line]:
    """The unchanged answers, then every condition; by dataset, too, where it is held against a control."""
    asked = result["questions"] - result["without_boxes"] - result.get("nothing_covered", 0)
    found = [Line(UNCHANGED, False, asked, _cell(result["accuracy"]), ("–", ""), ("–", ""))]
    datasets = result["datasets"] if len(result["datasets"]) > 1 else {}
    for name in result["conditions"]:
        found.append(_line(LABELS[name], False, result, name))
        parts = {dataset: one for dataset, one in datasets.items() if name in _EFFECTS and name in one["conditions"]}
        found += [_line(dataset, True, one, name) for dataset, one in parts.items()]
    return found


def _line(label: str, part: bool, result: Result, name: str) -> Line:
    condition, effect = result["conditions"][name], result["effects"].get(_EFFECTS.get(name), {})
    above = _cell({**effect, "value": effect.get("difference")}, sign="+")
    return Line(label, part, condition["n"], _cell(condition["accuracy"]), _cell(condition["flip_rate"]), above)


def _cell(cell: Mapping[str, Any], sign: str = "") -> tuple[str, str]:
    if cell.get("value") is None:
        return "–", ""
    return percent(cell["value"], sign), _interval(cell, sign)


def _interval(cell: Mapping[str, Any], sign: str = "") -> str:
    return "" if cell["low"] is None else f"{percent(cell['low'], sign)} … {percent(cell['high'], sign)}"


def sentences(result: Result) -> list[str]:
    """Who was asked, what wrong boxes take away, and whether the text of a chain can be told to belong to its boxes."""
    return [
        _asked(result),
        *_several(result),
        *_hid_nothing(result),
        *_taken_away(result),
        *_correlation(result["correlation"]),
    ]


def _asked(result: Result) -> str:
    left_out = result["settings"]["left_out"]
    said = f"Of {result['questions'] + left_out} questions, {result['without_boxes']} were answered without a box"
    off = result.get("nothing_covered")
    said = f"{said} and {off} with boxes that cover nothing of the image; they stay" if off else f"{said} and stay"
    return f"{said} out; {left_out} more were not asked." if left_out else f"{said} out."


def _several(result: Result) -> list[str]:
    if not (several := result.get("several_images")):  # a result of before they were told apart has none
        return []
    said = f"Of those asked again, {several} are about several images. No box says on which of them it is, so that"
    return [f"{said} all of these were made blank, or exchanged, and the boxes left alone."]


def _hid_nothing(result: Result) -> list[str]:
    """An answer that stays is one thing where its evidence was taken away, and another where it was not."""
    mask = result["conditions"].get("mask_predicted", {})
    if not (hidden := mask.get("hid_nothing")):
        return []
    said = f"Painting over its boxes hid almost nothing in {hidden} of {mask['n']} questions"
    return [f"{said}, where an answer that stays says nothing."]


def _taken_away(result: Result) -> list[str]:
    """What there is to take away differs from one dataset to the other, so each has its own."""
    parts = result["datasets"] if len(result["datasets"]) > 1 else {"": result}
    taken = {name: one.get("taken_away", {}).get("wrong_boxes", {}) for name, one in parts.items()}
    known = {name: cell for name, cell in taken.items() if cell.get("value") is not None}
    gained = "of what the chain gains over the base asked directly"
    return [
        f"{name}{': wrong' if name else 'Wrong'} boxes take away {percent(one['value'])} % ({_interval(one)}) {gained}."
        for name, one in known.items()
    ]


def _correlation(found: Mapping[str, Any]) -> list[str]:
    if "obstacle" in found:
        return [f"No reasoning correlation: {found['obstacle']}"]
    own, other, gap = (found[name] for name in ("correlation", "other_text", "difference"))
    if own["value"] is None:
        return []
    said = f"Reasoning correlation, {_reader(found)}: {number(own['value'])} ({_decimals(own)})"
    apart = f"so that {number(gap['difference'], 2, '+')} ({_decimals(gap)}) is owed to the text. By chance it is 0.50."
    return [f"{said}; with the text of another chain {number(other['value'])}, {apart}", *_unanswered(found)]


def _unanswered(found: Mapping[str, Any]) -> list[str]:
    """Each question has four readings."""
    count, readings = found["unanswered"], 4 * found["correlation"]["n"]
    return [f"{count} of {readings} readings named no picture, which is no preference."] if count else []


def _reader(found: Mapping[str, Any]) -> str:
    reader = found.get("reader")
    return f"with {reader['judge']} as the reader" if reader else "with the model as its own reader"


def _decimals(cell: Mapping[str, Any]) -> str:
    return f"{number(cell['low'])} … {number(cell['high'])}"
