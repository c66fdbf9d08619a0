"""Completions as pages show them: cut into coloured pieces, with the boxes that can be drawn and the stored picture.

Rows come from files that a model wrote into. A row names its picture, but only pictures inside its own folder are
opened, and every picture is decoded before it is shown.
"""

import base64
import functools
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from grit_lite.answer import parse, plain
from grit_lite.boxes import Box
from grit_lite.errors import DataError
from grit_lite.triplets.images import open_image

TEXT_LIMIT = 6_000  # characters of one completion that are shown
BOX_LIMIT = 40  # boxes of one completion that are drawn
FAR = 1e12  # no image reaches there; neither nan nor a number that no float can hold is below it
PICTURE_LIMIT = 512  # pixels of the longer side


class Piece(NamedTuple):
    """A stretch of a completion: `text`, a `tag`, or a `box` with its place in the picture (None: it is not drawn)."""

    text: str
    kind: str
    box: int | None = None


_TAG = re.compile(r"</?(?:think|rethink|answer)>")


def pieces(completion: str, boxes: Sequence[Box]) -> list[Piece]:
    """A completion cut where its look changes: `boxes` are the drawn ones, in pixels of the picture.

    Behind `TEXT_LIMIT` characters only the drawn boxes are shown that were not written before.
    """
    whole = plain(completion)
    text, written = whole[:TEXT_LIMIT], parse(whole).written
    numbers = _box_numbers(list(dict.fromkeys(box.numbers for box in written))[: 2 * BOX_LIMIT], boxes)
    spans = [(match.start(), match.end(), "tag", None) for match in _TAG.finditer(text)]
    inside = [box for box in written[: 2 * BOX_LIMIT] if box.end <= TEXT_LIMIT]
    spans += [(box.start, box.end, "box", numbers.get(box.numbers)) for box in inside]
    cut, place = [], 0
    for start, end, kind, box in sorted(spans, key=lambda span: span[:2]):
        if start >= place:
            cut += [Piece(text[place:start], "text"), Piece(text[start:end], kind, box)]
            place = end
    cut.append(Piece(text[place:], "text"))
    if len(whole) > TEXT_LIMIT:
        cut.append(Piece(f" … and {len(whole) - TEXT_LIMIT:,} characters more", "tag"))
        cut += _left_out(numbers, {piece.box for piece in cut})
    return [piece for piece in cut if piece.text]


def _left_out(numbers: Mapping[tuple[float, ...], int], shown: Set[int | None]) -> Iterator[Piece]:
    """The boxes among `numbers` that no piece shows, in the numbers that were written."""
    missing = {number: box for box, number in numbers.items() if number not in shown}
    for place, number in enumerate(sorted(missing)):
        yield Piece(", " if place else ", with ", "tag")
        yield Piece(f"[{', '.join(f'{side:g}' for side in missing[number])}]", "box", number)


def _box_numbers(written: Sequence[tuple[float, ...]], drawn: Sequence[Box]) -> dict[tuple[float, ...], int]:
    """Which drawn box each written one is, if any.

    A row keeps boxes in pixels of the picture and the text in the model's unit. One factor per axis lies between them:
    it is the one that finds every drawn box among the written ones.
    """
    for anchor in written if drawn else ():
        if 0 in anchor[2:]:
            continue
        across, down = drawn[0].x2 / anchor[2], drawn[0].y2 / anchor[3]
        scaled = {box: (box[0] * across, box[1] * down, box[2] * across, box[3] * down) for box in written}
        found = {box: n for box, place in scaled.items() for n, other in enumerate(drawn) if _near(place, other)}
        if len(set(found.values())) == len(drawn):
            return found
    return {}


def _near(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-3, abs_tol=0.05) for x, y in zip(a, b, strict=True))


def drawable(boxes: Any) -> list[Box]:
    """The different boxes of a row, in order, as far as they are four finite numbers."""
    listed = boxes if isinstance(boxes, list) else []
    rows = [tuple(box) for box in listed if isinstance(box, list)]
    four = [box for box in rows if len(box) == 4 and all(isinstance(n, int | float) and abs(n) < FAR for n in box)]
    return [Box(*box) for box in dict.fromkeys(four)][:BOX_LIMIT]


def stated_size(value: Any) -> tuple[int, int] | None:
    """(width, height) of the original picture as a row says them, if it does."""
    good = isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and 0 < n < 10**6 for n in value)
    return (value[0], value[1]) if good else None


@functools.lru_cache(maxsize=64)  # the same picture is shown at several steps and for several systems
def stored_picture(folder: Path, name: str) -> Image.Image | None:
    """The image that a row names, or None: outside the folder is not looked at, and a damaged one is not shown."""
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
        return open_image(folder / name) if inside else None
    except (DataError, ValueError):  # no file can be called so: a NUL, half a character
        return None


def data_uri(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, quality=85, subsampling=0)  # thin coloured lines need full colour resolution
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
