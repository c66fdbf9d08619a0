"""An evaluation as the report shows it: the before-and-after table, what guessing would score, and examples."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grit_lite.report.completions import shown
from grit_lite.report.wording import number, percent
from grit_lite.run import read_rows

Row = Mapping[str, Any]

# Whether an answer was right (before, after) tuning; before is the first system, after the last.
OUTCOMES = {
    (False, True): "fixed",
    (True, False): "broken",
    (False, False): "both_wrong",
    (True, True): "both_right",
}


def benchmark(path: Path) -> dict[str, Any]:
    """An evaluation's summary and its examples: every system's row of each triplet whose image was kept."""
    result = json.loads(path.read_text(encoding="utf-8"))
    together: dict[str, dict[str, Row]] = {}
    for row in read_rows(path.with_suffix(".jsonl")):
        together.setdefault(row["id"], {})[row["system"]] = row
    cases = list(together.values())
    kept = [case for case in cases if any("image" in row for row in case.values())]
    kept.sort(key=lambda case: list(OUTCOMES.values()).index(_outcome(case)))
    return {
        **result,
        "lines": lines(result),
        "findings": findings(result),
        "guess": {name: _most_common(cases, name) for name in _datasets(result)},
        "outcomes": Counter(_outcome(case) for case in cases),
        "examples": [(_outcome(case), {k: shown(row, path.parent) for k, row in case.items()}) for case in kept],
    }


def _datasets(result: Mapping[str, Any]) -> list[str]:
    return list(next(iter(result["systems"].values()))["accuracy"])


def _most_common(cases: Sequence[Mapping[str, Row]], dataset: str) -> float:
    """The share of right answers of someone who always gives the most common one, without looking."""
    golds = Counter(
        row["gold"] for row in (next(iter(case.values())) for case in cases) if dataset in ("all", row["dataset"])
    )
    return max(golds.values(), default=0) / max(golds.total(), 1)


def _outcome(case: Mapping[str, Row]) -> str:
    before, *_, after = case.values()
    return OUTCOMES[bool(before["correct"]), bool(after["correct"])]


class Line(NamedTuple):
    """A row of the before-and-after table, as text: (value, interval) per system and per paired difference.

    `part` rows belong to the one above them. A difference also has a verdict: "better", "worse", or "" where its
    interval holds zero.
    """

    label: str
    note: str
    part: bool
    cells: list[tuple[str, str]]
    differences: list[tuple[str, str, str]]


_MEASURES = {
    "accuracy": ("Right answers", "in the answer tag"),
    "accuracy_lenient": ("Right answers, leniently", "a short last line without tags counts too"),
    "valid_format": ("Valid format", "every tag once, in order, with text in it"),
    "union_iou": ("Box overlap", "union IoU of the reasoning’s boxes and the evidence"),
    "f1": ("Boxes found", "F1 at IoU 0.5, matched one to one"),
    "tokens": ("Tokens", "per completion"),
}
_DECIMALS = {"union_iou": 2, "f1": 2, "tokens": 0}  # the others are shares, in percent
_NOT_ASKED_DIRECTLY = ("valid_format", "union_iou", "f1")  # a direct question asks for no tags and no boxes


def lines(result: Mapping[str, Any]) -> list[Line]:
    """The table of an evaluation: answers in all and by dataset, then the other measures."""
    wanted: list[tuple[str, str | None]] = [("accuracy", name) for name in _datasets(result)]
    wanted += [("accuracy_lenient", "all"), *((name, None) for name in ("valid_format", "union_iou", "f1", "tokens"))]
    return [_line(result, metric, dataset) for metric, dataset in wanted]


def _line(result: Mapping[str, Any], metric: str, dataset: str | None) -> Line:
    systems = {
        name: system[metric][dataset] if dataset else system[metric] for name, system in result["systems"].items()
    }
    label, note = _MEASURES[metric]
    if dataset not in (None, "all"):
        label, note = dataset, ""
    *others, last = systems
    skipped = ("base_direct",) if metric in _NOT_ASKED_DIRECTLY else ()
    blank = {"value": None}
    return Line(
        label,
        f"{note}{', ' if note else ''}n = {systems[last]['n']}",
        dataset not in (None, "all"),
        [_cell(blank if name in skipped else cell, metric) for name, cell in systems.items()],
        [_difference({} if name in skipped else _pair(result, metric, dataset, name), metric) for name in others],
    )


def _pair(result: Mapping[str, Any], metric: str, dataset: str | None, against: str) -> Mapping[str, Any]:
    wanted = {"metric": metric, "dataset": dataset or "all", "against": against}
    return next((row for row in result["paired"] if wanted.items() <= row.items()), {})


def _cell(cell: Mapping[str, Any], metric: str) -> tuple[str, str]:
    if cell["value"] is None:
        return "–", ""
    interval = "" if cell["low"] is None else f"{_written(cell['low'], metric)} – {_written(cell['high'], metric)}"
    return _written(cell["value"], metric), interval


def _difference(row: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    if row.get("low") is None:
        return "–", "", ""
    value, low, high = (_written(row[key], metric, sign="+") for key in ("difference", "low", "high"))
    return value, f"{low} … {high}", verdict(row)


def verdict(row: Mapping[str, Any]) -> str:
    return "better" if row["low"] > 0 else "worse" if row["high"] < 0 else ""


_VERDICTS = {
    "better": "so tuning is shown to help the answers",
    "worse": "so tuning is shown to harm the answers",
    "": "so no difference is shown",
}


def findings(result: Mapping[str, Any]) -> list[str]:
    """What the evaluation says of format, boxes and answers, a sentence each; nothing where a system is missing."""
    systems = result["systems"]
    if not {"base_direct", "base", "tuned"} <= systems.keys():
        return []
    direct, base, tuned = (systems[name] for name in ("base_direct", "base", "tuned"))
    form = [percent(system["valid_format"]["value"]) for system in (tuned, base)]
    overlap = [number(system["union_iou"]["value"]) for system in (tuned, base)]
    right = [percent(system["accuracy"]["all"]["value"]) for system in (tuned, direct)]
    row = _pair(result, "accuracy", "all", "base_direct")
    value, interval, shown_as = _difference(row, "accuracy")
    form_said = (
        f"On {result['n']} held-out questions, {form[0]} % of the tuned model’s completions have the full format; "
        f"under the same prompt the base reaches {form[1]} %."
    )
    boxes_said = f"The boxes of its reasoning overlap the evidence by a union IoU of {overlap[0]} (base: {overlap[1]})."
    answers_said = (
        f"It answers {right[0]} % right, the base asked directly {right[1]} %: {value} points, "
        f"95 % interval {interval}, {_VERDICTS[shown_as]}."
    )
    return [form_said, boxes_said, answers_said]


def _written(value: float, metric: str, sign: str = "") -> str:
    return number(value, _DECIMALS[metric], sign) if metric in _DECIMALS else percent(value, sign)
