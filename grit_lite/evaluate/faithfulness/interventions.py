"""What is done to an image or to a chain before the question is asked again: pure functions of what they are given."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from scipy.sparse.csgraph import connected_components

from grit_lite.answer import GroundedAnswer, WrittenBox, number_spans
from grit_lite.boxes import Box, Size

Rectangle = tuple[int, int, int, int]  # whole pixels: left, top, right, bottom; the last two are one past the end
_T = TypeVar("_T")

MOST_PLACES = 128  # on each axis, at which a box elsewhere is tried
LEAST_FRAME = 2  # pixels around a box, whose colour it is painted over with
LEAST_SEEN = 32  # of 255, in one of the colours: noise in a picture differs by less from the colour around it


# Images: (image, boxes in its pixels) -> another image


def paint_over(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image with each box filled with the median colour of a narrow frame around it.

    On an even background the object is gone without a trace. A grey box, or one in the mean colour of the image, would
    be a thing of its own there, which a model could see, count and box. The frame leaves out what other boxes cover. It
    is widened while its colour is the box's own: a box that lies within its object would be painted over with it.
    """
    pixels = _pixels(image)
    covered = _covered(boxes, image.size)
    painted = pixels.copy()
    for rectangle in rectangles(boxes, image.size):
        left, top, right, bottom = rectangle
        painted[top:bottom, left:right] = _colour_around(pixels, covered, rectangle)
    return Image.fromarray(painted)


def _colour_around(pixels: np.ndarray, covered: np.ndarray, rectangle: Rectangle) -> np.ndarray:
    left, top, right, bottom = rectangle
    own, longest = _median(pixels[top:bottom, left:right]), max(pixels.shape[:2])
    colour, width = own, max(LEAST_FRAME, longest // 50)
    while np.array_equal(colour, own) and width < 2 * longest:
        frame = np.s_[max(0, top - width) : bottom + width, max(0, left - width) : right + width]
        around = pixels[frame][~covered[frame]]
        colour, width = _median(around if len(around) else pixels), 2 * width
    return colour


def hidden(image: Image.Image, painted: Image.Image, boxes: Sequence[Box]) -> float:
    """The share of the pixels in the boxes that look different once they are painted over; 0 where there are none."""
    covered = _covered(boxes, image.size)
    changed = np.abs(_pixels(image).astype(int) - _pixels(painted)).max(axis=2) >= LEAST_SEEN
    return float(changed[covered].mean()) if covered.any() else 0.0


def keep_only(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image with everything outside the boxes in the median colour of what was there."""
    pixels = _pixels(image)
    outside = ~_covered(boxes, image.size)
    if outside.any():
        pixels[outside] = _median(pixels[outside])
    return Image.fromarray(pixels)


def blank(image: Image.Image) -> Image.Image:
    """An image of the same size, all in the median colour of this one."""
    return keep_only(image, [])


def _pixels(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))  # (H, W, 3), a copy


def _median(colours: np.ndarray) -> np.ndarray:
    return np.median(colours.reshape(-1, 3), axis=0).round().astype(np.uint8)


def _covered(boxes: Sequence[Box], size: Size) -> np.ndarray:
    """(H, W) of whether a pixel lies in a box, wholly or in part."""
    covered = np.zeros((size[1], size[0]), dtype=bool)
    for left, top, right, bottom in rectangles(boxes, size):
        covered[top:bottom, left:right] = True
    return covered


def rectangles(boxes: Sequence[Box], size: Size) -> list[Rectangle]:
    """The pixels of each box inside the image; boxes without any are left out, corners are sorted."""
    found = []
    for box in boxes:
        (left, right), (top, bottom) = (sorted((box[axis], box[axis + 2])) for axis in (0, 1))
        limits = max(0, floor(left)), max(0, floor(top)), min(size[0], ceil(right)), min(size[1], ceil(bottom))
        if limits[0] < limits[2] and limits[1] < limits[3]:
            found.append(limits)
    return found


# Other places


def elsewhere(boxes: Sequence[Box], size: Size, rng: np.random.Generator, avoid: Sequence[Box] = ()) -> list[Box]:
    """Boxes of the same sizes at random places inside the image.

    Each is drawn among the places where it covers least of the box that it stands for, and of those where it covers
    least of the others, of `avoid`, and of those drawn before it. It covers nothing of its own where that is possible.
    """
    drawn: list[Box] = []
    for number, box in enumerate(boxes):
        others = [*boxes[:number], *boxes[number + 1 :], *avoid, *drawn]
        drawn.append(_another_place(box, others, size, rng))
    return drawn


def cover_elsewhere(boxes: Sequence[Box], size: Size, rng: np.random.Generator) -> list[Box]:
    """The `distinct` boxes, so moved that they cover as many pixels of the image as before.

    Those that overlap move as one, by whole pixels. Only where there is no room for all of them may they come to
    overlap, and cover fewer.
    """
    found = distinct(boxes, size)
    moved = list(found)
    groups = _groups(found)
    hulls = [_hull([found[index] for index in group]) for group in groups]
    for group, hull, place in zip(groups, hulls, elsewhere(hulls, size, rng), strict=True):
        right, down = round(place.x1 - hull.x1), round(place.y1 - hull.y1)
        for index in group:
            x1, y1, x2, y2 = found[index]
            moved[index] = Box(x1 + right, y1 + down, x2 + right, y2 + down)
    return moved


def distinct(boxes: Sequence[Box], size: Size) -> list[Box]:
    """What can be seen of the boxes, each in whole pixels inside the image and once."""
    return [Box(*map(float, corners)) for corners in dict.fromkeys(rectangles(boxes, size))]


def _groups(boxes: Sequence[Box]) -> list[list[int]]:
    """The places of boxes that overlap, directly or by others."""
    if not boxes:
        return []
    x1, y1, x2, y2 = np.array(boxes).T
    meet = (np.maximum.outer(x1, x1) < np.minimum.outer(x2, x2)) & (np.maximum.outer(y1, y1) < np.minimum.outer(y2, y2))
    count, labels = connected_components(meet)
    return [np.flatnonzero(labels == label).tolist() for label in range(count)]


def _hull(boxes: Sequence[Box]) -> Box:
    x1, y1, x2, y2 = np.array(boxes).T
    return Box(x1.min(), y1.min(), x2.max(), y2.max())


def _another_place(box: Box, others: Sequence[Box], size: Size, rng: np.random.Generator) -> Box:
    width, height = (min(abs(box[axis + 2] - box[axis]), size[axis]) for axis in (0, 1))
    xs, ys = _steps(size[0] - width), _steps(size[1] - height)
    own, rest = (_overlap(xs, ys, (width, height), taken) for taken in ([box], others))
    free = own == own.min()
    row, column = rng.choice(np.argwhere(free & (rest == rest[free].min())))
    return Box(float(xs[column]), float(ys[row]), float(xs[column] + width), float(ys[row] + height))


def _steps(room: float) -> np.ndarray:
    """Whole pixels where there are few; both ends are always among them, which are free if anything is."""
    return np.linspace(0, room, min(int(room), MOST_PLACES) + 1) if room >= 1 else np.array([0.0])


def _overlap(xs: np.ndarray, ys: np.ndarray, size: tuple[float, float], boxes: Sequence[Box]) -> np.ndarray:
    """(Y, X): the area that a box of this size at each place has in common with the boxes, in sum."""
    total = np.zeros((len(ys), len(xs)))
    for box in boxes:
        shared = []
        for steps, side, axis in ((ys, size[1], 1), (xs, size[0], 0)):
            low, high = sorted((box[axis], box[axis + 2]))
            shared.append(np.clip(np.minimum(steps + side, high) - np.maximum(steps, low), 0, None))
        total += np.outer(*shared)
    return total


# Chains: a completion -> what it is made to begin with


def thought_boxes(answer: GroundedAnswer) -> tuple[WrittenBox, ...]:
    """The boxes before `</think>`; where there are none, all of the chain.

    What is said behind `</think>` draws on the boxes before it, so it cannot stand while they change.
    """
    end = answer.text.find("</think>", answer.chain_start)
    return tuple(box for box in answer.chain_boxes if box.end <= end) or answer.chain_boxes


def with_numbers(text: str, boxes: Sequence[WrittenBox], numbers: Sequence[Sequence[str]]) -> str:
    """The text with other numbers in these boxes, which stand in its order, and nothing else changed."""
    pieces, last = [], 0
    for box, four in zip(boxes, numbers, strict=True):
        for (start, end), new in zip(number_spans(text, box), four, strict=True):
            pieces += [text[last:start], new]
            last = end
    return "".join([*pieces, text[last:]])


def numbers_of(text: str, boxes: Sequence[WrittenBox]) -> list[list[str]]:
    """The four numbers of each box, as they are written."""
    return [[text[start:end] for start, end in number_spans(text, box)] for box in boxes]


def swapped(boxes: Sequence[_T]) -> list[_T]:
    """The boxes, or their numbers, with the first two exchanged."""
    first, second, *others = boxes
    return [second, first, *others]


def written_like(values: Sequence[Sequence[float]], numbers: Sequence[Sequence[str]]) -> list[list[str]]:
    """The values as text, with as many decimals as the number in the same place has."""
    return [
        [f"{value:.{len(old.partition('.')[2])}f}" for value, old in zip(box, olds, strict=True)]
        for box, olds in zip(values, numbers, strict=True)
    ]


def opening(answer: GroundedAnswer, numbers: Sequence[Sequence[str]], tokenizer: Any) -> str:
    """The completion up to its last box of thought, with other numbers in its boxes.

    It ends with a whole token: of `[1, 2, 3, 4], "label"`, many tokenizers have `],` as one, and no model has been seen
    to go on behind `]` there.
    """
    boxes = thought_boxes(answer)
    end = boxes[-1].end
    changed = with_numbers(answer.text[:end], boxes, numbers)
    return up_to_whole_token(tokenizer, changed + answer.text[end:], len(changed))


def up_to_whole_token(tokenizer: Any, text: str, length: int) -> str:
    """At least `length` characters of the text, and as few more as the token takes that holds the last of them."""
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    ends = (end for _, end in tokenizer(text, return_offsets_mapping=True, **plain)["offset_mapping"])
    return text[: next((end for end in ends if end >= length), len(text))]
