"""From rows to numbers: one cell per system and measure, one paired difference per pair of systems, and their table."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from grit_lite.evaluate.statistics import mcnemar, mean_interval, paired_difference, wilson

Row = Mapping[str, Any]

_SHARES = ("accuracy", "accuracy_lenient")
_COLUMN = {"accuracy": "correct", "accuracy_lenient": "correct_lenient"}


def summarise(rows: Mapping[str, Sequence[Row]], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """`systems` (a cell per measure) and `paired` (the last system against each other one on the same rows).

    Args:
        rows: by system, every system with the same triplets in the same order.
        clusters: one key per triplet; triplets of one image share it.
    """
    *others, last = rows
    pairs = [_compare(rows, last, other, clusters) for other in others]
    return {
        "systems": {system: _system(system_rows) for system, system_rows in rows.items()},
        "paired": [row for pair in pairs for row in pair],
    }


def _system(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        **{
            measure: {name: _share(part, _COLUMN[measure]) for name, part in _by_dataset(rows).items()}
            for measure in _SHARES
        },
        "valid_format": _share(rows, "valid_format"),
        "union_iou": _mean(rows, "union_iou"),
        "f1": _mean(rows, "f1"),
        "tokens": _mean(rows, "tokens"),
    }


def _by_dataset(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """All rows under 'all', then the rows of each dataset under its name."""
    names = sorted({row["dataset"] for row in rows})
    return {"all": list(rows), **{name: [row for row in rows if row["dataset"] == name] for name in names}}


def _share(rows: Sequence[Row], column: str) -> dict[str, Any]:
    return wilson(sum(row[column] for row in rows), len(rows))._asdict()


def _mean(rows: Sequence[Row], column: str) -> dict[str, Any]:
    return mean_interval([row[column] for row in rows if row[column] is not None])._asdict()


def _compare(
    rows: Mapping[str, Sequence[Row]], of: str, against: str, clusters: Sequence[Hashable]
) -> list[dict[str, Any]]:
    """Every paired difference of two systems; those of shares also carry McNemar's p."""
    datasets = ["all", *sorted({row["dataset"] for row in rows[of]})]
    measures = [(measure, _COLUMN[measure], dataset) for measure in _SHARES for dataset in datasets]
    measures += [(measure, measure, "all") for measure in ("valid_format", "union_iou", "f1")]
    compared = []
    for measure, column, dataset in measures:
        kept = [
            index
            for index, row in enumerate(rows[of])
            if dataset in ("all", row["dataset"]) and row[column] is not None
        ]
        a, b = ([rows[system][index][column] for index in kept] for system in (of, against))
        difference = paired_difference(a, b, [clusters[index] for index in kept])._asdict()
        p = {} if measure in ("union_iou", "f1") else {"p": mcnemar(a, b)}
        compared.append({"metric": measure, "dataset": dataset, "of": of, "against": against, **difference, **p})
    return compared


_TITLES = {"base_direct": "base\nasked\ndirectly", "base": "base\nGRIT\nprompt", "tuned": "tuned\nGRIT\nprompt"}
_LABELS = {
    "accuracy": "right answers",
    "accuracy_lenient": "right, untagged\ncounts too",
    "valid_format": "valid format",
    "union_iou": "box overlap\n(union IoU)",
    "f1": "boxes F1@0.5",
    "tokens": "tokens",
}
# A direct question asks for no tags and no boxes, so that there are none says nothing.
_NOT_ASKED_DIRECTLY = ("valid_format", "union_iou", "f1")


def table(result: Mapping[str, Any]) -> Table:
    """The before-and-after table of a summary, each number over its 95 % interval, for a terminal of 80 columns.

    The last column is the paired difference: of answers against the base asked directly, which is the base at its best;
    of format and boxes against the base under the same prompt.
    """
    systems = result["systems"]
    grid = Table(title=f"{result['benchmark']}: {result['n']} questions", title_justify="left", box=SIMPLE_HEAD)
    grid.caption = "Below each number its 95 % interval. Paired: on the same questions,\nshares in percentage points."
    grid.caption_justify = "left"
    grid.add_column("", overflow="fold")
    for system in systems:
        grid.add_column(_TITLES[system], justify="right")
    grid.add_column("tuned\n− base\npaired", justify="right")
    for metric, dataset in _lines(systems):
        cells = {system: value[metric][dataset] if dataset else value[metric] for system, value in systems.items()}
        label = _label(metric, dataset, n=next(iter(cells.values()))["n"])
        shown = [_shown(cell, metric, system) for system, cell in cells.items()]
        grid.add_row(label, *shown, _shown_difference(result["paired"], metric, dataset or "all"))
    return grid


def _lines(systems: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(metric, dataset) of every row of the table; None where a metric is not split by dataset."""
    datasets = next(iter(systems.values()))["accuracy"]
    others = [("valid_format", None), ("union_iou", None), ("f1", None), ("tokens", None)]
    return [*(("accuracy", name) for name in datasets), ("accuracy_lenient", "all"), *others]


def _label(metric: str, dataset: str | None, n: int) -> str:
    return _LABELS[metric] if dataset in (None, "all") else f"  {escape(dataset)}\n  n = {n}"


def _shown(cell: Mapping[str, Any], metric: str, system: str) -> str:
    if cell["value"] is None or (system == "base_direct" and metric in _NOT_ASKED_DIRECTLY):
        return "–"
    value, low, high = (_written(cell[key], metric) for key in ("value", "low", "high"))
    unit = "" if metric in _DECIMALS else " %"
    return f"{value}{unit}\n[dim]{low}–{high}[/]"


def _shown_difference(paired: Sequence[Mapping[str, Any]], metric: str, dataset: str) -> str:
    against = "base" if metric in _NOT_ASKED_DIRECTLY else "base_direct"
    wanted = {"metric": metric, "dataset": dataset, "against": against}
    row = next((row for row in paired if wanted.items() <= row.items()), None)
    if row is None or row["low"] is None:
        return "–"
    colour = "green" if row["low"] > 0 else "red" if row["high"] < 0 else "default"
    difference, low, high = (_written(row[key], metric, sign="+") for key in ("difference", "low", "high"))
    return f"[{colour}]{difference}[/]\n[dim]{low}…{high}[/]"


# Decimals of what is no share; shares are written in percent.
_DECIMALS = {"union_iou": 2, "f1": 2, "tokens": 0}


def _written(value: float | None, metric: str, sign: str = "") -> str:
    if value is None:
        return "?"
    if metric in _DECIMALS:
        return f"{value:{sign}.{_DECIMALS[metric]}f}"
    return f"{100 * value:{sign}.1f}"
