"""Drawn scenes: coloured shapes on a 112 x 112 picture, every box exact to the pixel.

A scene is a pure function of (split, index): its random stream is seeded with both, so scenes of different splits
never share a stream. Pre-training sees `train`; `validation` and `test` are drawn alike; the other splits are harder,
each in one way that pre-training never saw. numpy and Pillow only.
"""

import functools
import math
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from grit_lite.boxes import Box

Split = Literal["train", "validation", "test", "more", "smaller", "new_pairs"]

SIDE = 112  # pixels
SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
}
# Colour and shape of these are known, each with others; the two together are in the split `new_pairs` alone.
NEW_PAIRS = frozenset({("red", "triangle"), ("blue", "circle"), ("white", "square")})
MOST_OBJECTS = 5


class Style(NamedTuple):
    """How the scenes of a split are drawn.

    `across` is the smallest and the largest extent of an object in pixels, before rotation; `crowded` is the largest in
    a scene of the most objects; `own` pairs are drawn beside those that pre-training sees.
    """

    stream: int
    objects: tuple[int, int] = (1, MOST_OBJECTS)
    across: tuple[float, float] = (18.0, 42.0)
    crowded: float = 34.0
    own: frozenset[tuple[str, str]] = frozenset()


STYLES: dict[str, Style] = {
    "train": Style(11),
    "validation": Style(22),
    "test": Style(33),
    "more": Style(44, objects=(6, 8), across=(18.0, 26.0), crowded=22.0),
    "smaller": Style(55, across=(10.0, 16.0), crowded=16.0),
    "new_pairs": Style(66, own=NEW_PAIRS),
}
_LARGEST_TURN = 0.1  # radians
_GAP = 2  # pixels kept free between two objects
_TRIES = 30


class Shape(NamedTuple):
    """One drawn object. `box` is the tight extent of its pixels; x2 and y2 are one past the last pixel."""

    color: str
    shape: str
    box: Box

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


class Scene(NamedTuple):
    """`mask` is (112, 112) uint8: 0 for background, k for the pixels of `objects[k - 1]`."""

    image: Image.Image
    objects: tuple[Shape, ...]
    mask: np.ndarray


def make_scene(index: int, split: Split, most_objects: int | None = None) -> Scene:
    """The scene number `index` of a split; the same arguments always give the same pixels.

    `most_objects` below the split's own is the curriculum of pre-training: another, simpler scene of the same stream.
    """
    style = STYLES[split]
    rng = np.random.default_rng([style.stream, index])
    mask, objects = _place_objects(rng, style, most_objects or style.objects[1])
    return Scene(_paint(rng, mask, objects), objects, mask)


def _place_objects(rng: np.random.Generator, style: Style, most: int) -> tuple[np.ndarray, tuple[Shape, ...]]:
    pairs, least = _theme(rng, [pair for pair in _PAIRS if pair not in NEW_PAIRS - style.own])
    count = int(rng.integers(min(max(least, style.objects[0]), most), most + 1))
    largest = style.crowded if count >= style.objects[1] else style.across[1]
    canvas = Image.new("L", (SIDE, SIDE), 0)
    draw, outlines = ImageDraw.Draw(canvas), []
    for _ in range(count):
        outline = _free_outline(rng, sorted({shape for _, shape in pairs}), outlines, (style.across[0], largest))
        if outline is not None:
            outlines.append(outline)
            draw.polygon(outline.points, fill=len(outlines))
    mask = np.asarray(canvas)
    named = (
        (str(rng.choice([color for color, shape in pairs if shape == outline.shape])), outline.shape)
        for outline in outlines
    )
    return mask, tuple(Shape(color, shape, _extent(mask == k)) for k, (color, shape) in enumerate(named, start=1))


_PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES)


def _theme(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
    """Which of the pairs a scene is made of, and its least number of objects: some scenes repeat names, so that there
    is something to count."""
    kind = rng.random()
    colors, shapes = list(rng.permutation(list(COLORS))), list(rng.permutation(SHAPES))
    if kind < 0.30:
        return [pair for pair in pairs if pair[0] in colors[:2] and pair[1] in shapes[:2]], 3
    if kind < 0.42:
        return [pair for pair in pairs if pair[1] == shapes[0]], 2
    if kind < 0.52:
        return [pair for pair in pairs if pair[0] == colors[0]], 2
    return pairs, 1


class _Outline(NamedTuple):
    shape: str
    points: list[tuple[float, float]]
    extent: tuple[float, float, float, float]


def _free_outline(
    rng: np.random.Generator, shapes: list[str], taken: list[_Outline], sizes: tuple[float, float]
) -> _Outline | None:
    for _ in range(_TRIES):
        shape = str(rng.choice(shapes))
        across = float(rng.uniform(*sizes))
        center = rng.uniform(across / 2, SIDE - across / 2, 2)
        points = _points(shape, center, across, float(rng.uniform(-_LARGEST_TURN, _LARGEST_TURN)))
        xs, ys = [x for x, _ in points], [y for _, y in points]
        extent = (min(xs), min(ys), max(xs), max(ys))
        inside = extent[0] >= 0 and extent[1] >= 0 and extent[2] <= SIDE - 1 and extent[3] <= SIDE - 1
        if inside and not any(_touch(extent, other.extent) for other in taken):
            return _Outline(shape, points, extent)
    return None


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] + _GAP and b[0] < a[2] + _GAP and a[1] < b[3] + _GAP and b[1] < a[3] + _GAP


def _points(shape: str, center: np.ndarray, across: float, turn: float) -> list[tuple[float, float]]:
    # A square's corner radius and a triangle's radius are scaled so that the three shapes look equally large.
    corners, radius, start = {
        "circle": (48, across / 2, 0.0),
        "square": (4, across / 2 * 1.3, math.pi / 4),
        "triangle": (3, across / 2 * 1.1, -math.pi / 2),
    }[shape]
    angles = (start + turn + 2 * math.pi * k / corners for k in range(corners))
    return [(center[0] + radius * math.cos(a), center[1] + radius * math.sin(a)) for a in angles]


def _extent(pixels: np.ndarray) -> Box:
    columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _paint(rng: np.random.Generator, mask: np.ndarray, objects: tuple[Shape, ...]) -> Image.Image:
    base = rng.integers(25, 150, 3) * 0.35 + float(rng.integers(15, 95))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    slope_x, slope_y = rng.normal(0, 18, 2)
    pixels = base + (slope_x * x + slope_y * y)[..., None]
    tones = [np.array(COLORS[o.color]) * rng.uniform(0.82, 1.05) + rng.normal(0, 10, 3) for o in objects]
    for k, tone in enumerate(tones, start=1):
        pixels[mask == k] = tone
    left, top = rng.integers(0, _noise().shape[0] - SIDE, 2)
    pixels = pixels + _noise()[top : top + SIDE, left : left + SIDE] * rng.uniform(0, 9)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@functools.cache
def _noise() -> np.ndarray:
    """(400, 400, 3) standard normal grain; a picture takes a window of it, which is ten times faster than drawing."""
    return np.random.default_rng(0).standard_normal((400, 400, 3))
