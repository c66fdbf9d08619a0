"""From rows to triplets: the image opened, its size and the boxes compared with it, duplicates found."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from grit_lite.boxes import Box, Size
from grit_lite.errors import DataError
from grit_lite.triplets.images import ImageFacts, inspect, read_bytes
from grit_lite.triplets.rows import BadRow, RawRow, Row, check_row, image_path, row_id
from grit_lite.triplets.triplet import Triplet

_DECODING_THREADS = min(4, os.cpu_count() or 1)  # each may hold one whole image
_SLACK = 0.5  # pixels by which annotation tools round a box over the edge; it is cut there


@dataclass(frozen=True)
class Candidate:
    """A row whose fields are right and whose image is yet to be opened."""

    raw: RawRow
    row: Row
    image: Path | bytes

    @property
    def dataset(self) -> str:
        return self.row.dataset


def candidate(raw: RawRow, columns: Mapping[str, str], images: Path | None) -> Candidate | BadRow:
    """The row, checked field by field; `images` wins over the folders that the source would look in."""
    try:
        row = check_row(raw, columns)
        roots = raw.roots if images is None else (images,)
        return Candidate(raw, row, image_path(row.image, roots) if isinstance(row.image, str) else row.image)
    except DataError as error:
        return raw.bad(error)


def assemble(rows: Sequence[Candidate | BadRow], max_image_pixels: int) -> tuple[list[Triplet], list[BadRow], str]:
    """The triplets, all bad rows in the order of the source, and the SHA-256 of the triplets and their images."""
    facts = _inspect_all((row.image for row in rows if isinstance(row, Candidate)), max_image_pixels)
    triplets, bad_rows, digest, seen = [], [], sha256(), {}
    for row in rows:
        if isinstance(row, BadRow):
            bad_rows.append(row)
            continue
        try:
            image = _readable(facts[row.image], row.row)
            triplet = _triplet(row, image)
            _refuse_duplicate(triplet, image, row.raw, seen)
        except DataError as error:
            bad_rows.append(row.raw.bad(error))
            continue
        triplets.append(triplet)
        digest.update(_canonical(triplet, image))
    return triplets, bad_rows, digest.hexdigest()


def _inspect_all(images: Iterable[Path | bytes], max_image_pixels: int) -> dict[Path | bytes, ImageFacts | DataError]:
    """What each distinct image turned out to be. Decoding leaves Python's lock, so threads help."""

    def look(image: Path | bytes) -> ImageFacts | DataError:
        try:
            return inspect(image if isinstance(image, bytes) else read_bytes(image), max_image_pixels)
        except DataError as error:
            return error

    distinct = list(dict.fromkeys(images))
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        return dict(zip(distinct, pool.map(look, distinct), strict=True))


def _readable(facts: ImageFacts | DataError, row: Row) -> ImageFacts:
    if isinstance(facts, DataError):
        name = "the image" if isinstance(row.image, bytes) else f"image {str(row.image)!r}"
        raise DataError(f"{name}: {facts}") from facts
    return facts


def _triplet(found: Candidate, image: ImageFacts) -> Triplet:
    row = found.row
    boxes = [Box(*numbers) for numbers in row.bboxs]
    if problems := [*_size_problems(row, image), *_box_problems(boxes, image.stored)]:
        raise DataError("; ".join(problems))
    return Triplet(
        id=row_id(found.raw),
        question=row.question,
        answer=_as_text(row.answer),
        image=found.image,
        size=image.size,
        boxes=tuple(image.upright_box(_cut(box, image.stored)) for box in boxes),
        dataset=row.dataset,
        split=row.split,
    )


def _size_problems(row: Row, image: ImageFacts) -> Iterator[str]:
    width, height = image.stored
    declared = (width if row.width is None else row.width, height if row.height is None else row.height)
    if declared == (width, height):
        return
    said = f"{declared[0]:.10g} x {declared[1]:.10g}"
    if declared == image.size:
        yield (
            f"width and height are those of the turned image, {said}; the file stores {width} x {height} with EXIF "
            f"orientation {image.orientation}. Give size and boxes in stored pixels, or save the image upright"
        )
    else:
        yield f"width and height say {said}, the image has {width} x {height}; its boxes may be of another size too"


def _box_problems(boxes: Sequence[Box], size: Size) -> Iterator[str]:
    for number, box in enumerate(boxes, start=1):
        if problem := _box_problem(box, size):
            yield f"box {number} [{', '.join(f'{value:.10g}' for value in box)}] {problem}"


def _box_problem(box: Box, size: Size) -> str | None:
    width, height = size
    if min(box) < -_SLACK or max(box.x1, box.x2) > width + _SLACK or max(box.y1, box.y2) > height + _SLACK:
        return f"reaches outside the image, {width} x {height}; give pixels of the image as stored"
    cut = _cut(box, size)
    if cut.x1 >= cut.x2 or cut.y1 >= cut.y2:
        return "has no area; it has to be [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
    if max(box) <= 1 < min(size):
        return f"looks like fractions of the image; multiply by {width} and {height}"
    return None


def _cut(box: Box, size: Size) -> Box:
    width, height = size
    return Box(max(box.x1, 0.0), max(box.y1, 0.0), min(box.x2, float(width)), min(box.y2, float(height)))


def _as_text(answer: str | int | float) -> str:
    """A whole number is written without a fraction, as a count column that passed through a table tool has it."""
    return f"{answer:.0f}" if isinstance(answer, float) and answer.is_integer() else str(answer)


def _refuse_duplicate(triplet: Triplet, image: ImageFacts, raw: RawRow, seen: dict[tuple[str, ...], RawRow]) -> None:
    first = seen.setdefault((triplet.question, triplet.answer, image.sha256), raw)
    if first is not raw:
        raise DataError(f"the same question, image and answer as {first.file}:{first.line}; delete one of them")


def _canonical(triplet: Triplet, image: ImageFacts) -> bytes:
    """What makes a triplet what it is, as one line; not where its files lie."""
    what = [triplet.question, triplet.answer, image.sha256, triplet.boxes, triplet.dataset, triplet.split]
    return f"{json.dumps(what)}\n".encode()
