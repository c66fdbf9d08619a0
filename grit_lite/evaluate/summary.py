"""From rows to numbers: one cell per system and measure, one paired difference per pair of systems, and their table."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from grit_lite.answer import plain
from grit_lite.evaluate import statistics
from grit_lite.evaluate.aggregates import Aggregate
from grit_lite.evaluate.statistics import Cell
from grit_lite.pages.table import p_of, verdict

Row = Mapping[str, Any]

_SHARES = ("accuracy", "accuracy_lenient")
_COLUMN = {"accuracy": "correct", "accuracy_lenient": "correct_lenient"}
# Of boxes: `grounding` says what each is. What a row does not have is left out.
_MEANS = ("union_iou", "f1", "matched_iou", "union_iou_released", "n_boxes", "off_image_rate", "tokens")
_FORM = ("valid_format", "without_box")
_COMPARED = ("valid_format", "union_iou", "f1", "matched_iou")


def summarise(rows: Mapping[str, Sequence[Row]], aggregates: Sequence[Aggregate] = ()) -> dict[str, Any]:
    """`systems` (a cell per measure), `paired` (the last system against each other one on the same rows), `failures`.

    Rows with the same `cluster` share an image; those of the same `draw` are one pass through the questions.

    Args:
        rows: by system, every system with the same questions and draws in the same order.
        aggregates: numbers over many rows beside their accuracy.
    """
    *others, last = rows
    paired = [difference for other in others for difference in _compare(rows, last, other)]
    _correct(paired)
    paired += [_compare_aggregate(rows, last, other, aggregate) for other in others for aggregate in aggregates]
    return {
        "clusters": len({_cluster(row) for row in rows[last]}),
        "systems": {system: _system(system_rows, aggregates) for system, system_rows in rows.items()},
        "paired": paired,
        "failures": {system: _failures(system_rows) for system, system_rows in rows.items()},
    }


def _cluster(row: Row) -> Hashable:
    return row.get("cluster") or ("alone", row["id"])


def _failures(rows: Sequence[Row]) -> dict[str, int]:
    """How many completions could not be read, did not end, or were not judged."""
    return {
        "rows": len(rows),
        "without_answer": sum(row["answer"] is None for row in rows),
        "unfinished": sum(not row["finished"] for row in rows),
        "not_judged": sum(row["correct"] is None for row in rows),
    }


def _system(rows: Sequence[Row], aggregates: Sequence[Aggregate]) -> dict[str, Any]:
    cells: dict[str, Any] = {
        measure: {name: _cell(part, _COLUMN[measure], statistics.share) for name, part in _by_dataset(rows).items()}
        for measure in _shares(rows)
    }
    cells |= {measure: _cell(rows, measure, statistics.share) for measure in _FORM if measure in rows[0]}
    cells |= {measure: _cell(rows, measure, statistics.mean_interval) for measure in _MEANS if measure in rows[0]}
    return cells | {aggregate.name: _aggregate(rows, aggregate) for aggregate in aggregates}


def _shares(rows: Sequence[Row]) -> list[str]:
    """Right answers, and leniently where some row has that of its own: a judge is asked about the answer alone."""
    return [name for name in _SHARES if name == "accuracy" or any(row[_COLUMN[name]] is not None for row in rows)]


def _by_dataset(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """All rows under 'all', then the rows of each dataset under its name, if there are several."""
    return {"all": list(rows), **{name: [row for row in rows if row["dataset"] == name] for name in _parts(rows)}}


def _parts(rows: Sequence[Row]) -> list[str]:
    """The datasets, if there are several: a single one would be counted, tested and shown twice."""
    names = sorted({row["dataset"] for row in rows})
    return names if len(names) > 1 else []


def _cell(rows: Sequence[Row], column: str, interval: Callable[..., Cell]) -> dict[str, Any]:
    """The number, its interval and n; where the rows were drawn several times, also the mean of each draw."""
    kept = [row for row in rows if row[column] is not None]
    values, draws = [float(row[column]) for row in kept], [row.get("draw", 0) for row in kept]
    return {**interval(values, [_cluster(row) for row in kept], draws)._asdict(), **_spread(values, draws)}


def _spread(values: Sequence[float], draws: Sequence[int]) -> dict[str, Any]:
    by_draw = [[value for value, of in zip(values, draws, strict=True) if of == draw] for draw in sorted(set(draws))]
    means = [float(np.mean(drawn)) for drawn in by_draw]
    return {"draws": means, "spread": float(np.std(means, ddof=1))} if len(means) > 1 else {}


def _aggregate(rows: Sequence[Row], aggregate: Aggregate) -> dict[str, Any]:
    return aggregate.cell(rows, [_cluster(row) for row in rows])._asdict()


def _compare_aggregate(
    rows: Mapping[str, Sequence[Row]], of: str, against: str, aggregate: Aggregate
) -> dict[str, Any]:
    clusters = [_cluster(row) for row in rows[of]]
    names = {"metric": aggregate.name, "dataset": "all", "of": of, "against": against}
    return {**names, **aggregate.difference(rows[of], rows[against], clusters)._asdict()}


def _compare(rows: Mapping[str, Sequence[Row]], of: str, against: str) -> list[dict[str, Any]]:
    """Every paired difference of two systems; those of shares also carry McNemar's p."""
    datasets = ["all", *_parts(rows[of])]
    measures = [(measure, _COLUMN[measure], dataset) for measure in _shares(rows[of]) for dataset in datasets]
    measures += [(measure, measure, "all") for measure in _COMPARED if measure in rows[of][0]]
    return [
        {"metric": measure, "dataset": dataset, "of": of, "against": against}
        | _difference(_pairs(rows[of], rows[against], column, dataset), tested=measure not in _MEANS)
        for measure, column, dataset in measures
    ]


def _pairs(a: Sequence[Row], b: Sequence[Row], column: str, dataset: str) -> list[tuple[float, float, Row]]:
    """Both values, and the row, wherever both systems have one."""
    together = [(one, other) for one, other in zip(a, b, strict=True) if dataset in ("all", one["dataset"])]
    return [
        (float(one[column]), float(other[column]), one)
        for one, other in together
        if one[column] is not None and other[column] is not None
    ]


def _difference(pairs: Sequence[tuple[float, float, Row]], *, tested: bool) -> dict[str, Any]:
    a, b, rows = [one for one, _, _ in pairs], [other for _, other, _ in pairs], [row for _, _, row in pairs]
    clusters, draws = [_cluster(row) for row in rows], [row.get("draw", 0) for row in rows]
    return {
        **statistics.paired_difference(a, b, clusters, draws=draws)._asdict(),
        **statistics.outcomes(a, b)._asdict(),
        "detectable": statistics.detectable(a, b, clusters),
        **({"p": statistics.mcnemar(a, b, clusters)} if tested else {}),
    }


def _correct(paired: Sequence[dict[str, Any]]) -> None:
    """Put Holm's p beside each p: the comparisons of a table are one family."""
    tested = [difference for difference in paired if "p" in difference]
    for difference, corrected in zip(tested, statistics.holm([one["p"] for one in tested]), strict=True):
        difference["p_holm"] = corrected


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
    """The before-and-after table of a summary, each number over its 95 % interval and n, for a terminal of 80 columns.

    The last column is the paired difference: of answers against the base asked directly, which is the base at its best;
    of format and boxes against the base under the same prompt; of both against the other run where there is one.
    """
    systems = result["systems"]
    grid = Table(title=f"{result['benchmark']}: {result['n']} questions", title_justify="left", box=SIMPLE_HEAD)
    grid.caption, grid.caption_justify = _caption(result), "left"
    grid.add_column("", overflow="fold")
    for system in systems:
        grid.add_column(_TITLES.get(system, escape(plain(system))), justify="right", overflow="fold")
    other, last = _other(systems), list(systems)[-1]
    against = "other" if other else "base" if last != "base" else "direct"
    grid.add_column(f"{last}\n− {against}\npaired", justify="right")
    for metric, dataset in _lines(systems):
        cells = {system: value[metric][dataset] if dataset else value[metric] for system, value in systems.items()}
        shown = [_shown(cell, metric, system) for system, cell in cells.items()]
        difference = _shown_difference(result["paired"], metric, dataset or "all", other, cells[last]["n"])
        grid.add_row(_label(metric, dataset), *shown, difference)
    return grid


_PAIRED = (
    "Paired: on the same questions, shares in percentage points; coloured where better or worse is shown. p: "
    "McNemar's, corrected for all of the table (Holm). min: the smallest difference that would be shown four times in "
    "five. A dash for the interval: fewer than ten images, or none that differs."
)


def _caption(result: Mapping[str, Any]) -> str:
    lines = ["Below each number its 95 % interval, and the rows behind it."]
    lines += [_PAIRED]
    if (shared := result["clusters"]) < result["n"]:
        lines += [f"The {result['n']} questions are about {shared} images, which the intervals know."]
    lines += [said for name, counts in result["failures"].items() if (said := _failed(name, counts))]
    return "\n".join(map(escape, lines))


def _failed(system: str, counts: Mapping[str, int]) -> str:
    """ "base: of 500 completions 12 without answer, 3 unfinished.", or nothing."""
    kinds = [f"{n} {kind.replace('_', ' ')}" for kind, n in counts.items() if n and kind != "rows"]
    return f"{plain(system)}: of {counts['rows']} completions {', '.join(kinds)}." if kinds else ""


def _other(systems: Mapping[str, Any]) -> str | None:
    """The other run, which stands before the one in question."""
    *before, _ = systems
    return next((name for name in before if name not in _TITLES), None)


def _lines(systems: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(metric, dataset) of every row of the table; None where a metric is not split by dataset."""
    datasets = next(iter(systems.values()))["accuracy"]
    lines: list[tuple[str, str | None]] = [("accuracy", name) for name in datasets]
    lines += [("accuracy_lenient", "all")]
    lines += [(name, None) for name in ("valid_format", "union_iou", "f1", "tokens", *_aggregates(systems))]
    return [(name, dataset) for name, dataset in lines if any(name in system for system in systems.values())]


def _aggregates(systems: Mapping[str, Any]) -> list[str]:
    known = (*_SHARES, *_FORM, *_MEANS)
    return [name for name in next(iter(systems.values())) if name not in known]


def _label(metric: str, dataset: str | None) -> str:
    return _LABELS.get(metric, metric) if dataset in (None, "all") else f"  {escape(plain(dataset))}"


def _shown(cell: Mapping[str, Any], metric: str, system: str) -> str:
    if cell["value"] is None or (system == "base_direct" and metric in _NOT_ASKED_DIRECTLY):
        return "–"
    value, low, high = (_written(cell[key], metric) for key in ("value", "low", "high"))
    unit = " %" if metric in _IN_PERCENT else ""
    return f"{value}{unit}\n[dim]{low}–{high}\nn {cell['n']}[/]"


def _shown_difference(paired: Sequence[Mapping[str, Any]], metric: str, dataset: str, other: str | None, n: int) -> str:
    """The difference over its interval, its p, what could have been seen, and its n where that is not the line's."""
    against = other or ("base" if metric in _NOT_ASKED_DIRECTLY else "base_direct")
    wanted = {"metric": metric, "dataset": dataset, "against": against}
    row = next((row for row in paired if wanted.items() <= row.items()), None)
    if row is None or row["difference"] is None:
        return "–"
    colour = {"better": "green", "worse": "red"}.get(verdict(row), "default")
    low, high = (_written(row[key], metric, sign="+") for key in ("low", "high"))
    small = [
        "–" if row["low"] is None else f"{low}…{high}",
        p_of(row),
        f"min {_written(row['detectable'], metric)}" if row.get("detectable") is not None else "",
        f"n {row['n']}" if row["n"] != n else "",
    ]
    below = "\n".join(filter(None, small))
    return f"[{colour}]{_written(row['difference'], metric, sign='+')}[/]\n[dim]{below}[/]"


_IN_PERCENT = (*_SHARES, *_FORM)


def _written(value: float | None, metric: str, sign: str = "") -> str:
    if value is None:
        return "?"
    if metric in _IN_PERCENT:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.{0 if metric == 'tokens' else 2}f}"
