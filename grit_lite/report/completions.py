"""Completions as the report shows them: cut into coloured pieces, beside their picture with the boxes drawn.

Rows come from files that a model wrote into. A row names its picture, but only pictures inside its own folder are
opened, and every picture is decoded, drawn on and encoded anew.
"""

import base64
import functools
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from grit_lite.answer import parse, plain
from grit_lite.boxes import Box, draw
from grit_lite.errors import DataError
from grit_lite.triplets.images import open_image

Row = Mapping[str, Any]

TEXT_LIMIT = 6_000  # characters of one completion that are shown
BOX_LIMIT = 40  # boxes of one completion that are drawn
PICTURE_LIMIT = 512  # pixels of the longer side
TIMELINES = 4  # triplets whose completions are shown over time


class Piece(NamedTuple):
    """A stretch of a completion: `text`, a `tag`, or a `box` with its place in the picture (None: it is not drawn)."""

    text: str
    kind: str
    box: int | None = None


_TAG = re.compile(r"</?(?:think|rethink|answer)>")


def pieces(completion: str, boxes: Sequence[Box]) -> list[Piece]:
    """A completion cut where its look changes: `boxes` are the drawn ones, in pixels of the picture."""
    text = plain(completion[:TEXT_LIMIT])
    written = parse(text).written[: 2 * BOX_LIMIT]
    numbers = _box_numbers([box.numbers for box in written], boxes)
    spans = [(match.start(), match.end(), "tag", None) for match in _TAG.finditer(text)]
    spans += [(box.start, box.end, "box", numbers.get(box.numbers)) for box in written]
    cut, place = [], 0
    for start, end, kind, box in sorted(spans, key=lambda span: span[:2]):
        if start >= place:
            cut += [Piece(text[place:start], "text"), Piece(text[start:end], kind, box)]
            place = end
    cut.append(Piece(text[place:], "text"))
    if len(completion) > TEXT_LIMIT:
        cut.append(Piece(f" … and {len(completion) - TEXT_LIMIT:,} characters more", "tag"))
    return [piece for piece in cut if piece.text]


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


def shown(row: Row, folder: Path) -> dict[str, Any]:
    """A row of samples or evaluation, ready for the template: its picture with boxes, and its completion in pieces."""
    boxes = _drawable(row.get("boxes"))
    image = _picture(folder, row.get("image"))
    picture = _data_uri(image, row.get("size") or image.size, boxes) if image else None
    return {**row, "pieces": pieces(str(row.get("completion", "")), boxes), "picture": picture, "boxes": boxes}


def _drawable(boxes: Any) -> list[Box]:
    """The different boxes of a row, in order, as far as they are four finite numbers."""
    rows = [tuple(box) for box in boxes or () if isinstance(box, list | tuple)]
    four = [box for box in rows if len(box) == 4 and all(isinstance(n, int | float) and math.isfinite(n) for n in box)]
    return [Box(*box) for box in dict.fromkeys(four)][:BOX_LIMIT]


@functools.lru_cache(maxsize=64)  # the same picture is shown at several steps and for several systems
def _picture(folder: Path, name: Any) -> Image.Image | None:
    """The image that a row names, or None: outside the folder is not looked at, and a damaged one is not shown."""
    if not isinstance(name, str) or not (folder / name).resolve().is_relative_to(folder.resolve()):
        return None
    try:
        return open_image(folder / name)
    except DataError:
        return None


def _data_uri(picture: Image.Image, size: Sequence[int], boxes: Sequence[Box]) -> str:
    """The picture, made small and encoded anew, with boxes given in pixels of an image of `size` drawn on it."""
    small = picture.copy()
    small.thumbnail((PICTURE_LIMIT, PICTURE_LIMIT))
    across, down = small.width / size[0], small.height / size[1]
    drawn = draw(small, [Box(b.x1 * across, b.y1 * down, b.x2 * across, b.y2 * down) for b in boxes])
    exact = _encoded(drawn, "png")
    return exact if len(exact) < 150_000 else _encoded(drawn, "jpeg")  # a photograph is ten times smaller as JPEG


def _encoded(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, quality=85, subsampling=0)  # thin coloured lines need full colour resolution
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def timelines(rows: Iterable[Row]) -> list[list[Row]]:
    """A few triplets at their first, middle and last step: the longest spans of steps, one of each dataset in turn.

    Of a group's completions it is the first one, not the best one.
    """
    seen: dict[str, dict[int, Row]] = {}
    for row in rows:
        seen.setdefault(row["triplet"], {}).setdefault(row["step"], row)
    spans = sorted(seen.values(), key=lambda steps: min(steps) - max(steps))
    turn: Counter[str] = Counter()
    ranked = []
    for steps in spans:
        dataset = str(next(iter(steps.values())).get("dataset"))
        ranked.append((turn[dataset], steps))
        turn[dataset] += 1
    chosen = [steps for _, steps in sorted(ranked, key=lambda pair: pair[0])[:TIMELINES]]
    return [[steps[step] for step in _first_middle_last(sorted(steps))] for steps in chosen]


def _first_middle_last(steps: Sequence[int]) -> list[int]:
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]})
