"""Does the answer depend on the boxes? The question is asked again with what the boxes show, or say, changed.

Images are changed and the question is asked anew: the predicted boxes painted over, against boxes of the same sizes
elsewhere; only the boxes left; nothing left; the image of another question. Or the chain is changed: its boxes get
other numbers, everything behind the last of them is cut off, and the model goes on from there, against going on from
the same chain unchanged. A model that answers from what its boxes show, and reads what it wrote, changes its answer.

Every draw starts from (seed, question, condition), so that it depends neither on the order nor on the other questions.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from grit_lite.answer import GroundedAnswer, WrittenBox, number_spans, parse
from grit_lite.backends import Backend, Request
from grit_lite.boxes import Box, Size
from grit_lite.evaluate.statistics import Cell, paired_difference, ratio, wilson
from grit_lite.scorers import is_right

Row = dict[str, Any]
_T = TypeVar("_T")
Rectangle = tuple[int, int, int, int]  # whole pixels: left, top, right, bottom; the last two are one past the end

MOST_PLACES = 128  # on each axis, at which a box elsewhere is tried
LEAST_FRAME = 2  # pixels around a box, whose colour it is painted over with


# --- changed images: (image, boxes in its pixels) -> another image


def paint_over(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image with each box filled with the median colour of a narrow frame around it.

    On an even background the object is gone without a trace. A grey box, or one in the mean colour of the image, would
    be a thing of its own there, which a model could see, count and box. The frame leaves out what other boxes cover.
    """
    pixels = _pixels(image)
    covered = _covered(boxes, image.size)
    painted = pixels.copy()
    for left, top, right, bottom in _rectangles(boxes, image.size):
        width = max(LEAST_FRAME, max(image.size) // 50)
        frame = np.s_[max(0, top - width) : bottom + width, max(0, left - width) : right + width]
        around = pixels[frame][~covered[frame]]
        painted[top:bottom, left:right] = _median(around if len(around) else pixels)
    return Image.fromarray(painted)


def keep_only(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image with everything outside the boxes in the median colour of what was there."""
    pixels = _pixels(image)
    outside = ~_covered(boxes, image.size)
    if outside.any():
        pixels[outside] = _median(pixels[outside])
    return Image.fromarray(pixels)


def blank(image: Image.Image) -> Image.Image:
    """An image of the same size, all in the median colour of this one."""
    return keep_only(image, [])


def _pixels(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))  # (H, W, 3), a copy


def _median(colours: np.ndarray) -> np.ndarray:
    return np.median(colours.reshape(-1, 3), axis=0).round().astype(np.uint8)


def _covered(boxes: Sequence[Box], size: Size) -> np.ndarray:
    """(H, W) of whether a pixel lies in a box, wholly or in part."""
    covered = np.zeros((size[1], size[0]), dtype=bool)
    for left, top, right, bottom in _rectangles(boxes, size):
        covered[top:bottom, left:right] = True
    return covered


def _rectangles(boxes: Sequence[Box], size: Size) -> list[Rectangle]:
    """The pixels of each box inside the image; boxes without any are left out, corners are sorted."""
    found = []
    for box in boxes:
        (left, right), (top, bottom) = (sorted((box[axis], box[axis + 2])) for axis in (0, 1))
        limits = max(0, floor(left)), max(0, floor(top)), min(size[0], ceil(right)), min(size[1], ceil(bottom))
        if limits[0] < limits[2] and limits[1] < limits[3]:
            found.append(limits)
    return found


# --- other places


def elsewhere(boxes: Sequence[Box], size: Size, rng: np.random.Generator, avoid: Sequence[Box] = ()) -> list[Box]:
    """Boxes of the same sizes at random places inside the image.

    Each is drawn among the places where it covers least of the box that it stands for, and of those where it covers
    least of the others, of `avoid`, and of those drawn before it. It covers nothing of its own where that is possible.
    """
    drawn: list[Box] = []
    for number, box in enumerate(boxes):
        others = [*boxes[:number], *boxes[number + 1 :], *avoid, *drawn]
        drawn.append(_another_place(box, others, size, rng))
    return drawn


def _another_place(box: Box, others: Sequence[Box], size: Size, rng: np.random.Generator) -> Box:
    width, height = (min(abs(box[axis + 2] - box[axis]), size[axis]) for axis in (0, 1))
    xs, ys = _steps(size[0] - width), _steps(size[1] - height)
    own, rest = (_overlap(xs, ys, (width, height), taken) for taken in ([box], others))
    free = own == own.min()
    row, column = rng.choice(np.argwhere(free & (rest == rest[free].min())))
    return Box(float(xs[column]), float(ys[row]), float(xs[column] + width), float(ys[row] + height))


def _steps(room: float) -> np.ndarray:
    """Whole pixels where there are few; both ends are always among them, which are free if anything is."""
    return np.linspace(0, room, min(int(room), MOST_PLACES) + 1) if room >= 1 else np.array([0.0])


def _overlap(xs: np.ndarray, ys: np.ndarray, size: tuple[float, float], boxes: Sequence[Box]) -> np.ndarray:
    """(Y, X): the area that a box of this size at each place has in common with the boxes, in sum."""
    total = np.zeros((len(ys), len(xs)))
    for box in boxes:
        shared = []
        for steps, side, axis in ((ys, size[1], 1), (xs, size[0], 0)):
            low, high = sorted((box[axis], box[axis + 2]))
            shared.append(np.clip(np.minimum(steps + side, high) - np.maximum(steps, low), 0, None))
        total += np.outer(*shared)
    return total


# --- changed chains: a completion -> what it is made to begin with


def thought_boxes(answer: GroundedAnswer) -> tuple[WrittenBox, ...]:
    """The boxes before `</think>`; where there are none, all of the chain.

    What is said behind `</think>` draws on the boxes before it, so it cannot stand while they change.
    """
    end = answer.text.find("</think>", answer.chain_start)
    return tuple(box for box in answer.chain_boxes if box.end <= end) or answer.chain_boxes


def with_numbers(text: str, boxes: Sequence[WrittenBox], numbers: Sequence[Sequence[str]]) -> str:
    """The text with other numbers in these boxes, which stand in its order, and nothing else changed."""
    pieces, last = [], 0
    for box, four in zip(boxes, numbers, strict=True):
        for (start, end), new in zip(number_spans(text, box), four, strict=True):
            pieces += [text[last:start], new]
            last = end
    return "".join([*pieces, text[last:]])


def numbers_of(text: str, boxes: Sequence[WrittenBox]) -> list[list[str]]:
    """The four numbers of each box, as they are written."""
    return [[text[start:end] for start, end in number_spans(text, box)] for box in boxes]


def swapped(boxes: Sequence[_T]) -> list[_T]:
    """The boxes, or their numbers, with the first two exchanged."""
    first, second, *others = boxes
    return [second, first, *others]


def written_like(values: Sequence[Sequence[float]], numbers: Sequence[Sequence[str]]) -> list[list[str]]:
    """The values as text, with as many decimals as the number in the same place has."""
    return [
        [f"{value:.{len(old.partition('.')[2])}f}" for value, old in zip(box, olds, strict=True)]
        for box, olds in zip(values, numbers, strict=True)
    ]


def opening(answer: GroundedAnswer, numbers: Sequence[Sequence[str]], tokenizer: Any) -> str:
    """The completion up to its last box of thought, with other numbers in its boxes.

    It ends with a whole token: of `[1, 2, 3, 4], "label"`, many tokenizers have `],` as one, and no model has been seen
    to go on behind `]` there.
    """
    boxes = thought_boxes(answer)
    end = boxes[-1].end
    changed = with_numbers(answer.text[:end], boxes, numbers)
    return up_to_whole_token(tokenizer, changed + answer.text[end:], len(changed))


def up_to_whole_token(tokenizer: Any, text: str, length: int) -> str:
    """At least `length` characters of the text, and as few more as the token takes that holds the last of them."""
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    ends = (end for _, end in tokenizer(text, return_offsets_mapping=True, **plain)["offset_mapping"])
    return text[: next((end for end in ends if end >= length), len(text))]


# --- conditions: an answered question -> what is asked instead


@dataclass(frozen=True)
class Case:
    """An answered question whose chain has boxes in the image.

    Attributes:
        question: a `Triplet`, or what has `load_image`, `size` and `boxes` like one.
        row: of the evaluation, with `id`, `dataset`, `question`, `gold`, `completion`, `answer`, `correct`; and
            `opening`, if its completion was made to begin with something.
        cluster: equal for questions about the same image.
        other: a question about another image; None where there is none.
    """

    question: Any
    row: Mapping[str, Any]
    backend: Backend
    cluster: str
    other: Any

    @cached_property
    def has_boxes(self) -> bool:
        return bool(self.answer.chain_boxes and _rectangles(self.boxes, self.image.size))

    @property
    def prompt(self) -> str:
        return self.backend.spec.prompts.render(self.row["question"])

    @property
    def begun(self) -> str:
        return self.row.get("opening", "")

    @cached_property
    def image(self) -> Image.Image:
        return self.question.load_image()

    @cached_property
    def answer(self) -> GroundedAnswer:
        return parse(self.row["completion"])

    @cached_property
    def numbers(self) -> list[list[str]]:
        """Of the boxes of thought, as they are written."""
        return numbers_of(self.answer.text, thought_boxes(self.answer))

    @cached_property
    def boxes(self) -> list[Box]:
        """Of the chain, in pixels of the image; those of thought are the first ones."""
        space, sizes = self.backend.spec.box_space, self._sizes
        return [space.to_pixels(box.numbers, **sizes) for box in self.answer.chain_boxes]

    @property
    def thought(self) -> list[Box]:
        return self.boxes[: len(self.numbers)]

    def opening(self, numbers: Sequence[Sequence[str]]) -> str:
        return opening(self.answer, numbers, self.backend.processor.tokenizer)

    def as_written(self, boxes: Sequence[Box]) -> list[list[str]]:
        """Boxes of thought in pixels of the image as the model would write them, in the form of its own."""
        space, sizes = self.backend.spec.box_space, self._sizes
        return written_like([space.from_pixels(box, **sizes) for box in boxes], self.numbers)

    @cached_property
    def _sizes(self) -> dict[str, Size]:
        return {"original": self.image.size, "resized": self.backend.resized(self.image)}


class Change(NamedTuple):
    """What is asked instead: about another image, or with another beginning of the completion.

    Attributes:
        boxes: those that were painted over, left, or written, in pixels of the image.
    """

    image: Image.Image
    opening: str
    boxes: Sequence[Box] = ()


Condition = Callable[[Case, np.random.Generator], Change | None]  # None where it does not apply


def _mask_predicted(case: Case, rng: np.random.Generator) -> Change:
    return Change(paint_over(case.image, case.boxes), case.begun, case.boxes)


def _mask_random(case: Case, rng: np.random.Generator) -> Change:
    boxes = elsewhere(case.boxes, case.image.size, rng)
    return Change(paint_over(case.image, boxes), case.begun, boxes)


def _keep_predicted(case: Case, rng: np.random.Generator) -> Change:
    return Change(keep_only(case.image, case.boxes), case.begun, case.boxes)


def _blank(case: Case, rng: np.random.Generator) -> Change:
    return Change(blank(case.image), case.begun)


def _shuffled(case: Case, rng: np.random.Generator) -> Change | None:
    return Change(case.other.load_image(), case.begun) if case.other is not None else None


def _same_boxes(case: Case, rng: np.random.Generator) -> Change:
    return Change(case.image, case.opening(case.numbers), case.thought)


def _wrong_boxes(case: Case, rng: np.random.Generator) -> Change:
    boxes = elsewhere(case.thought, case.image.size, rng, avoid=case.question.boxes)
    return Change(case.image, case.opening(case.as_written(boxes)), boxes)


def _swapped_boxes(case: Case, rng: np.random.Generator) -> Change | None:
    if len(case.numbers) < 2 or case.thought[0] == case.thought[1]:
        return None
    return Change(case.image, case.opening(swapped(case.numbers)), swapped(case.thought))


CONDITIONS: dict[str, Condition] = {
    "mask_predicted": _mask_predicted,
    "mask_random": _mask_random,
    "keep_predicted": _keep_predicted,
    "blank": _blank,
    "shuffled": _shuffled,
    "same_boxes": _same_boxes,
    "wrong_boxes": _wrong_boxes,
    "swapped_boxes": _swapped_boxes,
}


# --- asking


def faithfulness(
    backend: Backend,
    questions: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    conditions: Sequence[str] = tuple(CONDITIONS),
    max_new_tokens: int,
    batch_size: int = 32,
    use_adapter: bool = True,
    seed: int = 0,
    reference: float | Mapping[str, float] | None = None,
    is_correct: Callable[[str | None, Mapping[str, Any]], float] = lambda answer, row: is_right(answer, row["gold"]),
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Every row of every condition, and their summary. Decoding is greedy.

    Args:
        questions: what was asked, a `Triplet` or the like for each row.
        rows: what the evaluation wrote of one system under the GRIT prompt, in the order of the questions.
        conditions: names from `CONDITIONS`.
        use_adapter: whether the system has its adapter on.
        reference: the accuracy that boxes add to: one for all, or of each id; for instance of the base asked directly.
        is_correct: an answer and its row -> 0 … 1.
        progress: told ("faithfulness", questions done, questions in all) after each batch.

    Returns:
        (rows, summary): see `summarise`. Besides one row for each condition that applies, each question has a row
        "unchanged", with what the evaluation found, or "without_boxes", if there was nothing to change.
    """
    found: list[Row] = []
    clusters = _clusters(questions, rows)
    for start in range(0, len(rows), batch_size):
        part = range(start, min(start + batch_size, len(rows)))
        cases = [Case(questions[k], rows[k], backend, clusters[k], _other(questions, clusters, k, seed)) for k in part]
        found += [_row(case, "unchanged" if case.has_boxes else "without_boxes") for case in cases]
        asked = list(_changes([case for case in cases if case.has_boxes], conditions, seed))
        options = {"max_new_tokens": max_new_tokens, "use_adapter": use_adapter, "batch_size": batch_size}
        generated = backend.generate(
            [Request((change.image,), case.prompt, change.opening) for case, _, change in asked], **options
        )
        for (case, condition, change), one in zip(asked, generated, strict=True):
            found.append(_changed_row(case, condition, change, change.opening + one.text, is_correct))
        if progress:
            progress("faithfulness", part.stop, len(rows))
    return found, summarise(found, reference)


def _changes(cases: Sequence[Case], conditions: Sequence[str], seed: int) -> Iterator[tuple[Case, str, Change]]:
    """One condition after the other, so that what is generated together is about as long."""
    for condition in conditions:
        for case in cases:
            change = CONDITIONS[condition](case, _generator(seed, case.row["id"], condition))
            if change is not None:
                yield case, condition, change


def _generator(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _clusters(questions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What rows about the same image share: what the row says, or the image itself."""
    numbers: dict[Any, int] = {}
    keys = [row.get("cluster") or _image_key(question) for question, row in zip(questions, rows, strict=True)]
    return [str(numbers.setdefault(key, len(numbers))) for key in keys]


def _image_key(question: Any) -> Any:
    image = question.image
    return image.tobytes() if isinstance(image, Image.Image) else image


def _other(questions: Sequence[Any], clusters: Sequence[str], index: int, seed: int) -> Any:
    """A question about another image: the first one behind a random place."""
    first = int(_generator(seed, questions[index].id).integers(len(questions)))
    order = (*range(first, len(questions)), *range(first))
    return next((questions[k] for k in order if clusters[k] != clusters[index]), None)


def _row(case: Case, condition: str) -> Row:
    kept = {name: case.row[name] for name in ("id", "dataset", "gold", "answer", "correct")}
    return {"condition": condition, "cluster": case.cluster, **kept, "correct": float(kept["correct"]), "flipped": 0.0}


def _changed_row(
    case: Case,
    condition: str,
    change: Change,
    completion: str,
    is_correct: Callable[[str | None, Mapping[str, Any]], float],
) -> Row:
    answer = parse(completion).answer
    return {
        **_row(case, condition),
        "answer": answer,
        "correct": float(is_correct(answer, case.row)),
        "flipped": float(_plain(answer) != _plain(case.row["answer"])),
        "completion": completion,
        "opening": change.opening,
        "boxes": [list(box) for box in change.boxes],
    }


def _plain(answer: str | None) -> str | None:
    """An answer without what makes no other one of it: case, spacing, marks at its ends."""
    return None if answer is None else " ".join(answer.casefold().split()).strip(" .,;:!?\"'*`()[]")


# --- numbers

# What is compared with what: (measure, condition, control); the first minus the second.
EFFECTS = {
    "grounding": ("flipped", "mask_predicted", "mask_random"),
    "reading": ("flipped", "wrong_boxes", "same_boxes"),
    "reading_swapped": ("flipped", "swapped_boxes", "same_boxes"),
    "grounding_accuracy": ("correct", "mask_predicted", "mask_random"),
    "reading_accuracy": ("correct", "wrong_boxes", "same_boxes"),
    "reading_swapped_accuracy": ("correct", "swapped_boxes", "same_boxes"),
}


def summarise(rows: Sequence[Row], reference: float | Mapping[str, float] | None = None) -> dict[str, Any]:
    """What the rows come to, each number with its 95 % interval over images.

    Returns:
        `questions`; `without_boxes`, which nothing else counts; `unanswered` before anything was changed; `accuracy`
        of the unchanged; by condition `n`, `accuracy`, `flip_rate` (the share of answers that are another one than the
        unchanged) and `unanswered`; `effects`: each of `EFFECTS` as a paired difference over the questions of both;
        with a reference `taken_away`: (accuracy of the control - accuracy of the condition) / (accuracy of the control
        - reference), None where the control is not above the reference for sure.
    """
    by_condition: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_condition[row["condition"]][row["id"]] = row
    without = by_condition.pop("without_boxes", {})
    unchanged = by_condition.pop("unchanged", {})
    effects = {name: effect for name, effect in EFFECTS.items() if {*effect[1:]} <= by_condition.keys()}
    result = {
        "questions": len(unchanged) + len(without),
        "without_boxes": len(without),
        "unanswered": sum(row["answer"] is None for row in unchanged.values()),
        "accuracy": _rate(list(unchanged.values()), "correct"),
        "conditions": {name: _condition(list(own.values())) for name, own in by_condition.items()},
        "effects": {name: _effect(by_condition, *effect) for name, effect in effects.items()},
    }
    if reference is not None:
        pairs = {condition: control for _, condition, control in effects.values()}
        taken = {name: _taken_away(by_condition[name], by_condition[of], reference) for name, of in pairs.items()}
        result["taken_away"] = taken
    return result


def _condition(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "n": len(rows),
        "accuracy": _rate(rows, "correct"),
        "flip_rate": _rate(rows, "flipped"),
        "unanswered": sum(row["answer"] is None for row in rows),
    }


def _rate(rows: Sequence[Row], measure: str) -> dict[str, Any]:
    """Wilson's interval where every row is of another image and right or wrong, else a bootstrap over images."""
    values, clusters = [row[measure] for row in rows], [row["cluster"] for row in rows]
    if len(set(clusters)) == len(rows) and set(values) <= {0.0, 1.0}:
        return wilson(int(sum(values)), len(values))._asdict()
    value, low, high, n = paired_difference(values, [0.0] * len(values), clusters)
    return Cell(value, low, high, n)._asdict()


def _effect(
    by_condition: Mapping[str, Mapping[str, Row]], measure: str, condition: str, control: str
) -> dict[str, Any]:
    changed, unchanged = by_condition[condition], by_condition[control]
    both = [id for id in changed if id in unchanged]
    a, b = ([rows[id][measure] for id in both] for rows in (changed, unchanged))
    return paired_difference(a, b, [changed[id]["cluster"] for id in both])._asdict()


def _taken_away(
    changed: Mapping[str, Row], control: Mapping[str, Row], reference: float | Mapping[str, float]
) -> dict[str, Any]:
    both = [id for id in changed if id in control]
    lost = [control[id]["correct"] - changed[id]["correct"] for id in both]
    floor_of = reference.__getitem__ if isinstance(reference, Mapping) else lambda _: reference
    gained = [control[id]["correct"] - floor_of(id) for id in both]
    return ratio(lost, gained, [changed[id]["cluster"] for id in both])._asdict()
