"""Makes the embedded triplets: `python -m grit_lite.tiny.examples`.

Ten relation and ten counting questions about training scenes, in GRIT's JSONL schema, pictures beside the file. The
counting questions are about different classes with none to four objects, each twice, as GRIT's own are: a model that
never met a count of none does not learn to end a chain without a box. Half of the relations hold.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grit_lite.tiny import TRIPLETS
from grit_lite.tiny.questions import Asked, Kind, ask
from grit_lite.tiny.world import SIDE, Scene, make_scene

_WANTED: dict[Kind, dict[str, int]] = {
    "relation": {"yes": 5, "no": 5},
    "count": {str(count): 2 for count in range(5)},
}


SEED = 20


class Example(NamedTuple):
    """A question about a training scene, with what the sentences of a full answer to it say."""

    kind: Kind
    scene: Scene
    asked: Asked


def write_triplets(path: Path = TRIPLETS, seed: int = SEED) -> Path:
    """The JSONL file, now holding 20 rows; the same seed gives the same rows and pictures."""
    return write_examples(path, twenty(seed))


def twenty(seed: int = SEED) -> list[Example]:
    """Ten relation and ten counting questions; the same seed gives the same ones."""
    return [Example(kind, scene, asked) for kind in _WANTED for scene, asked in _choose(kind, seed)]


def write_examples(path: Path, examples: Iterable[Example]) -> Path:
    """The JSONL file, now holding the examples as triplets; the folder that it lies in is made, with the pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, scene, asked in examples:
        image = f"{kind}_{len(rows):02d}.png"
        scene.image.save(path.parent / image, optimize=True)
        rows.append(_row(asked, kind, image))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _choose(kind: Kind, seed: int) -> list[tuple[Scene, Asked]]:
    wanted, chosen, asked_about = dict(_WANTED[kind]), [], set()
    index = 1_000_000 * seed  # far from the scenes that pre-training draws
    while any(wanted.values()):
        scene = make_scene(index, "train")
        asked = ask(kind, np.random.default_rng([seed, index]), scene)
        if asked is not None and wanted.get(asked.answer, 0) > 0 and _subject(asked) not in asked_about:
            wanted[asked.answer] -= 1
            asked_about.add(_subject(asked))
            chosen.append((scene, asked))
        index += 1
    return chosen


def _subject(asked: Asked) -> frozenset[str]:
    return frozenset(asked.labels or [asked.question])


def _row(asked: Asked, kind: Kind, image: str) -> dict:
    return {
        "question": asked.question,
        "answer": asked.answer,
        "image": image,
        "width": SIDE,
        "height": SIDE,
        "bboxs": [list(box) for box in asked.boxes],
        "dataset": f"shapes_{kind}",
        "split": "train",
    }


if __name__ == "__main__":
    print(write_triplets())
