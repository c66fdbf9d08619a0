"""Boxes: one unit inside the package, how each model family writes them, overlap, matching, drawing.

A `Box` is always in pixels of the original image. A model writes numbers in its own unit, a `BoxSpace`; the two meet
in `to_pixels` and `from_pixels` and nowhere else.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from math import ceil, floor, isfinite, sqrt
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grit_lite.errors import DataError

Size = tuple[int, int]  # (width, height)
Numbers = Sequence[float]  # x1, y1, x2, y2
Array = np.ndarray

# Every colour has a contrast of at least 3 with black and with white, and any two differ by at least 30 in CIELAB for
# normal sight and for the three dichromacies (matrices of Machado et al. 2009); tests/test_boxes.py measures both.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (191, 0, 64),
    (0, 166, 138),
    (121, 0, 242),
    (127, 153, 0),
    (242, 61, 242),
    (129, 70, 140),
)
PICTURE_SIDE = 448  # a picture whose longer side is shorter than this is enlarged before boxes are drawn on it
GRID_COLUMNS = 256  # of the grid of `union_iou` that are held at a time
LABEL_LENGTH = 24  # characters of a label that fit on a tag


class Box(NamedTuple):
    """A rectangle in pixels of the original image; x to the right, y down, (x1, y1) the upper left corner."""

    x1: float
    y1: float
    x2: float
    y2: float


class BoxSpace(StrEnum):
    """The unit in which a model writes boxes.

    Qwen2.5-VL writes pixels of the image as the model saw it, after `smart_resize`; Qwen3-VL and InternVL3 write
    thousandths of the width and of the height.
    """

    RESIZED_PIXELS = "resized_pixels"
    NORM1000 = "norm1000"

    def extent(self, resized: Size) -> Size:
        """Width and height of the whole image in this unit."""
        return resized if self is BoxSpace.RESIZED_PIXELS else (1000, 1000)

    def to_pixels(self, box: Numbers, *, original: Size, resized: Size) -> Box:
        """The box in pixels of the original image. Each axis has its own factor: resizing changes the aspect ratio."""
        width, height = self.extent(resized)
        return Box(*_scaled(box, original[0] / width, original[1] / height))

    def from_pixels(self, box: Numbers, *, original: Size, resized: Size) -> tuple[float, float, float, float]:
        """The box as this model would write it, not rounded; the inverse of `to_pixels`."""
        width, height = self.extent(resized)
        return _scaled(box, width / original[0], height / original[1])


def _scaled(box: Numbers, across: float, down: float) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return (x1 * across, y1 * down, x2 * across, y2 * down)


def smart_resize(size: Size, *, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """The (width, height) at which a model of the Qwen-VL family sees an image of this size.

    Both sides become multiples of `factor`, the area lies within the limits where the factor allows it, and the aspect
    ratio is kept as nearly as that permits. Same result as `smart_resize` of transformers'
    models/qwen2_vl/image_processing_qwen2_vl.py, which counts (height, width).

    Raises:
        DataError: one side is more than 200 times the other.
    """
    longer, shorter = max(size), min(size)
    if shorter < 1 or longer > 200 * shorter:
        raise DataError(
            f"An image of {size[0]} × {size[1]} pixels cannot be resized for the model: one side may be at most "
            "200 times the other. Crop the image or leave it out."
        )
    resized = [round(side / factor) * factor for side in size]
    area = size[0] * size[1]
    if resized[0] * resized[1] > max_pixels:
        shrink = sqrt(area / max_pixels)
        resized = [max(factor, floor(side / shrink / factor) * factor) for side in size]
    elif resized[0] * resized[1] < min_pixels:
        grow = sqrt(min_pixels / area)
        resized = [ceil(side * grow / factor) * factor for side in size]
    return resized[0], resized[1]


def _sorted_corners(boxes: Sequence[Numbers]) -> Array:
    """(K, 4) with x1 <= x2 and y1 <= y2."""
    array = np.array(boxes, dtype=float).reshape(-1, 2, 2)
    if not np.isfinite(array).all():
        raise ValueError(f"a box has a coordinate that is not a finite number: {array.tolist()}")
    array.sort(axis=1)
    return array.reshape(-1, 4)


def union_iou(pred: Sequence[Numbers], gold: Sequence[Numbers]) -> float:
    """area(∪pred ∩ ∪gold) / area(∪pred ∪ ∪gold), within [0, 1]; 0.0 where neither covers any area.

    This is the grounding IoU of GRIT (arXiv 2505.15879, section 4). Exact: no raster of pixels, but the grid of all
    edges, in whose cells nothing changes. Corners in the wrong order are sorted, as the reference does. Quadratic in
    the number of boxes, linear in memory.
    """
    boxes = _sorted_corners([*pred, *gold])
    side = (np.arange(len(boxes)) >= len(pred)).astype(int)
    solid = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])  # others cover nothing
    if not solid.any():
        return 0.0
    shared = either = 0.0
    for widths, (a, b), heights in _grid(boxes[solid], side[solid]):
        shared += widths @ ((a & b) @ heights)
        either += widths @ ((a | b) @ heights)
    return min(1.0, float(shared / either))


def _grid(boxes: Array, side: Array) -> Iterator[tuple[Array, Array, Array]]:
    """The grid of all edges, some columns at a time: their widths, which cells the boxes of either side cover, as
    (2, columns, rows) booleans, and the heights of the rows.

    Each box adds and takes away 1 at its corners; summed up along both axes this is the number of boxes on a cell.
    """
    xs, ys = (np.array(sorted(set(boxes[:, axis::2].ravel().tolist()))) for axis in (0, 1))  # faster than np.unique
    widths, heights = _gaps(xs), _gaps(ys)
    column, row = np.searchsorted(xs, boxes[:, [0, 2, 2, 0]]), np.searchsorted(ys, boxes[:, [1, 3, 1, 3]])  # (K, 4)
    before = np.zeros((2, len(ys)), dtype=np.int32)
    for start in range(0, len(xs), GRID_COLUMNS):
        part = widths[start : start + GRID_COLUMNS]
        inside, corner = np.nonzero((column >= start) & (column < start + len(part)))
        steps = np.zeros((2, len(part), len(ys)), dtype=np.int32)
        places = side[inside], column[inside, corner] - start, row[inside, corner]
        np.add.at(steps, places, _CORNER_SIGNS[corner])
        steps[:, 0] += before
        sums = steps.cumsum(axis=1, dtype=np.int32)
        before = sums[:, -1]
        yield part, sums.cumsum(axis=2, dtype=np.int32) > 0, heights


_CORNER_SIGNS = np.array([1, 1, -1, -1])  # upper left, lower right, upper right, lower left


def _gaps(edges: Array) -> Array:
    """The distance of each edge to the next; 0 behind the last."""
    gaps = np.zeros(len(edges))
    gaps[:-1] = edges[1:] - edges[:-1]
    return gaps


def iou_matrix(pred: Sequence[Numbers], gold: Sequence[Numbers]) -> Array:
    """(len(pred), len(gold)) intersection over union of each pair; a box without area overlaps nothing."""
    a, b = _sorted_corners(pred)[:, None], _sorted_corners(gold)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # (P, K, 2)
    shared = np.clip(sides, 0, None).prod(axis=-1)
    either = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    return np.divide(shared, either, out=np.zeros_like(shared), where=shared > 0)


def iou(a: Numbers, b: Numbers) -> float:
    """Intersection over union of two boxes."""
    return float(iou_matrix([a], [b])[0, 0])


def match(pred: Sequence[Numbers], gold: Sequence[Numbers]) -> list[tuple[int, int, float]]:
    """One-to-one pairs (index in pred, index in gold, IoU) whose IoUs have the largest sum; pairs without overlap are
    left out. Hungarian algorithm (scipy)."""
    from scipy.optimize import linear_sum_assignment

    overlaps = iou_matrix(pred, gold)
    pairs = zip(*linear_sum_assignment(overlaps, maximize=True), strict=True)
    return [(int(p), int(g), float(overlaps[p, g])) for p, g in pairs if overlaps[p, g] > 0]


def f1_at(pred: Sequence[Numbers], gold: Sequence[Numbers], threshold: float = 0.5) -> float:
    """F1 of the predicted boxes: a matched pair counts as found if its IoU reaches the threshold. 0.0 without boxes."""
    found = sum(overlap >= threshold for _, _, overlap in match(pred, gold))
    return 2 * found / (len(pred) + len(gold)) if found else 0.0


def mean_matched_iou(pred: Sequence[Numbers], gold: Sequence[Numbers]) -> float:
    """Mean IoU over max(len(pred), len(gold)) pairs: a box without a partner counts as 0. 0.0 without boxes."""
    pairs = match(pred, gold)
    return sum(overlap for _, _, overlap in pairs) / max(len(pred), len(gold)) if pairs else 0.0


def draw(image: Image.Image, boxes: Sequence[Box], labels: Sequence[str] | None = None) -> Image.Image:
    """A new RGB picture with the boxes outlined in `PALETTE`'s colours, each tagged with its number, from 1.

    Args:
        boxes: in pixels of `image`; parts outside it are drawn at its border.
        labels: a word or two per box, written behind its number.

    A small image is enlarged by a whole factor, so that tags can be read. Each outline and tag has a white rim: the
    colours stand out from black and from white by themselves, the rim keeps them apart from everything else.
    """
    picture, zoom = _enlarged(image)
    pen = ImageDraw.Draw(picture)
    stroke = max(3, round(max(picture.size) / 300))
    placed = [_on_canvas(box, zoom, picture.size) for box in boxes]
    for number, box in enumerate(placed):
        pen.rectangle(box, outline="white", width=stroke + 2)
        inner = (box[0] + 1, box[1] + 1, max(box[0] + 1, box[2] - 1), max(box[1] + 1, box[3] - 1))
        pen.rectangle(inner, outline=PALETTE[number % len(PALETTE)], width=stroke)
    _draw_tags(pen, placed, [_tag_text(number, labels) for number in range(len(placed))], picture.size)
    return picture


def _enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    zoom = max(1, ceil(PICTURE_SIDE / max(image.size)))
    picture = image.convert("RGB")
    return picture.resize((image.width * zoom, image.height * zoom), Image.Resampling.LANCZOS), zoom


def _on_canvas(box: Numbers, zoom: int, size: Size) -> tuple[int, int, int, int]:
    """Whole pixels of the picture, corners sorted, clamped to it."""
    if not all(isfinite(number) for number in box):
        raise ValueError(f"cannot draw a box whose coordinates are not finite: {tuple(box)}")
    xs = sorted(min(max(round(x * zoom), 0), size[0] - 1) for x in (box[0], box[2]))
    ys = sorted(min(max(round(y * zoom), 0), size[1] - 1) for y in (box[1], box[3]))
    return xs[0], ys[0], xs[1], ys[1]


def _tag_text(number: int, labels: Sequence[str] | None) -> str:
    label = labels[number][:LABEL_LENGTH] if labels and number < len(labels) else ""
    # A lone surrogate or a control character, which a model may well write, cannot be rendered.
    return f"{number + 1} {''.join(c if c.isprintable() else '?' for c in label)}".strip()


def _draw_tags(
    pen: ImageDraw.ImageDraw, boxes: Sequence[tuple[int, int, int, int]], texts: Sequence[str], size: Size
) -> None:
    font = ImageFont.load_default(size=max(14, round(max(size) / 36)))
    taken: list[tuple[float, float, float, float]] = []
    for number, (box, text) in enumerate(zip(boxes, texts, strict=True)):
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        tag = _tag_place(box, (int(right - left) + 9, int(bottom - top) + 9), size, taken)
        taken.append(tag)
        pen.rectangle(tag, fill=PALETTE[number % len(PALETTE)], outline="white", width=1)
        pen.text((tag[0] + 4 - left, tag[1] + 4 - top), text, fill="white", font=font)


def _tag_place(
    box: tuple[int, int, int, int], tag: Size, size: Size, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    """The first place around the box that no earlier tag covers, always inside the picture."""
    x1, y1, x2, y2 = box
    above, below = y1 - tag[1], y2 + 1
    corners = [
        (x1, above),
        (x1, below),
        (x2 - tag[0], above),
        (x2 - tag[0], below),
        (x1, y1),
        (x2 - tag[0], y2 - tag[1]),
    ]
    places = [_inside(corner, tag, size) for corner in corners]
    return next((place for place in places if not any(_touch(place, other) for other in taken)), places[0])


def _inside(corner: tuple[float, float], tag: Size, size: Size) -> tuple[float, float, float, float]:
    x = max(0, min(corner[0], size[0] - 1 - tag[0]))
    y = max(0, min(corner[1], size[1] - 1 - tag[1]))
    return x, y, x + tag[0], y + tag[1]


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
