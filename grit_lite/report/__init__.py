"""REPORT: a run folder becomes one HTML page that needs nothing else: no network, no script, no other file.

Reads files only, so a report can be written for a run of last year, for one that failed, or while one is training.
This file gathers and measures; `report.html.j2` says how it looks. All text passes `plain` and jinja2's escaping on its
way into the page, because questions, answers and completions are other people's words.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grit_lite.boxes import PALETTE
from grit_lite.errors import UsageError
from grit_lite.pages import environment
from grit_lite.pages.outcomes import OUTCOMES
from grit_lite.pages.table import SYSTEMS
from grit_lite.report import prose
from grit_lite.report.completions import shown, timelines
from grit_lite.report.curves import curves, start_and_end
from grit_lite.report.evaluation import benchmark
from grit_lite.run import METRICS, SAMPLES, TIMING, read_rows, replace_text

Row = Mapping[str, Any]


def write_report(run_folder: Path) -> Path:
    """The path of the report.html that was written into a run folder, finished or not.

    Raises:
        UsageError: the folder holds no run.
    """
    if not (run_folder / "run.json").is_file():
        raise UsageError(f"There is no run to report on in {run_folder}: it has no run.json. Name a folder of runs/.")
    html = environment(Path(__file__).parent).get_template("report.html.j2").render(page(run_folder))
    path = run_folder / "report.html"
    replace_text(path, html)
    return path


def page(folder: Path) -> dict[str, Any]:
    """Everything that the page says, by the names that the template uses."""
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    metrics = list(read_rows(folder / METRICS))
    recipe = _recipe(folder)
    reward = start_and_end([row.get("reward") for row in metrics])
    benchmarks = [benchmark(path) for path in sorted((folder / "eval").glob("*.json"))]
    return {
        "name": folder.resolve().name,
        "title": prose.title(recipe, facts),
        "opening": prose.opening(recipe, facts, reward),
        "alert": prose.alert(recipe, facts, metrics[-1]["step"] if metrics else 0),
        "glance": prose.glance(reward, benchmarks),
        "curves": curves(metrics),
        "timelines": [[shown(row, folder) for row in line] for line in timelines(read_rows(folder / SAMPLES))],
        "benchmarks": benchmarks,
        "system_titles": SYSTEMS,
        "outcomes": OUTCOMES,
        "settings": prose.settings(recipe),
        "timing": prose.timing(_timing(list(read_rows(folder / TIMING)))),
        "changes": facts.get("changes", []),
        "provenance": prose.provenance(facts),
        "limits": prose.limits(recipe, benchmarks),
        "palette": PALETTE,
    }


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def _timing(rows: Sequence[Row]) -> dict[str, float]:
    """The median over steps of everything timed, and the highest memory."""
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    columns = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {
        name: max(values) if "memory" in name else statistics.median(values)
        for name, values in columns.items()
        if values
    }
