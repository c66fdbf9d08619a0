"""The pictures of an evaluation: which are kept beside its rows, and how they get into the page."""

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from grit_lite.boxes import Size
from grit_lite.pages.completions import PICTURE_LIMIT, stored_picture
from grit_lite.pages.outcomes import examples, outcome

Row = dict[str, Any]

# Half a thousand photographs of 512 pixels, or every image of a benchmark that asks often about each. The page holds
# a third more than this, which a browser still opens at once.
KEPT_BYTES = 32 * 1024 * 1024
EXACT_PIXELS = 160 * 160  # a picture no larger than this is kept exactly: a drawn scene; JPEG would blur its edges


def keep_pictures(
    rows: Mapping[str, Sequence[Row]],
    load: Callable[[int], Sequence[Image.Image]],
    folder: Path,
    benchmark: str,
    limit: int = KEPT_BYTES,
) -> None:
    """Save small copies of each question's images to `folder`/images and name them in its rows.

    The first one is called `image`, a list of the others `more_images`, where there are any. Questions are taken from
    fixed, broken, both wrong and both right in turn, by a fixed seed, until those of the next would make it more than
    `limit` bytes; the others are left out. An image that several questions share is kept once.

    Args:
        rows: by system, every system with the same questions in the same order.
        load: the upright images of the question with this index.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    cases = [dict(zip(rows, together, strict=True)) for together in zip(*rows.values(), strict=True)]
    left, kept = limit, set()
    for index in examples([outcome(case) for case in cases], len(cases)):
        own = [thumbnail(image) for image in load(index)]
        names = [f"{benchmark}-{hashlib.sha256(data).hexdigest()[:16]}.{kind}" for data, kind in own]
        new = {name: data for name, (data, _) in zip(names, own, strict=True) if name not in kept}
        left -= sum(map(len, new.values()))
        if left < 0:
            return
        for name, data in new.items():
            (images / name).write_bytes(data)
        kept |= new.keys()
        first, *others = (f"images/{name}" for name in names)
        for row in cases[index].values():
            row |= {"image": first, **({"more_images": others} if others else {})}


def thumbnail(image: Image.Image) -> tuple[bytes, str]:
    """(the file, "png" or "jpeg") of a copy of at most `PICTURE_LIMIT` pixels a side."""
    small = image.convert("RGB")
    small.thumbnail((PICTURE_LIMIT, PICTURE_LIMIT))
    kind = "png" if small.width * small.height <= EXACT_PIXELS else "jpeg"
    file = io.BytesIO()
    small.save(file, kind, quality=82)
    return file.getvalue(), kind


class Album:
    """The different pictures that rows name, each once, as data: addresses, and sizes in pixels, in the order in which
    they were first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.addresses: list[str] = []
        self.sizes: list[Size] = []
        self._places: dict[str, int | None] = {}

    def place(self, name: Any) -> int | None:
        """Where in `addresses` the picture is; None if it was not kept, is damaged, or lies outside the folder."""
        if not isinstance(name, str):
            return None
        if name not in self._places:
            self._places[name] = self._add(name)
        return self._places[name]

    def _add(self, name: str) -> int | None:
        picture = stored_picture(self.folder, name)
        if picture is None:
            return None
        data, kind = _as_kept(self.folder / name) if max(picture.size) <= PICTURE_LIMIT else thumbnail(picture)
        self.sizes.append(picture.size)
        self.addresses.append(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
        return len(self.addresses) - 1


def _as_kept(path: Path) -> tuple[bytes, str]:
    """A file that has been decoded once, as it is: encoding it anew would take longer and blur it."""
    data = path.read_bytes()
    return data, "png" if data.startswith(b"\x89PNG") else "jpeg"
