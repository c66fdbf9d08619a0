"""Rows as the report shows them: beside their picture with the boxes drawn on it, and a few of them over time."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_lite.boxes import Box, draw
from grit_lite.pages.completions import PICTURE_LIMIT, data_uri, drawable, pieces, stated_size, stored_picture

Row = Mapping[str, Any]

TIMELINES = 4  # triplets whose completions are shown over time


def shown(row: Row, folder: Path) -> dict[str, Any]:
    """A row of samples or evaluation, ready for the template: its picture with boxes, and its completion in pieces."""
    boxes = drawable(row.get("boxes"))
    name, size = row.get("image"), stated_size(row.get("size"))
    picture = _drawn_uri(folder, name, size, tuple(boxes)) if isinstance(name, str) else None
    return {**row, "pieces": pieces(str(row.get("completion", "")), boxes), "picture": picture, "boxes": boxes}


@functools.lru_cache(maxsize=64)  # at several steps and for several systems the boxes are often the same, or none
def _drawn_uri(folder: Path, name: str, size: tuple[int, int] | None, boxes: Sequence[Box]) -> str | None:
    """The picture, if there is one, made small and encoded anew with boxes in pixels of an image of `size` on it."""
    picture = stored_picture(folder, name)
    if picture is None:
        return None
    small = picture.copy()
    small.thumbnail((PICTURE_LIMIT, PICTURE_LIMIT))
    width, height = size or picture.size
    across, down = small.width / width, small.height / height
    drawn = draw(small, [Box(b.x1 * across, b.y1 * down, b.x2 * across, b.y2 * down) for b in boxes])
    exact = data_uri(drawn, "png")
    return exact if len(exact) < 150_000 else data_uri(drawn, "jpeg")  # a photograph is ten times smaller as JPEG


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
