"""The ways to ask a question again: each turns an answered question into other images, or another beginning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from grit_lite.answer import GroundedAnswer, parse
from grit_lite.backends import Backend
from grit_lite.boxes import Box, Size
from grit_lite.evaluate.faithfulness import interventions
from grit_lite.evaluate.faithfulness.interventions import (
    blank,
    cover_elsewhere,
    elsewhere,
    hidden,
    keep_only,
    numbers_of,
    paint_over,
    rectangles,
    swapped,
    thought_boxes,
    written_like,
)
from grit_lite.evaluate.question import Question


class Other(NamedTuple):
    """A question about another image, and what the model answered."""

    question: Question
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A question and what a model answered; its boxes are those of the chain, in pixels of the image.

    Where there are several images, nothing in a chain says which of them a box lies on: it has no place.

    Attributes:
        row: of the evaluation, with `id`, `completion` and `answer`; and `opening`, if the completion was made to begin
            with something.
        cluster: equal for questions about the same image.
        other: with as many images; None where there is none.
    """

    question: Question
    row: Mapping[str, Any]
    backend: Backend
    cluster: str
    other: Other | None

    @cached_property
    def images(self) -> list[Image.Image]:
        return self.question.load_images()

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @property
    def has_several(self) -> bool:
        """Whether there are several images."""
        return len(self.question.images) > 1

    @property
    def begun(self) -> str:
        """What the completion was made to begin with."""
        return self.row.get("opening", "")

    @cached_property
    def answer(self) -> GroundedAnswer:
        return parse(self.row["completion"])

    @cached_property
    def numbers(self) -> list[list[str]]:
        """Of the boxes of thought, as they are written."""
        return numbers_of(self.answer.text, thought_boxes(self.answer))

    @cached_property
    def boxes(self) -> list[Box]:
        space, sizes = self.backend.spec.box_space, self._sizes
        return [space.to_pixels(box.numbers, **sizes) for box in self.answer.chain_boxes]

    @property
    def thought(self) -> list[Box]:
        """The boxes of thought, which are the first ones."""
        return self.boxes[: len(self.numbers)]

    @cached_property
    def has_boxes(self) -> bool:
        """Whether a box of the chain covers anything of the image, or of one of several."""
        return bool(self.answer.chain_boxes and (self.has_several or rectangles(self.boxes, self.image.size)))

    def opening(self, numbers: Sequence[Sequence[str]]) -> str:
        """The chain up to its last box of thought, with other numbers in these boxes."""
        return interventions.opening(self.answer, numbers, self.backend.processor.tokenizer)

    def as_written(self, boxes: Sequence[Box]) -> list[list[str]]:
        """The numbers of other boxes of thought as the model would write them, in the form of its own."""
        space, sizes = self.backend.spec.box_space, self._sizes
        return written_like([space.from_pixels(box, **sizes) for box in boxes], self.numbers)

    @cached_property
    def _sizes(self) -> dict[str, Size]:
        return {"original": self.image.size, "resized": self.backend.resized(self.image)}


class Change(NamedTuple):
    """What is asked instead: about other images, or with another beginning of the completion.

    Attributes:
        boxes: those that were painted over, left, or written, in pixels of the image.
        hid: the share of their pixels that look different, where they were painted over.
    """

    images: Sequence[Image.Image]
    opening: str
    boxes: Sequence[Box] = ()
    hid: float | None = None


def _mask_predicted(case: Case, rng: np.random.Generator) -> Change:
    return _mask(case, case.boxes)


def _mask_random(case: Case, rng: np.random.Generator) -> Change:
    return _mask(case, cover_elsewhere(case.boxes, case.image.size, rng))


def _mask(case: Case, boxes: Sequence[Box]) -> Change:
    painted = paint_over(case.image, boxes)
    return Change([painted], case.begun, boxes, hidden(case.image, painted, boxes))


def _keep_predicted(case: Case, rng: np.random.Generator) -> Change:
    return Change([keep_only(case.image, case.boxes)], case.begun, case.boxes)


def _blank(case: Case, rng: np.random.Generator) -> Change:
    return Change([blank(image) for image in case.images], case.begun)


def _shuffled(case: Case, rng: np.random.Generator) -> Change | None:
    return Change(case.other.question.load_images(), case.begun) if case.other is not None else None


def _same_boxes(case: Case, rng: np.random.Generator) -> Change:
    return Change(case.images, case.opening(case.numbers), case.thought)


def _wrong_boxes(case: Case, rng: np.random.Generator) -> Change:
    boxes = elsewhere(case.thought, case.image.size, rng, avoid=case.question.boxes)
    return Change(case.images, case.opening(case.as_written(boxes)), boxes)


def _swapped_boxes(case: Case, rng: np.random.Generator) -> Change | None:
    if len(case.numbers) < 2 or case.thought[0] == case.thought[1]:
        return None
    return Change(case.images, case.opening(swapped(case.numbers)), swapped(case.thought))


# A condition gives None where it does not apply.
CONDITIONS: dict[str, Callable[[Case, np.random.Generator], Change | None]] = {
    "mask_predicted": _mask_predicted,
    "mask_random": _mask_random,
    "keep_predicted": _keep_predicted,
    "blank": _blank,
    "shuffled": _shuffled,
    "same_boxes": _same_boxes,
    "wrong_boxes": _wrong_boxes,
    "swapped_boxes": _swapped_boxes,
}
# Those that ask nothing of where the boxes are; of several images they change all.
WHOLE_IMAGES = ("blank", "shuffled")
