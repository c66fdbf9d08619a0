"""Drawn scenes that no training saw: always at hand, with the boxes that ground each answer."""

from dataclasses import dataclass
from pathlib import Path

from grit_lite.errors import UsageError
from grit_lite.evaluate.benchmarks.benchmark import Benchmark, Loaded, digest
from grit_lite.evaluate.question import from_triplet
from grit_lite.tiny.questions import held_out
from grit_lite.tiny.world import Split
from grit_lite.triplets import Triplet, from_scene_question

# "where" is left out: its answer is a box, which has an overlap and is neither right nor wrong.
SHAPE_KINDS = ("relation", "count", "attribute", "existence")
QUESTIONS = 500


def shapes(questions: int = QUESTIONS, split: Split = "test") -> list[Triplet]:
    """About this many questions on drawn scenes that no training ever saw: equally many of each kind, at least one.

    The same ones every time; fewer of them are the first ones of more.
    """
    scenes = held_out(SHAPE_KINDS, max(1, questions // len(SHAPE_KINDS)), split=split)
    return [from_scene_question(scene, index, split=split) for index, scene in enumerate(scenes)]


@dataclass(frozen=True, kw_only=True)
class Drawn(Benchmark):
    """Scenes of a split, drawn when they are asked for."""

    def load(self, limit: int | None = None, source: str | Path | None = None) -> Loaded:
        """About `limit` questions.

        Raises:
            UsageError: a source is named.
        """
        if source is not None:
            raise UsageError(f"The scenes of {self.name} are drawn here; there is no --source for them.")
        questions = [from_triplet(triplet) for triplet in shapes(limit or self.rows, self.split)]  # type: ignore[arg-type]
        return Loaded(questions, "drawn", max(len(questions), self.rows), digest(questions))


def _scenes(name: str, split: str) -> Drawn:
    return Drawn(
        name=name,
        hub="",
        split=split,
        rows=QUESTIONS,
        columns=(),
        prompt="",
        gold="",
        licence="Apache-2.0",
        schema="drawn by grit-lite",
        verified=True,
    )


DRAWN = (
    _scenes("shapes", "test"),
    _scenes("shapes-more", "more"),
    _scenes("shapes-smaller", "smaller"),
    _scenes("shapes-new-pairs", "new_pairs"),
)
