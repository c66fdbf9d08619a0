"""What is asked: each benchmark is a function that returns triplets."""

from grit_lite.tiny.questions import held_out
from grit_lite.triplets import Triplet, from_scene_question

# "where" is left out: its answer is a box, which has an overlap and is neither right nor wrong.
SHAPE_KINDS = ("relation", "count", "attribute", "existence")


def shapes(questions: int = 500) -> list[Triplet]:
    """About this many questions on drawn scenes that no training ever saw: equally many of each kind, at least one.

    The same ones every time; fewer of them are the first ones of more.
    """
    scenes = held_out(SHAPE_KINDS, max(1, questions // len(SHAPE_KINDS)), split="test")
    return [from_scene_question(scene, index, split="test") for index, scene in enumerate(scenes)]
