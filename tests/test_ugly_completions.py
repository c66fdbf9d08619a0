"""Ugly completions of our own: what is read in each, what grit-lite pays for it, and what the scorer says.

Every expectation of tests/data/ugly_completions.jsonl was written by hand, before the code was run on it.
"""

import json
from pathlib import Path

import pytest

from grit_lite.answer import parse
from grit_lite.boxes import BoxSpace
from grit_lite.evaluate.grounding import grounding, referred_box
from grit_lite.rewards import score as rewarded
from grit_lite.scorers import score

PATH = Path(__file__).parent / "data" / "ugly_completions.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
each = pytest.mark.parametrize("row", ROWS, ids=[f"{row['id']} {row['note']}" for row in ROWS])


def test_there_are_enough_of_them_and_each_is_another_one():
    assert len(ROWS) >= 160
    assert len({row["id"] for row in ROWS}) == len({row["note"] for row in ROWS}) == len(ROWS)


@each
def test_the_parts_are_read(row):
    answer = parse(row["completion"])
    assert (answer.think, answer.rethink, answer.answer) == (row["think"], row["rethink"], row["answer"])
    assert [list(box) for box in answer.boxes] == row["boxes"]


@each
def test_grit_lite_pays(row):
    terms = rewarded(
        row["completion"],
        question=row["question"],
        answer=row["gold"],
        dataset=row["dataset"],
        image_size=tuple(row["image_size"]),
    )
    assert {name: terms[name] for name in row["terms"]} == row["terms"]


@each
def test_the_scorer_says(row):
    answer, size = parse(row["completion"]), tuple(row["image_size"])
    facts = {**row["facts"], "box": referred_box(answer, BoxSpace.RESIZED_PIXELS, size, size)}
    assert score(row["scorer"], answer.answer, row["gold"], facts) == row["score"]


@each
def test_its_boxes_can_be_measured(row):
    size = tuple(row["image_size"])
    numbers = grounding(row["boxes"], [(10, 20, 110, 220)], BoxSpace.RESIZED_PIXELS, size, size)
    assert numbers["n_boxes"] == len(row["boxes"])
    assert (numbers["union_iou"] > 0) is any(box[0] < 110 and box[1] < 220 for box in map(_inside, row["boxes"]))


def _inside(box):
    """Corners in order, and none without area or beyond the gold box's upper left corner."""
    x1, y1, x2, y2 = min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])
    return (x1, y1) if x1 < x2 and y1 < y2 and x2 > 10 and y2 > 20 else (999, 999)
