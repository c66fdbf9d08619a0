"""The picture with its boxes: saved under a new name, and shown in the terminal."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from grit_lite.boxes import PALETTE, Box, Size
from grit_lite.errors import UsageError

PREVIEW_CELLS = (80, 28)  # columns and rows of a terminal that a preview takes at most


@dataclass(frozen=True)
class Saved:
    """Where a picture went, or None where it could not be saved, and the sentence that says so."""

    path: Path | None
    sentence: str


def save_picture(picture: Image.Image, image_path: Path) -> Saved:
    """The picture, saved beside its image under a new name; in the current folder where that one cannot be written to.

    `photo.jpg` gives `photo.boxes.png`, then `photo.boxes-2.png` and so on; no file is ever written over.
    """
    stem, beside, here = f"{image_path.stem}.boxes", image_path.parent, Path()
    try:
        path = _save_new(picture, beside, stem)
        return Saved(path, f"Picture: {path}")
    except OSError as error:
        reason = f"{beside} cannot be written to ({error.strerror})"
    try:
        path = _save_new(picture, here, stem)
        return Saved(path, f"Picture: {path} in the current folder, because {reason}.")
    except OSError as error:
        return Saved(None, f"The picture was not saved: {reason}, nor can the current folder ({error.strerror}).")


def save_as(picture: Image.Image, path: Path) -> Path:
    """The path of the picture, saved under a name that the user chose; `.png` is added where it has no suffix.

    Raises:
        UsageError: the name is taken, is not one of a PNG, or cannot be written.
    """
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: the picture is saved as PNG. Give a name that ends in .png.")
    try:
        _write_exclusively(_png(picture), path)
    except FileExistsError:
        raise UsageError(f"{path} exists, and nothing is ever written over. Give another name.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Give another place.") from error
    return path


def _save_new(picture: Image.Image, folder: Path, stem: str) -> Path:
    data = _png(picture)
    for number in count(1):
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        if not path.exists():
            break
    _write_exclusively(data, path)
    return path


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _write_exclusively(data: bytes, path: Path) -> None:
    """A new file, whole or not at all."""
    with path.open("xb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError:  # a full disk; what was begun is ours to remove
            path.unlink()
            raise


def show_preview(
    console: Console, image: Image.Image, boxes: Sequence[Box], picture: Callable[[], Image.Image]
) -> None:
    """Print the image with its boxes, where the output is a terminal with enough colours.

    Args:
        picture: draws the boxes; asked for only where the terminal shows pixels (textual-image is installed, and it
            knows the terminal's protocol). Elsewhere half blocks have to do.
    """
    if not console.is_terminal or console.no_color or console.color_system not in ("truecolor", "256"):
        return
    columns, rows = min(PREVIEW_CELLS[0], console.width), min(PREVIEW_CELLS[1], max(4, console.height - 8))
    renderable_type = pixel_renderable() if console.file is sys.__stdout__ else None
    if renderable_type is None:
        console.print(half_blocks(image, boxes, columns, rows))
    else:
        console.print(renderable_type(picture(), width="auto", height="auto"), width=columns, height=rows)


@functools.cache
def pixel_renderable() -> Callable[..., Any] | None:
    """textual-image's class for this terminal, or None where it would have to draw characters, as we do.

    The first call asks the terminal what it can do and reads the reply from the keyboard: make it before anything is
    typed there.
    """
    keyboard, screen = sys.__stdin__, sys.__stdout__
    if not (keyboard and screen and keyboard.isatty() and screen.isatty()):
        return None
    if 0 in os.get_terminal_size(screen.fileno()):  # a terminal of no size, which textual-image divides by
        return None
    try:
        from textual_image import renderable  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return renderable.Image if renderable.Image in (renderable.SixelImage, renderable.TGPImage) else None


def half_blocks(image: Image.Image, boxes: Sequence[Box], columns: int, rows: int) -> Segments:
    """The image in at most `columns` × `rows` cells, two pixels a cell, each box outlined and numbered in its colour.

    The boxes are drawn after scaling down: lines drawn before would be too thin to be seen.
    """
    scale = min(columns / image.width, 2 * rows / image.height)
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale) // 2) * 2
    small = image.convert("RGB").resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(small)
    placed = [_on_cells(box, image.size, size) for box in boxes]
    for index, box in enumerate(placed):
        pen.rectangle(box, outline=PALETTE[index % len(PALETTE)])
    lines = _cells(np.asarray(small))
    for index, (x, y, _, _) in enumerate(placed):
        _write_number(lines[y // 2], x, index)
    return Segments(Segment.simplify(segment for line in lines for segment in (*line, Segment.line())))


def _on_cells(box: Box, original: Size, small: Size) -> tuple[int, int, int, int]:
    """The box in pixels of the small picture, corners sorted, clamped to it."""
    xs = sorted(min(max(int(x * small[0] / original[0]), 0), small[0] - 1) for x in (box.x1, box.x2))
    ys = sorted(min(max(int(y * small[1] / original[1]), 0), small[1] - 1) for y in (box.y1, box.y2))
    return xs[0], ys[0], xs[1], ys[1]


def _cells(pixels: np.ndarray) -> list[list[Segment]]:
    """Lines of terminal cells. pixels: (height, width, 3) with an even height."""
    return [
        [Segment("▀", Style(color=_hex(top), bgcolor=_hex(bottom))) for top, bottom in zip(upper, lower, strict=True)]
        for upper, lower in zip(pixels[0::2].tolist(), pixels[1::2].tolist(), strict=True)
    ]


def _write_number(line: list[Segment], column: int, index: int) -> None:
    style = Style(color="#ffffff", bgcolor=_hex(PALETTE[index % len(PALETTE)]), bold=True)
    digits = str(index + 1)[: len(line)]
    start = min(column, len(line) - len(digits))
    line[start : start + len(digits)] = [Segment(digit, style) for digit in digits]


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
