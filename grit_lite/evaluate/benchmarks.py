"""What is asked: each benchmark is a name that becomes questions."""

from dataclasses import dataclass
from pathlib import Path

from grit_lite.errors import UsageError
from grit_lite.evaluate.question import Question, from_triplet
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


@dataclass(frozen=True)
class Loaded:
    """Questions, and what a summary has to say of where they are from.

    Attributes:
        available: how many there are, of which these were drawn.
    """

    questions: list[Question]
    revision: str
    available: int


class Shapes:
    """The drawn scenes as a benchmark."""

    name, hub, split, licence, verified = "shapes", "", "test", "Apache-2.0", True
    aggregates: tuple[str, ...] = ()

    def load(self, limit: int | None = None, source: str | Path | None = None) -> Loaded:
        """About `limit` questions."""
        questions = [from_triplet(triplet) for triplet in shapes(limit or 500)]
        return Loaded(questions, "drawn", len(questions))


def find(name: str) -> Shapes:
    """A benchmark by its name.

    Raises:
        UsageError: there is none.
    """
    if name != "shapes":
        raise UsageError(f"There is no benchmark '{name}'. Known: shapes.")
    return Shapes()
