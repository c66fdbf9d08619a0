"""results.jsonl: one row a finished or failed run, kept as soon as it is written. The last row of a run counts.

The first row is the header: which weights every run began with, and which scenes the questions are about. Runs that
began with other weights, or were asked other questions, cannot be compared with these and need a folder of their own.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.lab.study import Arm, Study
from grit_lite.errors import DataError, RecipeError
from grit_lite.recipe import check
from grit_lite.run import read_rows

RESULTS = "results.jsonl"
Row = dict[str, Any]


def append(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row that a power cut does not take away any more."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with FileLock(folder / ".lock"), (folder / RESULTS).open("ab") as file:
        _end_torn_line(folder / RESULTS, file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _end_torn_line(path: Path, file: Any) -> None:
    """What a process left half written when it died is cut off."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        file.truncate(data.rfind(b"\n") + 1)


def begin(folder: Path, header: Mapping[str, Any]) -> None:
    """Write the header of a new file.

    Raises:
        DataError: the file that is there has another one.
    """
    there = next(read_rows(folder / RESULTS), None)
    if there is None:
        append(folder, header)
    elif differing := [key for key in header if there.get(key) != json.loads(json.dumps(header[key]))]:
        raise DataError(
            f"{folder / RESULTS} has another {differing[0]} than this version of the package, so its runs cannot be "
            "compared with new ones. Name another folder: --output."
        )


def read(folder: Path) -> tuple[Row, list[Row]]:
    """The header, and the last row of each (arm, seed).

    Raises:
        DataError: there is no header.
    """
    rows = read_rows(folder / RESULTS)
    header = next(rows, {})
    if "scenes" not in header:
        raise DataError(f"{folder / RESULTS} is missing, or not of the laboratory. Make it: python -m benchmarks.lab")
    last = {(row["arm"], row["seed"]): row for row in rows}
    return header, list(last.values())


def missing(rows: Iterable[Mapping[str, Any]], study: Study, jobs: Iterable[tuple[Arm, int]]) -> list[tuple[Arm, int]]:
    """The runs without a row, with a failed one, or with one of another recipe than they have by now."""
    done = {(row["arm"], row["seed"]): row for row in rows if "error" not in row}
    return [(arm, seed) for arm, seed in jobs if not _is_of(done.get((arm.id, seed)), study, arm, seed)]


def of_study(rows: Iterable[Row], study: Study) -> list[Row]:
    """The rows of runs that the study has as it is now; failed ones too."""
    arms = {arm.id: arm for arm in study.arms()}
    known = [row for row in rows if row["arm"] in arms and row["seed"] in arms[row["arm"]].seeds]
    return [row for row in known if _is_of(row, study, arms[row["arm"]], row["seed"])]


def _is_of(row: Mapping[str, Any] | None, study: Study, arm: Arm, seed: int) -> bool:
    if row is None or row["method"] != arm.method:
        return False
    try:
        return check(row["recipe"], source="a row") == study.recipe_of(arm, seed)
    except RecipeError:  # of a key or a value that there is no more
        return False
