"""The same held-out questions to every model: answers, form, boxes, length, and what the boxes are worth.

Answers are greedy, but for some that are asked once more at temperature 1, as training samples.

Outcomes are kept question by question, packed, so that any two runs can be compared on the same questions later.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from grit_lite.answer import GroundedAnswer, has_valid_format, parse
from grit_lite.backends import Backend, Generated, Request
from grit_lite.boxes import Box, f1_at, union_iou
from grit_lite.evaluate.faithfulness import faithfulness
from grit_lite.evaluate.question import from_triplet
from grit_lite.evaluate.rows import short_ending
from grit_lite.scorers import is_right
from grit_lite.tiny.questions import Kind, SceneQuestion, held_out
from grit_lite.tiny.world import Split
from grit_lite.triplets import from_scene_question

ASKED_OF: dict[Kind, int] = {"relation": 250, "count": 250, "attribute": 75, "existence": 75}
HARDER: dict[Kind, int] = {"relation": 50, "count": 50}
HARDER_SPLITS: tuple[Split, ...] = ("more", "smaller", "new_pairs")
SAMPLED: dict[str, int] = {"sampled/relation": 75, "sampled/count": 75}  # of the plain ones, the first
LEAST = 2  # questions of a set, each about a scene of its own
EXAMINED = 150  # relation questions that are asked again with their boxes changed
FIRST_SCENE = 20_000  # of each split: nothing was ever chosen by how it did on these test scenes
BATCH = 128  # questions at a time: half the CPU time of 16
# Going on from an unchanged chain is left out: greedily it is what the model wrote.
CHANGES = ("mask_predicted", "mask_random", "wrong_boxes", "swapped_boxes")
BITS = ("correct", "correct_lenient", "valid_format")
FAITHFUL = "faithfulness"  # among the sets of a row: the first relation questions, asked again
LEVELS = {"iou": 250, "f1": 250, "tokens": 1}  # steps that a value is kept in, at most 255 of them

Style = Literal["direct", "grounded"]
Plain = Literal["test", "validation"]


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes:
        boxes: in pixels of the scene.
        correct: by what stands in <answer>, or by the whole text where the question was asked directly.
        correct_lenient: the same, but that a short last line without tags counts as well.
        iou, f1: None where the question has no boxes.
    """

    question: SceneQuestion
    completion: str
    boxes: tuple[Box, ...]
    correct: bool
    correct_lenient: bool
    valid_format: bool
    finished: bool
    tokens: int
    iou: float | None
    f1: float | None


@dataclass(frozen=True)
class Questions:
    """The sets, by name: a kind, SPLIT/KIND of a harder split, or sampled/KIND; `scenes` numbers the image of each
    question."""

    sets: Mapping[str, Sequence[SceneQuestion]]
    sha256: str
    scenes: Mapping[str, list[int]] = field(default_factory=dict)


def held_out_questions(share: float = 1.0, split: Plain = "test") -> Questions:
    """Always the same ones.

    Args:
        share: asks fewer of each set, at least two: one alone has no interval.
        split: validation scenes are there to choose by, and without the harder ones.
    """
    wanted: list[tuple[str, Any, Any, int]] = [(kind, kind, split, n) for kind, n in ASKED_OF.items()]
    if split == "test":
        wanted += [(f"{harder}/{kind}", kind, harder, n) for harder in HARDER_SPLITS for kind, n in HARDER.items()]
    sets = {name: held_out([kind], max(LEAST, int(share * n)), of, FIRST_SCENE) for name, kind, of, n in wanted}
    sets |= {name: sets[name.partition("/")[2]][: max(LEAST, int(share * n))] for name, n in SAMPLED.items()}
    return Questions(sets, *_fingerprints(sets))


def _fingerprints(sets: Mapping[str, Sequence[SceneQuestion]]) -> tuple[str, dict[str, list[int]]]:
    digest, numbers, scenes = hashlib.sha256(), {}, {}
    for name, questions in sets.items():
        scenes[name] = []
        for question in questions:
            pixels = question.image.tobytes()
            scenes[name].append(numbers.setdefault(pixels, len(numbers)))
            digest.update(f"{name}\0{question.question}\0{question.answer}\0".encode() + pixels)
    return digest.hexdigest(), scenes


class Asker:
    """One model and one way to ask it.

    Args:
        in_front: text that goes before every prompt.
        example: pictures that go before the question's own.
    """

    def __init__(
        self,
        backend: Backend,
        style: Style,
        max_new_tokens: int,
        in_front: str = "",
        example: tuple[Image.Image, ...] = (),
    ) -> None:
        self.backend, self.max_new_tokens = backend, max_new_tokens
        self.style: Style = style
        self.in_front, self.example = in_front, example

    def __call__(self, questions: Sequence[SceneQuestion], *, temperature: float = 0.0) -> list[Outcome]:
        requests = [self.request(question, question.image) for question in questions]
        generated = self.backend.generate(
            requests,
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            batch_size=BATCH,
            seeds=range(len(requests)) if temperature else None,
        )
        return [self._outcome(question, one) for question, one in zip(questions, generated, strict=True)]

    def request(self, question: SceneQuestion, image: Image.Image) -> Request:
        text = self.backend.spec.prompts.render(question.question, style=self.style)
        return Request((*self.example, image), self.in_front + text)

    def _outcome(self, question: SceneQuestion, generated: Generated) -> Outcome:
        answer = parse(generated.text)
        predicted = answer.answer
        if predicted is None and self.style == "direct":
            predicted = generated.text.strip()
        boxes = self.boxes_of(answer, question, generated)
        return Outcome(
            question,
            generated.text,
            boxes,
            is_right(predicted, question.answer),
            is_right(short_ending(generated.text) if predicted is None else predicted, question.answer),
            has_valid_format(answer),
            generated.finished,
            generated.tokens,
            union_iou(boxes, question.boxes) if question.boxes else None,
            f1_at(boxes, question.boxes, 0.5) if question.boxes else None,
        )

    def boxes_of(self, answer: GroundedAnswer, question: SceneQuestion, generated: Generated) -> tuple[Box, ...]:
        """Every box of the reasoning, good or bad."""
        sizes: Any = {"original": question.image.size, "resized": generated.resized}
        return tuple(self.backend.spec.box_space.to_pixels(box.numbers, **sizes) for box in answer.chain_boxes)


def measure(
    asker: Asker, questions: Questions, report: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(measures, outcomes) of every set, and of faithfulness on the first relation questions where a chain was asked
    for."""
    measures, outcomes = {}, {}
    for name, asked in questions.sets.items():
        report(name)
        found = asker(asked, temperature=float(name in SAMPLED))
        measures[name], outcomes[name] = summary(found), packed(found)
        if name == "relation" and asker.style == "grounded":
            measures[FAITHFUL], outcomes[FAITHFUL] = examine(asker, found[:EXAMINED])
    return measures, outcomes


def examine(asker: Asker, found: Sequence[Outcome]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(measures, outcomes) of `evaluate.faithfulness`: who is right, and who answers at all, as asked and after each
    change of the boxes.

    An answer that a change does not apply to, because its chain has no boxes or only one to swap, stays what it was.
    """
    asked = [from_triplet(from_scene_question(one.question, index)) for index, one in enumerate(found)]
    kept = [_as_evaluated(one, question.id) for one, question in zip(found, asked, strict=True)]
    limits: Any = {"max_new_tokens": asker.max_new_tokens, "batch_size": BATCH}
    rows, _ = faithfulness(asker.backend, asked, kept, conditions=CHANGES, **limits)
    said = {name: {row["id"]: row for row in kept} for name in ("unchanged", *CHANGES)}
    for row in rows:
        if row["condition"] in CHANGES:
            said[row["condition"]][row["id"]] = row
    with_boxes = {row["id"] for row in rows if row["condition"] == CHANGES[0]}
    right = {name: [bool(row["correct"]) for row in of_id.values()] for name, of_id in said.items()}
    right["applies"] = [row["id"] in with_boxes for row in kept]
    answered = {name: [row["answer"] is not None for row in of_id.values()] for name, of_id in said.items()}
    means, bits = (
        {"n": len(found), **_each(right, change), "answered": _each(answered, change)} for change in (_mean, pack_bits)
    )
    return means, bits


def _each(values: Mapping[str, Sequence[bool]], change: Callable[[Sequence[bool]], Any]) -> dict[str, Any]:
    return {name: change(one) for name, one in values.items()}


def _as_evaluated(one: Outcome, id: str) -> dict[str, Any]:
    answer = {"answer": parse(one.completion).answer, "correct": one.correct}
    asked = {"id": id, "dataset": one.question.kind, "question": one.question.question, "gold": one.question.answer}
    return {**asked, **answer, "completion": one.completion}


def summary(found: Sequence[Outcome]) -> dict[str, float | int | None]:
    """Means over questions; those of boxes over the questions that have any."""
    boxed = [one for one in found if one.iou is not None]
    return {
        "n": len(found),
        "accuracy": _mean([one.correct for one in found]),
        "accuracy_lenient": _mean([one.correct_lenient for one in found]),
        **{name: _mean([getattr(one, name) for one in found]) for name in ("valid_format", "finished", "tokens")},
        "n_with_boxes": len(boxed),
        **{name: _mean([getattr(one, name) for one in boxed]) for name in ("iou", "f1")},
    }


def _mean(values: Sequence[Any]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def packed(found: Sequence[Outcome]) -> dict[str, Any]:
    """One text a measure, of all questions in order; a box measure is that of the questions that have boxes."""
    bits = {name: pack_bits([getattr(one, name) for one in found]) for name in BITS}
    levels = {name: [getattr(one, name) for one in found] for name in LEVELS}
    boxed = pack_bits([one.iou is not None for one in found])
    return {"n": len(found), **bits, "boxed": boxed, **{name: pack_levels(name, levels[name]) for name in LEVELS}}


def pack_bits(values: Sequence[bool]) -> str:
    return base64.b64encode(np.packbits(np.asarray(values, dtype=bool)).tobytes()).decode()


def unpack_bits(text: str, n: int) -> np.ndarray:
    """(n,) of 0 and 1."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n)


def pack_levels(name: str, values: Sequence[float | None]) -> str:
    """One byte a value; None is 0."""
    levels = np.rint(np.array([value or 0.0 for value in values]) * LEVELS[name])
    return base64.b64encode(np.clip(levels, 0, 255).astype(np.uint8).tobytes()).decode()


def unpack_levels(name: str, text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8) / LEVELS[name]
