"""1 DATA: image, question and answer, checked before anything is trained on them.

Whatever the source (GRIT's JSONL, a folder, a Hugging Face dataset, the embedded twenty), a row becomes a `Triplet` or a
`BadRow` that says where it is and how to put it right. Boxes are in pixels of the upright image from here on.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from grit_lite.boxes import Box, Size
from grit_lite.errors import DataError
from grit_lite.triplets.images import decode, read_bytes

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
        if isinstance(self.image, Image.Image):
            return self.image.convert("RGB")
        try:
            data = self.image if isinstance(self.image, bytes) else read_bytes(self.image)
            image = decode(data, self.size[0] * self.size[1])
        except DataError as error:
            raise DataError(f"the image of triplet {self.id} cannot be read: {error}.") from error
        if image.size != self.size:
            raise DataError(
                f"the image of triplet {self.id} is {image.size[0]} x {image.size[1]}, but it was "
                f"{self.size[0]} x {self.size[1]} when the data was checked. Start again with the data as it is."
            )
        return image
