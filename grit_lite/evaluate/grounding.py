"""The boxes of one completion against the gold ones: every number of the evaluation that is about pointing.

`union_iou` is the paper's grounding IoU, in pixels of the original image, of the boxes of the reasoning. The script
that was released with the paper reads boxes anywhere, and leaves those of Qwen models in pixels of the resized image;
`released_union_iou` does the same, so that a number of the paper's Table 1 can be held against ours.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from grit_lite.answer import FOUR_INTEGERS, MAX_BOXES, GroundedAnswer, parse
from grit_lite.boxes import Box, BoxSpace, Numbers, Size, match, union_iou

SAME_BOX = 0.5  # IoU from which on a matched pair counts as found

# What `grounding` says of a row without gold boxes, where there is nothing to overlap.
_NO_GOLD: Mapping[str, None] = dict.fromkeys(("union_iou", "f1", "precision", "recall", "matched_iou"))


def grounding(
    written: Sequence[Numbers], gold: Sequence[Numbers], space: BoxSpace, original: Size, resized: Size
) -> dict[str, Any]:
    """The numbers of one row's boxes.

    Args:
        written: (K, 4) as the model wrote them, in its unit, good and bad ones alike: a bad one is meant to cost.
        gold: (M, 4) in pixels of the original image. Without one all overlaps are None; rows are to be left out.
        original, resized: (width, height) of the image, and of what the model saw.

    Returns:
        union_iou: of the union of the boxes with the union of the gold ones; arXiv 2505.15879, section 4.
        f1, precision, recall: a box counts as found if its IoU with its partner is at least 0.5. Partners are
            one-to-one, by the Hungarian algorithm on the sum of IoUs. 0.0 without boxes.
        matched_iou: the mean IoU of partners over max(K, M) pairs, where a box without a partner counts as 0.
        n_boxes: K. without_box: K is 0.
        off_image: whether a box reaches out of the image. off_image_rate: the share of boxes that do; None for K = 0.
        disordered_rate: the share with x2 <= x1 or y2 <= y1; None for K = 0. Overlaps sort their corners first.
    """
    off_image = [_reaches_out(box, space.extent(resized)) for box in written]
    disordered = [box[2] <= box[0] or box[3] <= box[1] for box in written]
    return {
        **_overlaps(written, gold, space, original, resized),
        "n_boxes": len(written),
        "without_box": not written,
        "off_image": any(off_image),
        "off_image_rate": _share(off_image),
        "disordered_rate": _share(disordered),
    }


def _overlaps(
    written: Sequence[Numbers], gold: Sequence[Numbers], space: BoxSpace, original: Size, resized: Size
) -> Mapping[str, float | None]:
    if not len(gold):
        return _NO_GOLD
    boxes = [space.to_pixels(box, original=original, resized=resized) for box in written]
    overlaps = [overlap for _, _, overlap in match(boxes, gold)]
    found = sum(overlap >= SAME_BOX for overlap in overlaps)
    return {
        "union_iou": union_iou(boxes, gold),
        "f1": 2 * found / (len(boxes) + len(gold)),
        "precision": found / len(boxes) if boxes else 0.0,
        "recall": found / len(gold),
        "matched_iou": sum(overlaps) / max(len(boxes), len(gold)),
    }


def _reaches_out(box: Numbers, extent: Size) -> bool:
    return min(box) < 0 or max(box[0], box[2]) > extent[0] or max(box[1], box[3]) > extent[1]


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def released_union_iou(text: str, gold: Sequence[Numbers], space: BoxSpace, original: Size) -> float | None:
    """The grounding IoU as the released script (extract_eval_results.py of UCSB-AI/GRIT) computes it: Table 1's.

    A box is any four integers with commas between them, anywhere in the completion. Thousandths become whole pixels,
    cut off; pixels of the resized image stay as they are, and are compared with gold boxes in pixels of the original.
    None without gold boxes. Only the first `MAX_BOXES` boxes are read.
    """
    if not len(gold):
        return None
    found = islice(FOUR_INTEGERS.finditer(text), MAX_BOXES)
    boxes = [[float(number) for number in four[0].split(",")] for four in found]
    return union_iou([_released_unit(box, space, original) for box in boxes if max(box) < _TOO_LARGE], gold)


_TOO_LARGE = 1e9  # no coordinate; keeps areas finite


def _released_unit(box: Numbers, space: BoxSpace, original: Size) -> Numbers:
    if space is BoxSpace.RESIZED_PIXELS:
        return box
    return [int(value * side / 1000) for value, side in zip(box, original * 2, strict=True)]


def referred_box(
    answer: GroundedAnswer, space: BoxSpace, original: Size, resized: Size, said: str | None = None
) -> Box | None:
    """The one box that answers "where is …?", in pixels of the original image; None if there is none.

    It is the first box of the answer; where the answer has none ("the left dog"), the first one of the reasoning. A
    model that lists several is taken at its first, as in the benchmarks of referring expressions.

    Args:
        said: what is taken for the answer, if not the text in its tag.
    """
    box = referred(answer, said)
    return None if box is None else space.to_pixels(box, original=original, resized=resized)


def referred(answer: GroundedAnswer, said: str | None = None) -> Numbers | None:
    """The same as the model wrote it."""
    in_answer = parse((answer.answer if said is None else said) or "").boxes
    return next(iter((*in_answer, *(box.numbers for box in answer.chain_boxes))), None)
