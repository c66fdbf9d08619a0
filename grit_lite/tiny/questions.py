"""Questions about drawn scenes: the answer, the boxes that ground it, and the chain that a full GRIT answer writes.

Five kinds: relation (left of, right of, above, below), count (0 to 5), attribute, existence, where. Relation questions
are drawn so that one object's place alone does not give the answer away. A chain is a list of pieces with roles, so
that pre-training can weigh what decides the style of an answer apart from what makes it right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from grit_lite.boxes import Box
from grit_lite.tiny.world import COLORS, NEW_PAIRS, SHAPES, SIDE, STYLES, Scene, Shape, Split, make_scene

_T = TypeVar("_T")
Kind = Literal["relation", "count", "attribute", "existence", "where"]
KINDS: tuple[Kind, ...] = ("relation", "count", "attribute", "existence", "where")

# (text, role) in order. Roles: `style` decides which form the answer takes (tags, sentence openings), `filler` follows
# from the form, `content` has to be right, `coordinate` is a number of a box, `verdict` is what the chain is there for.
Pieces = tuple[tuple[str, str], ...]

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_ASKED_AS = {"left of": ("left of", "to the left of"), "right of": ("right of", "to the right of")}
# Pixels between two middles on the asked axis. Closer pairs are not asked about because a box is written to about two
# pixels; farther ones because then one object's place alone answers: a rule on it is right in 79 % without this limit.
LEAST_DISTANCE, FARTHEST = 7.0, 24.0


@dataclass(frozen=True)
class SceneQuestion:
    """A question with its picture. `boxes` are the objects that ground the answer, in pixels of the picture."""

    question: str
    answer: str
    kind: Kind
    boxes: tuple[Box, ...]
    image: Image.Image


@dataclass(frozen=True)
class Asked:
    """A question about one scene and what the sentences of a full answer to it say."""

    question: str
    answer: str
    kind: Kind
    boxes: tuple[Box, ...]
    labels: tuple[str, ...]
    sought: Pieces = ()
    found: Pieces = ()
    concluded: Pieces = ()


def held_out(kinds: Sequence[Kind], per_kind: int, split: Split = "test", first: int = 0) -> list[SceneQuestion]:
    """`per_kind` questions of each kind about scenes of a split, from the scene `first` on.

    Always the same ones for the same arguments.

    A question of the split `new_pairs` is about at least one object of such a pair; a scene of `more` that had no room
    for its least number of objects is left out.
    """
    questions = []
    for kind in kinds:
        index, wanted = first, len(questions) + per_kind
        while len(questions) < wanted:
            scene = make_scene(index, split)
            asked = ask(kind, np.random.default_rng([index, KINDS.index(kind)]), scene)
            if asked is not None and _belongs(asked, scene, split):
                questions.append(SceneQuestion(asked.question, asked.answer, asked.kind, asked.boxes, scene.image))
            index += 1
    return questions


def _belongs(asked: Asked, scene: Scene, split: Split) -> bool:
    is_new = [(shape.color, shape.shape) in NEW_PAIRS for shape in scene.objects if shape.box in asked.boxes]
    return (split != "new_pairs" or any(is_new)) and len(scene.objects) >= STYLES[split].objects[0]


def ask(kind: Kind, rng: np.random.Generator, scene: Scene) -> Asked | None:
    """A question of this kind about the scene, or None where the scene does not allow one."""
    return _ASK[kind](rng, scene.objects)


# --- relation


def ask_relation(rng: np.random.Generator, objects: Sequence[Shape]) -> Asked | None:
    """Is A left of, right of, above, below B? By the middles of the boxes on the asked axis; the other is ignored."""
    unique = _unique(objects)
    if len(unique) < 2:
        return None
    for _ in range(6):
        first, second = rng.choice(len(unique), 2, replace=False)
        a, b, axis = unique[first], unique[second], int(rng.integers(2))
        if _is_askable(a.box, b.box, axis):
            true = true_relation(a.box, b.box, axis)
            return relation(rng, a, b, true, true if rng.random() < 0.5 else OPPOSITE[true])
    return None


def relation(rng: np.random.Generator, a: Shape, b: Shape, true: str, asked: str) -> Asked:
    """Is A `asked` B, where A is in truth `true` B?"""
    words = _pick(rng, _ASKED_AS.get(asked, (asked,)))
    return Asked(
        question=f"Is the {a.name} {words} the {b.name}?",
        answer="yes" if asked == true else "no",
        kind="relation",
        boxes=(a.box, b.box),
        labels=(a.name, b.name),
        sought=(
            *((" I", "style"), (" look for the", "filler"), (f" {a.name}", "content"), (" and the", "filler")),
            *((f" {b.name}", "content"), (".", "filler")),
        ),
        found=(*_is_at(a, "style"), *_is_at(b, "filler")),
        concluded=(
            *((" The", "filler"), (f" {a.name}", "content"), (" is", "filler"), (f" {true}", "verdict")),
            *((" the", "filler"), (f" {b.name}", "content"), (".", "filler")),
        ),
    )


def true_relation(a: Box, b: Box, axis: int) -> str:
    """What A is to B on an axis: 0 is left of / right of, 1 is above / below."""
    before = middle(a)[axis] < middle(b)[axis]
    return (("right of", "left of"), ("below", "above"))[axis][before]


def middle(box: Box) -> tuple[float, float]:
    return (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2


def _is_askable(a: Box, b: Box, axis: int) -> bool:
    return LEAST_DISTANCE <= abs(middle(a)[axis] - middle(b)[axis]) <= FARTHEST


def _is_at(shape: Shape, opening: str) -> Pieces:
    return (
        *((" The", opening), (f" {shape.name}", "content"), (" is at", "filler")),
        *((" ", "filler"), *box_pieces(shape.box, shape.name), (".", "filler")),
    )


def imagine_relation(rng: np.random.Generator, axis: int, usual: float = 0.5, farthest: float = math.inf) -> Asked:
    """A relation question about two boxes that nobody drew, for learning to read coordinates without a picture.

    `usual` is the share that asks for left of or above; the boxes are at most `farthest` pixels apart on the axis.
    Comparing what is stated with what is asked is an exclusive or: learned from one side first, it is a habit with
    exceptions instead, which gradients find sooner.
    """
    names = sorted(_SEEN)
    first, second = rng.choice(len(names), 2, replace=False)
    while True:
        a, b = (Shape(names[k][0], names[k][1], _imagined_box(rng)) for k in (first, second))
        if LEAST_DISTANCE <= abs(middle(a.box)[axis] - middle(b.box)[axis]) <= farthest:
            asked = ("left of", "above")[axis]
            asked = asked if rng.random() < usual else OPPOSITE[asked]
            return relation(rng, a, b, true_relation(a.box, b.box, axis), asked)


def told_the_other_way(asked: Asked) -> Asked:
    """The same question where the box of the second object is written before that of the first: names decide."""
    half = len(asked.found) // 2
    # "style" has no weight where such an answer is taught: only what follows from it is.
    found = tuple((text, "style") for text, _ in (*asked.found[half:], *asked.found[:half]))
    return replace(asked, found=found, boxes=asked.boxes[::-1], labels=asked.labels[::-1])


def _imagined_box(rng: np.random.Generator) -> Box:
    width = int(rng.integers(18, 44))
    height = max(14, width + int(rng.integers(-4, 5)))
    x, y = int(rng.integers(0, SIDE - width)), int(rng.integers(0, SIDE - height))
    return Box(x, y, x + width, y + height)


# --- count


def ask_count(rng: np.random.Generator, objects: Sequence[Shape]) -> Asked | None:
    """How many of a class are there? 0 to 5; small and large numbers are evened out where the scene allows."""
    by_count: dict[int, list[str]] = {}
    for label in _labels(objects):
        by_count.setdefault(len(_of_class(objects, label)), []).append(label)
    counts = sorted(by_count)
    weights = np.array([{0: 0.4, 1: 0.7}.get(count, 1.0 + 0.3 * count) for count in counts])
    label = _pick(rng, by_count[int(rng.choice(counts, p=weights / weights.sum()))])
    return _count(rng, label, _of_class(objects, label))


def _count(rng: np.random.Generator, label: str, members: list[Shape]) -> Asked:
    plural, count = f"{label}s", len(members)
    where = _pick(rng, ("are there", "are in the image", "do you see"))
    return Asked(
        question=f"How many {plural} {where}?",
        answer=str(count),
        kind="count",
        boxes=tuple(shape.box for shape in members),
        labels=(label,) * count,
        sought=((" I", "style"), (" look for the", "filler"), (f" {plural}", "content"), (".", "filler")),
        found=((" I", "style"), (" see", "filler"), *_listed(members, label)),
        concluded=(
            *((" I count", "filler"), (f" {count}", "verdict"), (f" {label if count == 1 else plural}", "content")),
            (".", "filler"),
        ),
    )


def _listed(members: list[Shape], label: str) -> Pieces:
    """{box}, {box}. or none. — what follows a box says how many there are, so it is content."""
    if not members:
        return ((" none", "content"), (".", "filler"))
    pieces: list[tuple[str, str]] = [(" ", "content")]
    for k, shape in enumerate(members):
        pieces += box_pieces(shape.box, label)
        pieces.append((".", "content") if k == len(members) - 1 else (", ", "content"))
    return tuple(pieces)


# --- attribute and existence


def ask_attribute(rng: np.random.Generator, objects: Sequence[Shape]) -> Asked | None:
    """What colour is the only object of a shape, or what shape is the only object of a colour?"""
    about_color = rng.random() < 0.5
    known = [shape.shape if about_color else shape.color for shape in objects]
    lone = [shape for shape, value in zip(objects, known, strict=True) if known.count(value) == 1]
    if not lone:
        return None
    shape = _pick(rng, lone)
    label = shape.shape if about_color else f"{shape.color} object"
    answer = shape.color if about_color else shape.shape
    return Asked(
        question=f"What {'color' if about_color else 'shape'} is the {label}?",
        answer=answer,
        kind="attribute",
        boxes=(shape.box,),
        labels=(label,),
        sought=((" I", "style"), (" look for the", "filler"), (f" {label}", "content"), (".", "filler")),
        found=(
            *((" The", "style"), (f" {label}", "content"), (" is at", "filler"), (" ", "filler")),
            *(*box_pieces(shape.box, label), (".", "filler")),
        ),
        concluded=(
            *((" The", "filler"), (f" {label}", "content"), (" is" if about_color else " is a", "filler")),
            *((f" {answer}", "verdict"), (".", "filler")),
        ),
    )


def ask_existence(rng: np.random.Generator, objects: Sequence[Shape]) -> Asked | None:
    """Is there an object of this name? A wrong name shares its colour or its shape with something in the scene."""
    names = {shape.name for shape in objects}
    if rng.random() < 0.5:
        name = _pick(rng, sorted(names))
    else:
        near = {f"{o.color} {shape}" for o in objects for shape in SHAPES}
        near |= {f"{color} {o.shape}" for o in objects for color in COLORS}
        name = _pick(rng, sorted(near & {*map(" ".join, _SEEN)} - names))
    members = _of_class(objects, name)
    return Asked(
        question=f"Is there a {name}?",
        answer="yes" if members else "no",
        kind="existence",
        boxes=tuple(shape.box for shape in members),
        labels=(name,) * len(members),
        sought=((" I", "style"), (" look for a", "filler"), (f" {name}", "content"), (".", "filler")),
        found=((" I", "style"), (" see", "filler"), *_listed(members, name)),
        concluded=(
            *((" There is", "filler"), (" a" if members else " no", "verdict"), (f" {name}", "content")),
            (".", "filler"),
        ),
    )


# --- where


def ask_where(rng: np.random.Generator, objects: Sequence[Shape]) -> Asked | None:
    """Where is the only object of a class? The answer is its box."""
    lone = [(label, found[0]) for label in _labels(objects) if len(found := _of_class(objects, label)) == 1]
    if not lone:
        return None
    label, shape = _pick(rng, lone)
    return _where(rng, label, shape.box)


def where_each_is(rng: np.random.Generator, asked: Asked) -> list[Asked]:
    """Where every object is that a question is about, in the order in which its answer would tell them."""
    return [_where(rng, label, box) for label, box in zip(asked.labels, asked.boxes, strict=True)]


def _where(rng: np.random.Generator, label: str, box: Box) -> Asked:
    question = _pick(rng, ("Where is the {}?", "Find the {}.", "Locate the {}.", "Give the bounding box of the {}."))
    return Asked(question.format(label), box_text(box, label), "where", (box,), (label,))


def ask_where_all(rng: np.random.Generator, objects: Sequence[Shape]) -> Asked | None:
    """Find every object of a class that is there; the answer lists the boxes from left to right."""
    present = [label for label in _labels(objects) if _of_class(objects, label)]
    label = _pick(rng, present)
    members = _of_class(objects, label)
    answer = ", ".join(box_text(shape.box, label) for shape in members)
    boxes = tuple(shape.box for shape in members)
    return Asked(f"Find all the {label}s.", answer, "where", boxes, (label,) * len(members))


def box_text(box: Box, label: str) -> str:
    """The JSON in which a box is written: absolute pixels of the picture, twelve tokens."""
    return "".join(text for text, _ in box_pieces(box, label))


def box_pieces(box: Box, label: str) -> Pieces:
    numbers: list[tuple[str, str]] = []
    for value in box:
        numbers += [(", ", "filler"), (str(round(value)), "coordinate")]
    return (
        ('{"bbox_2d": [', "filler"),
        *numbers[1:],
        ('], "label": "', "filler"),
        (label, "content"),
        ('"}', "filler"),
    )


# What is named without being in the scene is never a pair that pre-training must not see.
_SEEN = tuple((color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in NEW_PAIRS)


def _labels(objects: Sequence[Shape]) -> list[str]:
    """Every name of a class that may be asked about in this scene."""
    classes = [*SHAPES, *(f"{color} object" for color in COLORS), "object"]
    return [*dict.fromkeys([*map(" ".join, _SEEN), *sorted(shape.name for shape in objects)]), *classes]


_ASK: dict[str, Callable[[np.random.Generator, Sequence[Shape]], Asked | None]] = {
    "relation": ask_relation,
    "count": ask_count,
    "attribute": ask_attribute,
    "existence": ask_existence,
    "where": ask_where,
}


def _of_class(objects: Sequence[Shape], label: str) -> list[Shape]:
    """The objects that a label covers, from left to right."""
    first, _, last = label.partition(" ")
    members = [
        shape
        for shape in objects
        if label == "object"
        or (not last and shape.shape == first)
        or (last == "object" and shape.color == first)
        or shape.name == label
    ]
    return sorted(members, key=lambda shape: shape.box)


def _unique(objects: Sequence[Shape]) -> list[Shape]:
    names = [shape.name for shape in objects]
    return [shape for shape in objects if names.count(shape.name) == 1]


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]
