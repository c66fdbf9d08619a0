"""The triplet itself: what every later room is handed."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from grit_lite.boxes import Box, Size
from grit_lite.errors import DataError
from grit_lite.tiny.questions import SceneQuestion
from grit_lite.triplets.images import MAX_IMAGE_PIXELS, upright

COUNTING = frozenset({"tallyqa", "shapes_count"})  # datasets whose answer is a number of things in the image


@dataclass(frozen=True)
class Triplet:
    """An image, a question about it and the answer.

    Args:
        id: unique in its source, stable, safe as a file name.
        image: a file, or the bytes of one, or a picture that was never a file; read it with `load_image`.
        size: (width, height) of the upright image.
        boxes: where the evidence is, in pixels of the upright image; often none. Training never reads them.
    """

    id: str
    question: str
    answer: str
    image: Path | bytes | Image.Image
    size: Size
    boxes: tuple[Box, ...]
    dataset: str
    split: str

    def load_image(self) -> Image.Image:
        """A fresh RGB image, upright.

        Raises:
            DataError: the file is gone, or is no longer the image that was checked.
        """
        try:
            # A size that was accepted once, above the usual limit on request, is accepted again.
            image = upright(self.image, max(MAX_IMAGE_PIXELS, self.size[0] * self.size[1]))
        except DataError as error:
            raise DataError(f"The image of triplet {self.id} cannot be read: {error}.") from error
        if image.size != self.size:
            raise DataError(
                f"The image of triplet {self.id} has {image.size[0]} x {image.size[1]} pixels; when the data was "
                f"checked it had {self.size[0]} x {self.size[1]}. Leave the data alone while it is used; start again."
            )
        return image


def from_scene_question(question: SceneQuestion, index: int, split: str = "test") -> Triplet:
    """A question about a drawn scene as a triplet; its picture stays in memory. `index` makes its id unique."""
    dataset = f"shapes_{question.kind}"
    return Triplet(
        id=f"{dataset}-{split}-{index:05d}",
        question=question.question,
        answer=question.answer,
        image=question.image,
        size=question.image.size,
        boxes=question.boxes,
        dataset=dataset,
        split=split,
    )
