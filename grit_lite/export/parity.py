"""Does the exported model answer as the run's model does, and otherwise than the base?

All are asked the same questions about drawn scenes that no training saw, greedily. Completions are compared as text and
by their boxes. Merging rounds: a merge of float32 into float32 changes nothing that can be seen, a merge into 16-bit
weights of an adapter that was trained on 4-bit ones changes completions, and may move a box a little.
"""

import gc
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from grit_lite.answer import parse
from grit_lite.backends import Backend, Request, open_backend
from grit_lite.boxes import Box
from grit_lite.errors import ModelError, OutOfMemory
from grit_lite.evaluate import shapes
from grit_lite.recipe import Recipe
from grit_lite.triplets import Triplet

TOLERANCE = 4.0  # pixels of the drawn scenes, which are 112 wide and high
# The least share of questions on which the exported model must agree.
EXACT, ROUNDED = 0.9, 0.5


class Reply(NamedTuple):
    """A completion, and its boxes in pixels of the image."""

    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Parity:
    """How the exported model's replies compare with the run's, and these with the base's. Shares are within [0, 1].

    Attributes:
        identical: share of completions that are the same, character for character.
        with_boxes: on how many questions the run's model wrote boxes.
        same_boxes: share of those on which the export wrote as many, in the same order, each side within `tolerance`
            pixels; None where there are none.
        agreement: share of questions with an identical completion or with the same boxes, of those on which the run's
            model differs from the base.
        required: the least agreement that passes.
        changed: share of questions on which the run's model writes something else than the base.
    """

    questions: int
    identical: float
    with_boxes: int
    same_boxes: float | None
    tolerance: float
    agreement: float
    required: float
    changed: float

    def require(self) -> None:
        """Raises ModelError where the exported model is not the run's."""
        if self.agreement < self.required:
            raise ModelError(
                f"The exported model does not answer as the run's model does: {self.sentence()} Of the questions that "
                f"tell the two apart it agrees on {self.agreement:.0%}, and {self.required:.0%} must agree. A merge "
                "rounds weights: try --dtype float32, or --format adapter, which changes nothing."
            )

    def sentence(self) -> str:
        said = (
            f"asked {self.questions} questions about drawn scenes, the export gives the same completion as the run's "
        )
        said += f"model on {self.identical:.0%}"
        if self.same_boxes is not None:
            said += f", and the same boxes within {self.tolerance:g} pixels on {self.same_boxes:.0%} of the "
            said += f"{self.with_boxes} with boxes"
        return f"{said}; the run's model differs from the base on {self.changed:.0%}."

    def warnings(self) -> list[str]:
        same = f"On all {self.questions} questions the run's model writes what the base writes: "
        return [] if self.changed else [f"{same}the adapter changes nothing that this check can see."]


def answers(recipe: Recipe, adapter: Path | None, questions: int, *, adapter_on: Sequence[bool]) -> list[list[Reply]]:
    """The replies of one model to the questions of the check, once with its adapter on or off for each of `adapter_on`.

    Raises:
        OutOfMemory: the model does not fit beside what is on the GPU already.
    """
    try:
        backend = open_backend(recipe, adapter)
        replies = [_replies(backend, shapes(questions)[:questions], recipe, on) for on in adapter_on]
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"The model does not fit into the GPU's memory for the check: {error}\nHide the GPU from it "
            "(CUDA_VISIBLE_DEVICES= grit-lite export …), which is slow, or leave the check out: --questions 0."
        ) from error
    del backend
    gc.collect()  # the next model needs the room
    torch.cuda.empty_cache()
    return replies


def _replies(backend: Backend, triplets: Sequence[Triplet], recipe: Recipe, use_adapter: bool) -> list[Reply]:
    requests = [Request((row.load_image(),), backend.spec.prompts.render(row.question)) for row in triplets]
    generated = backend.generate(
        requests, max_new_tokens=recipe.max_completion_tokens, use_adapter=use_adapter, batch_size=8
    )
    return [
        Reply(
            completion.text,
            tuple(
                backend.spec.box_space.to_pixels(box, original=request.image.size, resized=completion.resized)
                for box in parse(completion.text).boxes
            ),
        )
        for request, completion in zip(requests, generated, strict=True)
    ]


def compare(base: Sequence[Reply], tuned: Sequence[Reply], exported: Sequence[Reply], *, exact: bool) -> Parity:
    """The parity of the replies to the same questions, in order.

    Args:
        exact: whether nothing was rounded on the way, so that almost everything must agree.
    """
    pairs = list(zip(tuned, exported, strict=True))
    boxed = [_same_boxes(before, after) for before, after in pairs if before.boxes]
    # Where the adapter changes nothing an export without it would agree, too.
    changed = [before.text != after.text for before, after in zip(base, tuned, strict=True)]
    telling = [pair for pair, differs in zip(pairs, changed, strict=True) if differs or not any(changed)]
    agree = [before.text == after.text or (before.boxes and _same_boxes(before, after)) for before, after in telling]
    return Parity(
        questions=len(pairs),
        identical=_share(before.text == after.text for before, after in pairs),
        with_boxes=len(boxed),
        same_boxes=_share(boxed) if boxed else None,
        tolerance=TOLERANCE,
        agreement=_share(agree),
        required=EXACT if exact else ROUNDED,
        changed=_share(changed),
    )


def _same_boxes(before: Reply, after: Reply) -> bool:
    sides = zip(before.boxes, after.boxes, strict=False)
    return len(before.boxes) == len(after.boxes) and all(
        abs(one - other) <= TOLERANCE for pair in sides for one, other in zip(*pair, strict=True)
    )


def _share(values: Iterable[object]) -> float:
    return statistics.fmean(bool(value) for value in values)
