"""The question itself: one row of a benchmark, whatever the benchmark."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from grit_lite.boxes import Box, Size
from grit_lite.errors import DataError
from grit_lite.triplets import MAX_IMAGE_PIXELS, Triplet
from grit_lite.triplets.images import content, upright


@dataclass(frozen=True)
class Question:
    """One row of a benchmark.

    Args:
        id: unique in the benchmark, stable, safe as a file name.
        text: what is asked, with the choices and the hint that the benchmark itself gives.
        gold: the answer; several that are right alike are separated by "|", unless it is one of the choices.
        images: files, the bytes of files, or pictures that were never one; read them with `load_images`.
        size: (width, height) of the first image, upright.
        scorer: a name of `scorers.SCORERS`; "rule" is the one that the gold answer calls for; "judge".
        dataset: the part of the benchmark that it is reported under.
        cluster: rows with the same value share an image and are drawn together; an empty one is shared with none.
        boxes: where the evidence is, in pixels of the first image, upright; often none.
        facts: what a scorer or an aggregate needs besides: choices, answer_type, precision, pair.
    """

    id: str
    text: str
    gold: str
    images: tuple[Path | bytes | Image.Image, ...]
    size: Size
    scorer: str = "rule"
    dataset: str = ""
    cluster: str = ""
    boxes: tuple[Box, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def load_images(self) -> list[Image.Image]:
        """Fresh RGB images, upright.

        Raises:
            DataError: an image cannot be read, or the first is of another size than it was.
        """
        # A size that was accepted once, above the usual limit on request, is accepted again.
        limit = max(MAX_IMAGE_PIXELS, self.size[0] * self.size[1])
        try:
            images = [upright(image, limit) for image in self.images]
        except DataError as error:
            raise DataError(f"An image of question {self.id} cannot be read: {error}.") from error
        if images[0].size != self.size:
            raise DataError(
                f"The image of question {self.id} has {images[0].size[0]} x {images[0].size[1]} pixels; the benchmark "
                f"says {self.size[0]} x {self.size[1]}. Leave the data alone while it is used; start again."
            )
        return images

    def image_hashes(self) -> list[str]:
        """The sha256 of each image: of its file, or of the pixels of what was never one.

        Raises:
            DataError: an image cannot be read.
        """
        try:
            return [hashlib.sha256(content(image)).hexdigest() for image in self.images]
        except DataError as error:
            raise DataError(f"An image of question {self.id} cannot be read: {error}.") from error


def from_triplet(triplet: Triplet) -> Question:
    """A triplet as a question; triplets with the same image are of one cluster."""
    question = Question(
        id=triplet.id,
        text=triplet.question,
        gold=triplet.answer,
        images=(triplet.image,),
        size=triplet.size,
        dataset=triplet.dataset,
        boxes=triplet.boxes,
    )
    return replace(question, cluster=question.image_hashes()[0][:16])
