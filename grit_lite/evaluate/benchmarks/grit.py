"""The six sets of GRIT's own evaluation, in the form of its release: rows without images in `GRIT_data`.

A row is that of `grit_lite.triplets.grit`. The rows and images of VSR, TallyQA and GQA are those that `grit-lite data
fetch grit --split val` brings. The images of the other three lie in archives of MME, MathVista and OVDEval; a folder
with them is named by --source.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_lite.boxes import Numbers
from grit_lite.errors import DataError, NotFetched
from grit_lite.evaluate.benchmarks.benchmark import Benchmark, Row, xyxy
from grit_lite.evaluate.benchmarks.places import LOCAL, Place, copy_at
from grit_lite.triplets.grit import REPOSITORY, SPLITS, grit_folder, image_folder
from grit_lite.triplets.rows import BadRow, RawRow, check_row, read_jsonl

if TYPE_CHECKING:
    from datasets import Dataset

_NUMBER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,12})?")
_COLUMNS = ("question", "answer", "image", "bboxs", "dataset")


@dataclass(frozen=True, kw_only=True)
class GritFile(Benchmark):
    """One file of GRIT's release, `table`, beside a folder of its images."""

    def locate(self, source: str | Path | None) -> Place:
        """The folder of the file: a copy of one's own, else where `data fetch` puts it.

        Raises:
            NotFetched: the file is not there. The message says how to get it.
            DataError: it is not in the copy that was named.
        """
        folder = grit_folder()
        place = copy_at(source) if source is not None else Place(folder, folder, LOCAL)
        if not (place.folder / self.table).is_file():
            missing = NotFetched if source is None else DataError
            raise missing(f"{self.name}: there is no {self.table} in {place.folder}. {self._how_to_get()}")
        return place

    def _how_to_get(self) -> str:
        if self.table in SPLITS["val"]:
            return "Fetch it, with its images: grit-lite data fetch grit --split val"
        return (
            f"Fetch it: hf download {REPOSITORY} {self.table} --repo-type dataset --local-dir FOLDER; put the images "
            f"that its rows name into FOLDER/{self.images_in}; and give --source FOLDER."
        )

    def _table(self, place: Place, configuration: str) -> "Dataset":
        from datasets import Dataset

        rows = [_as_row(raw) for raw in read_jsonl(place.folder / self.table, {})]
        if not rows:
            raise DataError(f"{self.name}: {place.folder / self.table} holds no rows. {self._how_to_get()}")
        return Dataset.from_list(rows)


def _as_row(raw: RawRow | BadRow) -> dict[str, Any]:
    """The fields of a row in one type each: answers may be texts or numbers.

    Raises:
        DataError: it is not a row.
    """
    if isinstance(raw, BadRow):
        raise DataError(str(raw))
    try:
        row = check_row(raw, {})
    except DataError as error:
        raise DataError(str(raw.bad(error))) from error
    return {
        "question": row.question,
        "answer": f"{row.answer:.10g}" if isinstance(row.answer, float) else str(row.answer),
        "image": str(row.image),
        "bboxs": row.bboxs,
        "dataset": row.dataset,
    }


def _answered_boxes(row: Row) -> Iterable[Numbers]:
    """OVDEval's answer is the text of its box; so are its gold boxes where the row has no others."""
    numbers = [float(number) for number in _NUMBER.findall(row["answer"][:10_000])]
    return xyxy("bboxs")(row) or list(zip(*[iter(numbers)] * 4, strict=False))


def _set(name: str, file: str, rows: int, scorer: str = "rule", **others: Any) -> GritFile:
    return GritFile(
        **{
            "name": f"grit-{name}",
            "hub": REPOSITORY,
            "split": "val",
            "table": file,
            "rows": rows,
            "columns": _COLUMNS,
            "image": (),
            "image_file": "{image}",
            "images_in": image_folder(file),
            "prompt": "{question}",
            "gold": "{answer}",
            "boxes": xyxy("bboxs"),
            "part": "{dataset}",
            "scorer": scorer,
            "licence": "not stated; images: various",
            "schema": "the rows that GRIT's released scripts read, and public loaders of them",
            "verified": True,
            **others,
        }
    )


GRIT = (
    _set("vsr", "vsr_val.jsonl", 288),
    _set("tallyqa", "tallyqa_val.jsonl", 491, "number"),
    _set("gqa", "gqa_val.jsonl", 509),
    _set("mathvista", "mathvista_mini_val.jsonl", 1000),
    _set("mme", "mme_val.jsonl", 240, "yes_no"),
    _set("ovd-position", "ovd_position_val.jsonl", 2146, "box", gold="", boxes=_answered_boxes),
)
