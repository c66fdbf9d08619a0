"""What is asked: each benchmark is a function that returns triplets."""

from grit_lite.tiny.questions import held_out
from grit_lite.triplets import Triplet, from_scene_question

# "where" is left out: its answer is a box, which has an overlap and is neither right nor wrong.
SHAPE_KINDS = ("relation", "count", "attribute", "existence")


def shapes(questions: int = 500) -> list[Triplet]:
    """Questions about drawn scenes that no training ever saw, as many of each kind; the same ones every time."""
    scenes = held_out(SHAPE_KINDS, questions // len(SHAPE_KINDS), split="test")
    return [from_scene_question(scene, index, split="test") for index, scene in enumerate(scenes)]
