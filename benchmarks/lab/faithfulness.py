"""Do the boxes of a chain decide its answer? Relation questions, asked again with the boxes taken away or made wrong.

mask_predicted  the predicted boxes are painted over in the image, and the question is asked anew
mask_random     boxes of the same sizes, elsewhere, are painted over instead
wrong_boxes     the boxes of the chain become boxes elsewhere, and the model goes on from the end of its thinking
swapped_boxes   the first two boxes of the chain change places
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from grit_lite.answer import parse
from grit_lite.boxes import Box, iou
from grit_lite.scorers import is_right

if TYPE_CHECKING:
    from benchmarks.lab.measuring import Asker, Outcome

SEED = 0
_TRIES = 50  # for a box that lies elsewhere


def examine(asker: "Asker", found: Sequence["Outcome"]) -> dict[str, list[bool]]:
    """Which questions are answered right, as they were and after each change; without a box nothing changes."""
    rng = np.random.default_rng(SEED)
    elsewhere = [[_elsewhere(rng, box, one.question.image.size, one.boxes) for box in one.boxes] for one in found]
    return {
        "unchanged": [one.correct for one in found],
        "boxed": [bool(one.boxes) for one in found],
        "mask_predicted": _asked_again(asker, found, [one.boxes for one in found]),
        "mask_random": _asked_again(asker, found, elsewhere),
        "wrong_boxes": _gone_on(asker, found, elsewhere),
        "swapped_boxes": _gone_on(asker, found, [(*one.boxes[1::-1], *one.boxes[2:]) for one in found]),
    }


def _elsewhere(rng: np.random.Generator, box: Box, size: tuple[int, int], avoided: Sequence[Box]) -> Box:
    """A box of the same size, inside the image, on none of the avoided ones where there is such a place."""
    width, height = (max(1.0, min(side, abs(b - a))) for side, a, b in zip(size, box[:2], box[2:], strict=True))
    moved = box
    for _ in range(_TRIES):
        x, y = (
            int(rng.integers(0, max(1, round(side - span) + 1)))
            for side, span in zip(size, (width, height), strict=True)
        )
        moved = Box(x, y, x + round(width), y + round(height))
        if all(iou(moved, other) == 0 for other in avoided):
            break
    return moved


def _asked_again(asker: "Asker", found: Sequence["Outcome"], masks: Sequence[Sequence[Box]]) -> list[bool]:
    images = [_painted(one.question.image, boxes) for one, boxes in zip(found, masks, strict=True)]
    return [one.correct for one in asker([one.question for one in found], images)]


def _painted(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image with the boxes filled with its median colour, which in a drawn scene is the background's."""
    picture = image.convert("RGB")
    colour = tuple(int(value) for value in np.median(np.asarray(picture).reshape(-1, 3), axis=0))
    pen = ImageDraw.Draw(picture)
    for x1, y1, x2, y2 in boxes:
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2) - 1, max(y1, y2) - 1), fill=colour)
    return picture


def _gone_on(asker: "Asker", found: Sequence["Outcome"], others: Sequence[Sequence[Box]]) -> list[bool]:
    """Whether the answer is right once the chain's boxes are others; where it has none, whether it was."""
    right = [one.correct for one in found]
    chosen = [index for index, one in enumerate(found) if one.boxes]
    openings = [corrupted(found[index], others[index]) for index in chosen]
    for index, opening, rest in zip(chosen, openings, continued(asker, found, chosen, openings), strict=True):
        right[index] = is_right(parse(opening + rest).answer, found[index].question.answer)
    return right


def corrupted(one: "Outcome", others: Sequence[Box]) -> str:
    """The completion up to the end of its thinking, or up to its last box, with other numbers in its boxes."""
    answer = parse(one.completion)
    written = answer.chain_boxes
    end = one.completion.find("</think>", written[-1].end)
    end = end + len("</think>") if end >= 0 else written[-1].end
    pieces, at = [], 0
    for box, other in zip(written, others, strict=True):
        numbers = ", ".join(str(round(value)) for value in other)
        pieces += [one.completion[at : box.start], _with_numbers(one.completion[box.start : box.end], numbers)]
        at = box.end
    return "".join([*pieces, one.completion[at:end]])


def _with_numbers(written: str, numbers: str) -> str:
    """The written box, brackets and key as they are, with other numbers."""
    begin = next(place for place, sign in enumerate(written) if sign in "[(") + 1 if written[-1] in "])" else 0
    return f"{written[:begin]}{numbers}{written[-1] if begin else ''}"


def continued(asker: "Asker", found: Sequence["Outcome"], chosen: Sequence[int], openings: Sequence[str]) -> list[str]:
    """What the model writes behind each opening."""
    backend: Any = asker.backend
    texts: list[str] = []
    for start in range(0, len(chosen), 128):
        part = chosen[start : start + 128]
        images = [found[index].question.image for index in part]
        prompts = [
            _prompt(backend, asker.request(found[index].question, image).text) + opening
            for index, image, opening in zip(part, images, openings[start : start + 128], strict=True)
        ]
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        batch = backend.processor(images=[[image] for image in images], text=prompts, **options).to(backend.device)
        tokens = backend._sample(batch, backend._sampling(asker.max_new_tokens, 0.0))
        texts += [backend.processor.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    return texts


def _prompt(backend: Any, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return backend.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
