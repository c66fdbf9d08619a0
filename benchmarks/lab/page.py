"""docs/lab.md with its figures. It reads results.jsonl and the study, and nothing else."""

import os
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.lab import results
from benchmarks.lab.analysis import Results
from benchmarks.lab.figures import write_figures
from benchmarks.lab.study import DEFAULT, Study
from benchmarks.lab.tables import Tables
from grit_lite.errors import DataError

TEMPLATE = "page.md.j2"


def write_page(output: Path, docs: Path, study: Study) -> Path:
    """The page, written from the rows in `output`.

    Raises:
        DataError: there are no rows of the default arm and of the untrained model.
    """
    header, rows = results.read(output)
    found = Results(header, results.of_study(rows, study))
    if DEFAULT not in found.rows or not any(arm.startswith("untrained/") for arm in found.rows):
        raise DataError(
            f"{output} has no rows of {DEFAULT} and the untrained model, which every table stands beside. Make them: "
            "python -m benchmarks.lab --only default untrained"
        )
    figures = write_figures(found, study, docs / "lab")
    tables = Tables(found, study)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = docs / "lab.md"
    text = environment.get_template(TEMPLATE).render(
        study=study,
        tables=tables,
        figures={name: path.relative_to(docs).as_posix() for name, path in figures.items()},
        facts=facts(found, study),
        rows_file=os.path.relpath(output / results.RESULTS, docs),
    )
    page.write_text(text.rstrip() + "\n")
    return page


def facts(found: Results, study: Study) -> dict[str, Any]:
    """What is said of the whole: counts, machine, versions, times."""
    rows = [row for of_arm in found.rows.values() for row in of_arm]
    default = found.rows[DEFAULT]
    whole = [row["train"] for row in default if row["train"].get("resumed") is False]
    wanted = study.jobs()
    return {
        "runs": len(rows),
        "wanted": len(wanted),
        "missing": [f"{arm.id} seed {seed}" for arm, seed in results.missing([*rows, *found.failed], study, wanted)],
        "failed": found.failed,
        "dates": sorted({row["date"][:10] for row in rows}),
        "machines": sorted({row["machine"] for row in rows}),
        "versions": default[0]["versions"],
        "weights": found.header["weights_sha256"],
        "questions": found.header["questions_sha256"],
        "asked": {name: len(scenes) for name, scenes in found.header["scenes"].items()},
        "train_cpu": round(fmean(train["cpu_seconds"] for train in whole)) if whole else None,
        "measure_cpu": round(fmean(row["measure"]["cpu_seconds"] for row in default)),
        "cpu_hours": sum(row["measure"]["cpu_seconds"] + row["train"].get("cpu_seconds", 0) for row in rows) / 3600,
        "best": {kind: found.best_untrained(kind) for kind in ("relation", "count")},
    }
