"""1 DATA: image, question and answer, checked before anything is trained on them.

Whatever the source (GRIT's JSONL, a folder, a Hugging Face dataset, the embedded twenty), a row becomes a `Triplet` or
a `BadRow` that says where it is and how to put it right. The files in order: `images` reads one image, `rows`, `hub`
and `grit` read rows, `triplet` is what they become, `checking` makes it, `sampling` chooses; `load` and `accept` are
the way in. What GRIT released is brought here by `fetch`: `download` is its network, `manifest` what has arrived.

In a source, width, height and boxes are in pixels of the image as stored. From here on they are of the upright image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from grit_lite import tiny
from grit_lite.errors import DataError, UsageError
from grit_lite.triplets.checking import Candidate, assemble, candidate
from grit_lite.triplets.grit import is_grit, read_grit, require_fetched
from grit_lite.triplets.hub import is_saved_dataset, read_hub
from grit_lite.triplets.images import MAX_IMAGE_PIXELS, open_image
from grit_lite.triplets.rows import FIELDS, BadRow, RawRow, read_jsonl
from grit_lite.triplets.sampling import sample
from grit_lite.triplets.triplet import COUNTING, Triplet, from_scene_question

__all__ = [
    "COUNTING",
    "MAX_IMAGE_PIXELS",
    "BadRow",
    "Loaded",
    "Triplet",
    "accept",
    "from_scene_question",
    "load",
    "open_image",
    "require_fetched",
    "sample",
]

_LISTED_ROWS = 50
_SOURCES = "Give a .jsonl file, a folder, a .parquet file, hf:NAME for a Hugging Face dataset, 'grit' or 'embedded'."


@dataclass(frozen=True)
class Loaded:
    """What a source holds.

    Attributes:
        sha256: over the triplets and the bytes of their images, not where they lie.
        rows: how many rows are good, as far as they were looked at; more than the triplets where some were drawn.
    """

    source: str
    triplets: list[Triplet]
    bad_rows: list[BadRow]
    sha256: str
    rows: int


def load(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    images: Path | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    limit: int | None = None,
    draw: tuple[int | None, int] | None = None,
) -> Loaded:
    """Every row of a source, checked to the last byte of its image; `grit-lite data check` is this function.

    Args:
        source: "embedded", "grit" or "grit:val" once fetched, a .jsonl file, a folder, a .parquet file, or
            "hf:NAME[[:CONFIGURATION]:SPLIT]". In a folder: triplets.jsonl, else metadata.jsonl (its images under
            `file_name`), else all *.jsonl, else what `datasets` saved there.
        columns: GRIT's name of a field -> its name in the source, where they differ.
        split: only rows of this split; of a Hugging Face dataset the split to read, "train" where none is given.
        images: the folder that image paths are relative to; otherwise the data's own, then `images/` in it.
        max_image_pixels: a larger image is a bad row, judged before it is decoded.
        limit: at most this many rows, from the top.
        draw: (how many, seed) of the `sample` that will be taken. Only images of its rows are then opened, and only its
            rows become triplets; but all, as without it, where anything is wrong with a row that was looked at.

    Raises:
        DataError: there is no such source, or it holds no rows. Bad rows do not raise here; see `accept`.
        NotFetched: it is not on this machine and has to be fetched first, or cannot be.
        UsageError: `columns` names a field that a triplet does not have.
    """
    columns = columns or {}
    if unknown := [field for field in columns if field not in FIELDS]:
        raise UsageError(f"columns names {unknown[0]!r}, which no triplet has. Fields are {', '.join(FIELDS)}.")
    raws = islice(_read(str(source), columns, split), limit)
    rows = [raw if isinstance(raw, BadRow) else candidate(raw, columns, images) for raw in raws]
    if split is not None:
        rows = _only_split(rows, split, str(source))
    if not rows:
        raise DataError(f'{source} holds no rows. A row is {{"question": …, "answer": …, "image": …}} on one line.')
    if draw is not None and (drawn := _drawn(rows, *draw)):
        triplets, bad_rows, digest = assemble(drawn, max_image_pixels)
        if not bad_rows:
            return Loaded(str(source), triplets, [], digest, len(rows))
    triplets, bad_rows, digest = assemble(rows, max_image_pixels)
    return Loaded(str(source), triplets, bad_rows, digest, len(triplets))


def accept(loaded: Loaded, bad_rows: Literal["refuse", "skip"] = "refuse") -> list[Triplet]:
    """The triplets to work with.

    Raises:
        DataError: there are bad rows and they are not to be skipped, or nothing is left.
    """
    if loaded.bad_rows and (bad_rows == "refuse" or not loaded.triplets):
        raise DataError(_refusal(loaded))
    return loaded.triplets


def _read(source: str, columns: Mapping[str, str], split: str | None) -> Iterator[RawRow | BadRow]:
    path = Path(source)
    if source == "embedded":
        return read_jsonl(tiny.TRIPLETS, columns)
    if is_grit(source):
        return read_grit(source)
    if source.startswith("hf:"):
        return read_hub(source.removeprefix("hf:"), columns, split)
    if path.is_dir():
        return _read_folder(path, columns, split)
    if not path.is_file():
        raise DataError(f"There is no data at {source}. {_SOURCES}")
    if is_saved_dataset(path):
        return read_hub(source, columns, split)
    if path.suffix != ".jsonl":
        raise DataError(f"{source} is neither a .jsonl nor a .parquet file. {_SOURCES}")
    return read_jsonl(path, columns)


def _read_folder(folder: Path, columns: Mapping[str, str], split: str | None) -> Iterator[RawRow | BadRow]:
    if (folder / "triplets.jsonl").is_file():
        return read_jsonl(folder / "triplets.jsonl", columns)
    if (folder / "metadata.jsonl").is_file():
        return read_jsonl(folder / "metadata.jsonl", {"image": "file_name", **columns})
    if files := sorted(path for path in folder.glob("*.jsonl") if path.is_file()):
        return (row for path in files for row in read_jsonl(path, columns))
    if is_saved_dataset(folder):
        return read_hub(str(folder), columns, split)
    raise DataError(f"The folder {folder} holds no .jsonl file and no saved dataset. {_SOURCES}")


def _only_split(rows: Sequence[Candidate | BadRow], split: str, source: str) -> list[Candidate | BadRow]:
    """The rows of a split, and the bad ones: they may belong to it."""
    kept = [row for row in rows if isinstance(row, BadRow) or row.row.split == split]
    if rows and not kept:
        splits = sorted({row.row.split for row in rows if isinstance(row, Candidate)})
        raise DataError(f"{source} has no rows of split {split!r}; it has {', '.join(map(repr, splits))}.")
    return kept


def _drawn(rows: Sequence[Candidate | BadRow], n: int | None, seed: int) -> list[Candidate]:
    """The rows that will be drawn; none where a row is bad or there are not more than are asked for."""
    good = [row for row in rows if isinstance(row, Candidate)]
    if n is None or not 0 < n < len(good) or len(good) < len(rows):
        return []
    return sample(good, n, seed)


def _refusal(loaded: Loaded) -> str:
    good, bad = len(loaded.triplets), len(loaded.bad_rows)
    listed = [f"  {row}" for row in loaded.bad_rows[:_LISTED_ROWS]]
    if bad > _LISTED_ROWS:
        listed.append(f"  … and {bad - _LISTED_ROWS} more; `grit-lite data check {loaded.source}` lists them all")
    way_out = "Put them right, or leave them out with --bad-rows skip." if good else "No row is left to train on."
    return "\n".join([f"{loaded.source}: {bad} of {good + bad} rows cannot be used:", *listed, way_out])
