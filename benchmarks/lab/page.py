"""docs/lab.md with its figures. It reads results.jsonl and the study, and nothing else.

`page.md.j2` is its frame; what a person makes of the tables of a group stands in `readings/`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.lab import results
from benchmarks.lab.analysis import Results
from benchmarks.lab.figures import write_figures
from benchmarks.lab.headline import with_headline
from benchmarks.lab.measuring import EXAMINED
from benchmarks.lab.study import ASKED, DEFAULT, Study
from benchmarks.lab.tables import Tables
from benchmarks.lab.wording import between
from grit_lite.errors import DataError

TEMPLATE = "page.md.j2"


def write_page(output: Path, docs: Path, study: Study) -> Path:
    """The page, written from the rows in `output`, and the table of the README beside `docs`, where there is one.

    Raises as `read_results`.
    """
    found = read_results(output, study)
    figures = write_figures(found, study, docs / "lab")
    page = docs / "lab.md"
    places = {name: path.relative_to(docs).as_posix() for name, path in figures.items()}
    page.write_text(render(found, study, places, os.path.relpath(output / results.RESULTS, docs)))
    readme = docs.parent / "README.md"
    if readme.is_file():
        readme.write_text(with_headline(readme.read_text(), found, study))
    return page


def read_results(output: Path, study: Study) -> Results:
    """The rows in `output` of runs that the study has as it is now.

    Raises:
        DataError: there are none of the default arm, or of a way to ask the untrained model, whose best is looked for.
    """
    header, rows = results.read(output)
    found = Results(header, results.of_study(rows, study))
    needed = [DEFAULT, *(arm.id for arm in study.arms() if arm.method in ASKED)]
    if lacking := [arm for arm in needed if arm not in found.rows]:
        raise DataError(
            f"{output} has no rows of {', '.join(lacking)}, which everything stands beside. Make them: "
            "python -m benchmarks.lab --only default untrained"
        )
    return found


def render(found: Results, study: Study, figures: Mapping[str, str], rows_file: str) -> str:
    """The page's text; figures by name and the file of the rows as the page is to link them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    told = {"study": study, "tables": Tables(found, study), "facts": facts(found, study)}
    text = environment.get_template(TEMPLATE).render(**told, figures=figures, rows_file=rows_file)
    return text.rstrip() + "\n"


def facts(found: Results, study: Study) -> dict[str, Any]:
    """What is said of the whole: counts, machine, versions, times."""
    rows = [row for of_arm in found.rows.values() for row in of_arm]
    trained = [row for row in rows if row["method"] not in ASKED]
    default = found.rows[DEFAULT]
    whole = [row["train"] for row in default if row["train"].get("resumed") is False]
    wanted = study.jobs()
    return {
        "recipe": study.recipe_of(next(arm for arm in study.arms() if arm.id == DEFAULT), seed=0),
        "runs": len(rows),
        "trained": len(trained),
        "commits": sorted({row["commit"] for row in rows if row["commit"]}),
        "wanted": len(wanted),
        "missing": [f"{arm.id} seed {seed}" for arm, seed in results.missing([*rows, *found.failed], study, wanted)],
        "failed": found.failed,
        "dates": sorted({row["date"][:10] for row in rows}),
        "machines": sorted({row["machine"] for row in rows}),
        "versions": default[0]["versions"],
        "weights": found.header["weights_sha256"],
        "questions": found.header["questions_sha256"],
        "examined": min(EXAMINED, len(found.header["scenes"]["relation"])),
        "asked": {name: len(scenes) for name, scenes in found.header["scenes"].items()},
        "train_cpu": round(fmean(train["cpu_seconds"] for train in whole)) if whole else None,
        "measuring": between([round(row["measure"]["cpu_seconds"]) for row in rows if row["method"] == "grpo"]),
        "measure_cpu": round(fmean(row["measure"]["cpu_seconds"] for row in default)),
        "cpu_hours": sum(row["measure"]["cpu_seconds"] + row["train"].get("cpu_seconds", 0) for row in rows) / 3600,
        "best": {kind: found.best_untrained(kind) for kind in ("relation", "count")},
    }
