"""One image file as data: its header is judged before it is decoded, and what comes out is RGB and upright.

Three formats are read: JPEG, PNG and WebP; of an animation, its first frame. Nothing is repaired: a file that does not
decode to its end is refused. Messages here say what is wrong with the image; the caller says which image it is.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from grit_lite.boxes import Box, Size
from grit_lite.errors import DataError

MAX_IMAGE_PIXELS = 64_000_000  # 192 MB once decoded; a 50-megapixel photo still fits
MAX_FILE_BYTES = 256 * 1024 * 1024

# Pillow's classes by name, not Image.open: it would warn or raise about a large header before we can name its size.
_READERS: tuple[tuple[str, Callable[[bytes], bool], type[ImageFile]], ...] = (
    ("JPEG", lambda head: head[:3] == b"\xff\xd8\xff", JpegImageFile),
    ("PNG", lambda head: head[:8] == b"\x89PNG\r\n\x1a\n", PngImageFile),
    ("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImageFile),
)

# What Pillow raised on a million damaged files of the three formats, bytes changed, cut out and put in.
_DAMAGE = (OSError, SyntaxError, ValueError, IndexError)

# EXIF orientation -> (how the stored picture is turned upright, where a stored box (w, h: stored size) goes with it)
_UPRIGHT: dict[int, tuple[Image.Transpose, Callable[[Box, int, int], Box]]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda box, w, h: Box(w - box.x2, box.y1, w - box.x1, box.y2)),
    3: (Image.Transpose.ROTATE_180, lambda box, w, h: Box(w - box.x2, h - box.y2, w - box.x1, h - box.y1)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda box, w, h: Box(box.x1, h - box.y2, box.x2, h - box.y1)),
    5: (Image.Transpose.TRANSPOSE, lambda box, w, h: Box(box.y1, box.x1, box.y2, box.x2)),
    6: (Image.Transpose.ROTATE_270, lambda box, w, h: Box(h - box.y2, box.x1, h - box.y1, box.x2)),
    7: (Image.Transpose.TRANSVERSE, lambda box, w, h: Box(h - box.y2, w - box.x2, h - box.y1, w - box.x1)),
    8: (Image.Transpose.ROTATE_90, lambda box, w, h: Box(box.y1, w - box.x2, box.y2, w - box.x1)),
}


@dataclass(frozen=True)
class ImageFacts:
    """What a row needs to know about its image: the size as stored and as shown, the EXIF orientation, the hash."""

    stored: Size
    orientation: int
    sha256: str

    @property
    def size(self) -> Size:
        """(width, height) of the upright image."""
        width, height = self.stored
        return (height, width) if self.orientation >= 5 else (width, height)

    def upright_box(self, box: Box) -> Box:
        """A box of the stored picture as a box of the upright one."""
        if self.orientation == 1:
            return box
        return _UPRIGHT[self.orientation][1](box, *self.stored)


def inspect(data: bytes, max_image_pixels: int = MAX_IMAGE_PIXELS) -> ImageFacts:
    """The facts of an image file's bytes, after decoding all of it once.

    Raises:
        DataError: not a JPEG, PNG or WebP file, more pixels than `max_image_pixels` (nothing is decoded then), or
            damaged. The message does not name the file.
    """
    image, orientation = _decode(data, max_image_pixels)
    stored = image.size
    return ImageFacts(stored, orientation, hashlib.sha256(data).hexdigest())


def measure(data: bytes, max_image_pixels: int = MAX_IMAGE_PIXELS) -> ImageFacts:
    """The facts of an image file's bytes from its header alone: what is damaged behind it is found by `decode`.

    Raises as `inspect`.
    """
    kind, reader = _reader(data)
    try:
        image = reader(BytesIO(data))
        _check_size(image.size, max_image_pixels)
    except (Image.DecompressionBombError, *_DAMAGE) as error:
        raise DataError(f"the {kind} is damaged ({error}); fetch it again") from error
    # Pillow decodes all of a PNG to look for an orientation behind the pixels.
    turned = kind != "PNG" or b"eXIf" in data or b"Raw profile type" in data
    return ImageFacts(image.size, _orientation(image) if turned else 1, hashlib.sha256(data).hexdigest())


def decode(data: bytes, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """The image in RGB, turned upright by its EXIF orientation, transparent parts on white. Raises as `inspect`."""
    image, orientation = _decode(data, max_image_pixels)
    upright = _to_rgb(image)
    if orientation != 1:
        upright = upright.transpose(_UPRIGHT[orientation][0])
    upright.info = {}  # the orientation must not be applied a second time by whoever saves or opens it next
    return upright


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: missing, not a regular file, empty or larger than `MAX_FILE_BYTES`. The message does not name it.
    """
    try:
        if not path.exists():
            raise DataError("there is no such file; check the path")
        if not path.is_file():
            raise DataError("it is not a file; give the path of an image")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise DataError(f"it has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}; resize it")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror or error}); check its name and permissions") from error


def content(source: Path | bytes | Image.Image) -> bytes:
    """What tells one image from another: the bytes of its file, or the pixels of what was never a file.

    Raises as `read_bytes`.
    """
    if isinstance(source, Image.Image):
        return f"{source.mode} {source.size}".encode() + source.tobytes()
    return source if isinstance(source, bytes) else read_bytes(source)


def upright(source: Path | bytes | Image.Image, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """A fresh RGB image of a file, its bytes or a picture, turned upright. Raises as `inspect` and `read_bytes`."""
    if isinstance(source, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(source))
    return decode(content(source), max_image_pixels)


def open_image(path: Path, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """The image in a file, RGB and upright.

    Raises:
        DataError: naming the file, what is wrong with it and what to do.
    """
    try:
        return decode(read_bytes(path), max_image_pixels)
    except DataError as error:
        raise DataError(f"Image {str(path)!r}: {error}.") from error


def _decode(data: bytes, max_image_pixels: int) -> tuple[ImageFile, int]:
    """A decoded image as stored, and its EXIF orientation, 1 to 8."""
    kind, reader = _reader(data)
    try:
        image = reader(BytesIO(data))
        _check_size(image.size, max_image_pixels)
        if kind == "PNG":
            reader(BytesIO(data)).verify()  # checksums of every chunk, which decoding alone does not look at
        image.load()
    except Image.DecompressionBombError as error:  # WebP's reader judges the size before it tells us
        raise DataError(f"its header is larger than the limit of {max_image_pixels:,} pixels; resize it") from error
    except _DAMAGE as error:
        raise DataError(f"the {kind} is truncated or damaged ({error}); fetch it again") from error
    return image, _orientation(image)


def _reader(data: bytes) -> tuple[str, type[ImageFile]]:
    if not data:
        raise DataError("it is empty (0 bytes); fetch it again")
    for kind, recognise, reader in _READERS:
        if recognise(data[:12]):
            return kind, reader
    raise DataError(f"it is not a JPEG, PNG or WebP image (it starts with {data[:12]!r}); convert it")


def _check_size(size: Size, max_image_pixels: int) -> None:
    width, height = size
    if width * height > max_image_pixels:
        raise DataError(
            f"its header says {width} x {height}, which is {width * height:,} pixels; "
            f"the limit is {max_image_pixels:,}, so resize it"
        )


def _orientation(image: ImageFile) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:  # an unreadable note about the picture does not turn it; viewers show it as stored
        return 1
    return orientation if isinstance(orientation, int) and 2 <= orientation <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip at 255 instead of scaling
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")
