"""GRIT's released triplets: which files they are, where each image lives, and how they are read once they are here.

The repository on the hub has rows without images. File names and image folders are those of GRIT's released scripts; a
row looks like {"question": "What is across from the truck?", "answer": "tv", "image": "000000410123.jpg", "width": 640,
"height": 354, "bboxs": [[343.87, 94.03, 396.81, 126.06]], "dataset": "vsr", "split": "train"}. Where the images are is
what public loaders of the same rows use: COCO 2017 for VSR, Visual Genome for TallyQA ("VG_100K_2/2405.jpg") and GQA
("images/2405.jpg"). Neither the repository nor a host could be asked from where this was written and tested.

Not fetched: the MME, MathVista and OVDEval rows of the release, whose images lie in archives elsewhere.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from grit_lite.errors import DataError, NotFetched
from grit_lite.triplets.manifest import Manifest, data_folder
from grit_lite.triplets.rows import BadRow, RawRow, image_inside, read_jsonl, shorten

REPOSITORY = "yfan1997/GRIT_data"
REVISION = "main"  # no commit of it is known to us; the one that was fetched is noted in the manifest
SPLITS = {
    "train": ("tallyqa_train_10.jsonl", "vsr_cot_train_10.jsonl"),
    "val": ("tallyqa_val.jsonl", "vsr_val.jsonl", "gqa_val.jsonl"),
}

# Training reads neither; users found many boxes of the training rows misplaced (issue 2 of GRIT's repository), and a
# box outside its image would cost the triplet.
_UNUSED_IN_TRAINING = {"bboxs", "width", "height"}


@dataclass(frozen=True)
class Sources:
    """Where the files are asked for: a hub (None: the one of huggingface_hub) and two hosts of images, as URLs.

    COCO's own name has no certificate for https; the bucket behind it, named by path, has.
    """

    hub: str | None = None
    coco: str = "https://s3.amazonaws.com/images.cocodataset.org"
    visual_genome: str = "https://cs.stanford.edu/people/rak248"
    trusted: frozenset[str] = frozenset()

    def addresses(self, folder: str, image: str) -> tuple[str, ...]:
        """Where an image of a row may be, likeliest first; `folder` as in `image_folder`."""
        name, path = quote(PurePosixPath(image).name), quote(image)
        match image.partition("/")[0]:
            case "VG_100K" | "VG_100K_2":
                return (f"{self.visual_genome}/{path}",)
            case "train2014" | "val2014" | "train2017" | "val2017":
                return (f"{self.coco}/{path}",)
        if folder == "vsr":
            return (f"{self.coco}/train2017/{name}", f"{self.coco}/val2017/{name}")
        return (f"{self.visual_genome}/VG_100K/{name}", f"{self.visual_genome}/VG_100K_2/{name}")


def grit_folder() -> Path:
    return data_folder() / "grit"


def image_folder(file: str) -> str:
    """The folder of a file's images, as in GRIT's scripts: "tallyqa" for tallyqa_train_10.jsonl."""
    return file.partition("_")[0]


def is_grit(source: str) -> bool:
    return source.partition(":")[0] == "grit"


def require_fetched(source: str) -> None:
    """Refuses GRIT's data where it is not here; says nothing of other sources.

    Raises:
        DataError: there is no such split.
        NotFetched: its rows are not here, or not as they were fetched.
    """
    if not is_grit(source):
        return
    split = _split(source)
    if split not in SPLITS:
        raise DataError(f"GRIT's released data has no split {split!r}; give grit:train or grit:val.")
    manifest = Manifest(grit_folder())
    if not all(manifest.holds(file) for file in SPLITS[split]):
        raise NotFetched(
            f"GRIT's released triplets (data: {source}) are not on this machine, that is in {manifest.folder}. "
            f"Fetch them once, with a network: grit-lite data fetch grit --split {split}"
        )


def read_grit(source: str) -> Iterator[RawRow | BadRow]:
    """The rows of "grit", "grit:train" or "grit:val", as they were fetched; training rows without their boxes.

    Raises as `require_fetched`.
    """
    require_fetched(source)
    split, manifest = _split(source), Manifest(grit_folder())
    for file in SPLITS[split]:
        for raw in read_jsonl(manifest.folder / file, {}):
            yield _prepared(raw, file, split, manifest) if isinstance(raw, RawRow) else raw


def _split(source: str) -> str:
    return source.partition(":")[2] or "train"


def _prepared(raw: RawRow, file: str, split: str, manifest: Manifest) -> RawRow | BadRow:
    image = raw.values.get("image")
    try:
        if isinstance(image, str):
            _check_here(f"{image_folder(file)}/{image}", image, manifest, split)
    except DataError as error:
        return raw.bad(error)
    unused = _UNUSED_IN_TRAINING if split == "train" else set()
    values = {name: value for name, value in raw.values.items() if name not in unused}
    return replace(raw, values=values, roots=(manifest.folder / image_folder(file),))


def _check_here(file: str, image: str, manifest: Manifest, split: str) -> None:
    """An image that was put there by hand is as good as one that was fetched."""
    path = image_inside(image, manifest.folder / file.partition("/")[0])
    again = f"run: grit-lite data fetch grit --split {split}"
    if not os.path.isfile(path):  # unlike Path.is_file it does not raise on a name too long for the disk
        raise DataError(f"image {shorten(image)} has not been fetched; {again}, or put it at {path}")
    if manifest.notes(file) and not manifest.holds(file):
        raise DataError(f"image {shorten(image)} is no longer the one that was fetched; {again}")
