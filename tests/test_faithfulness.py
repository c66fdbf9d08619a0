"""Changed images and changed chains, as pure functions and with the embedded model, which reads what it wrote."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from grit_lite.answer import number_spans, parse
from grit_lite.backends import Request, open_backend
from grit_lite.boxes import Box, iou
from grit_lite.evaluate.faithfulness import faithfulness
from grit_lite.evaluate.faithfulness.interventions import (
    blank,
    elsewhere,
    keep_only,
    numbers_of,
    paint_over,
    swapped,
    thought_boxes,
    with_numbers,
    written_like,
)
from grit_lite.evaluate.question import from_triplet
from grit_lite.recipe import load_recipe
from grit_lite.scorers import is_right
from grit_lite.tiny.measure import chain_opening
from grit_lite.tiny.questions import held_out
from grit_lite.triplets import from_scene_question

SIZE = (60, 40)
calm = settings(deadline=None)  # another job on the machine may make one example slow


@st.composite
def boxes_in(draw, size=SIZE, most=4):
    """Boxes of whole pixels with an area, inside an image of this size."""

    def one():
        x1, y1 = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
        return Box(x1, y1, draw(st.integers(x1 + 1, size[0])), draw(st.integers(y1 + 1, size[1])))

    return [one() for _ in range(draw(st.integers(1, most)))]


def noise(seed: int = 0, size=SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 200, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def inside(boxes: Sequence[Box], size=SIZE) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return mask


# --- images


@calm
@given(boxes_in())
def test_what_is_painted_over_is_the_boxes_and_nothing_else(boxes):
    image = noise()
    before, after = np.array(image), np.array(paint_over(image, boxes))
    mask = inside(boxes)
    assert (before[~mask] == after[~mask]).all()
    assert np.array_equal(before, np.array(image)), "the image itself stays as it was"
    last = boxes[-1]
    assert len(np.unique(after[inside([last])], axis=0)) == 1  # one colour, since nothing is painted on top of it


def test_a_box_takes_the_colour_that_is_around_it():
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30], pixels[:, 30:] = (10, 20, 30), (200, 100, 50)  # two halves, an object in each
    pixels[10:20, 10:20], pixels[10:20, 40:50] = 255, 255
    painted = np.array(paint_over(Image.fromarray(pixels), [Box(10, 10, 20, 20), Box(40, 10, 50, 20)]))
    assert (painted[:, :30] == (10, 20, 30)).all()
    assert (painted[:, 30:] == (200, 100, 50)).all()


def test_a_neighbour_that_is_painted_over_too_lends_no_colour():
    pixels = np.full((40, 60, 3), 7, dtype=np.uint8)
    pixels[10:20, 10:40] = 255  # two objects side by side
    painted = np.array(paint_over(Image.fromarray(pixels), [Box(10, 10, 25, 20), Box(25, 10, 40, 20)]))
    assert (painted == 7).all()


def test_a_box_over_the_whole_image_takes_its_middle_colour():
    assert len(np.unique(np.array(paint_over(noise(), [Box(0, 0, *SIZE)])).reshape(-1, 3), axis=0)) == 1


@calm
@given(boxes_in())
def test_only_the_boxes_are_kept(boxes):
    image = noise()
    before, after = np.array(image), np.array(keep_only(image, boxes))
    mask = inside(boxes)
    assert (before[mask] == after[mask]).all()
    assert len(np.unique(after[~mask], axis=0)) <= 1


def test_a_blank_image_has_the_size_and_one_colour():
    image = blank(noise())
    assert image.size == SIZE
    assert len(image.getcolors() or []) == 1


@pytest.mark.parametrize(
    "box", [Box(70, 0, 90, 10), Box(5, 5, 5, 9), Box(-9, -9, 0, 0), Box(3, 50, 9, 60), Box(-1e6, 2, -5, 9)]
)
def test_a_box_without_a_pixel_in_the_image_changes_nothing(box):
    assert np.array_equal(np.array(paint_over(noise(), [box])), np.array(noise()))


def test_corners_may_stand_in_any_order_and_out_of_the_image():
    right = np.array(paint_over(noise(), [Box(50, 0, 60, 10)]))
    assert np.array_equal(np.array(paint_over(noise(), [Box(80.0, 9.5, 50.2, -3)])), right)


# --- other places


@calm
@given(boxes_in(), st.integers(0, 2**32))
def test_boxes_elsewhere_are_as_large_and_inside_the_image(boxes, seed):
    moved = elsewhere(boxes, SIZE, np.random.default_rng(seed))
    for box, other in zip(boxes, moved, strict=True):
        assert (other.x2 - other.x1, other.y2 - other.y1) == (box.x2 - box.x1, box.y2 - box.y1)
        assert other.x1 >= 0
        assert other.y1 >= 0
        assert other.x2 <= SIZE[0]
        assert other.y2 <= SIZE[1]


@calm
@given(boxes_in(most=5), st.integers(0, 2**32))
def test_a_box_elsewhere_overlaps_its_own_only_where_there_is_no_other_place(boxes, seed):
    for box, other in zip(boxes, elsewhere(boxes, SIZE, np.random.default_rng(seed)), strict=True):
        width, height = box.x2 - box.x1, box.y2 - box.y1
        has_room = box.x1 >= width or SIZE[0] - box.x2 >= width or box.y1 >= height or SIZE[1] - box.y2 >= height
        assert (iou(box, other) == 0) or not has_room


def test_boxes_elsewhere_avoid_all_that_they_can():
    boxes, avoid = [Box(0, 0, 10, 10), Box(50, 30, 60, 40)], [Box(20, 0, 40, 40)]
    for seed in range(20):
        moved = elsewhere(boxes, SIZE, np.random.default_rng(seed), avoid)
        taken = [*boxes, *avoid]
        for box in moved:
            assert all(iou(box, other) == 0 for other in taken)
            taken.append(box)


def test_a_large_image_is_tried_on_a_grid():
    (moved,) = elsewhere([Box(0, 0, 1000.5, 2000)], (6000, 4000), np.random.default_rng(0))
    assert moved.x2 <= 6000
    assert moved.y2 <= 4000
    assert iou(moved, Box(0, 0, 1000.5, 2000)) == 0


# --- chains

CHAIN = (
    '<think> A cup {"bbox_2d": [10, 20, 30.5, 40], "label": "cup 7"} of 2021, bbox_2d_12: 1, -2, 3, 4 and '
    "(9, 9, 12, 13). </think> <rethink> 2 at [1, 1, 5, 5] </rethink> <answer> left, 3 </answer>"
)


@st.composite
def chains(draw):
    """Prose with numbers in it, and boxes of every form."""
    number = st.one_of(st.integers(-5, 1200).map(str), st.decimals(0, 900, places=2).map(str))
    forms = st.sampled_from(
        ["[{}, {}, {}, {}]", "({},{},{},{})", "bbox_2d_3: {}, {}, {}, {};", '{{"bbox_2d": [{},{},{},{}]}}']
    )
    prose = st.sampled_from([" a 7 ", " 12, 13 of them ", "\n", "</think>", " é ", " is at "])
    box = st.builds(lambda form, four: form.format(*four), forms, st.tuples(number, number, number, number))
    return "<think>" + "".join(draw(st.lists(st.one_of(prose, box), max_size=8)))


def test_the_numbers_of_a_box_are_the_last_four_of_its_text():
    boxes = parse(CHAIN).written
    assert numbers_of(CHAIN, boxes) == [
        ["10", "20", "30.5", "40"],
        ["1", "-2", "3", "4"],
        ["9", "9", "12", "13"],
        ["1", "1", "5", "5"],
    ]


@calm
@given(chains())
def test_numbers_are_where_they_were_read(text):
    for box in parse(text).written:
        assert tuple(float(text[start:end]) for start, end in number_spans(text, box)) == box.numbers


@calm
@given(chains())
def test_nothing_but_numbers_of_boxes_changes(text):
    boxes = parse(text).chain_boxes
    marked = with_numbers(text, boxes, [["#"] * 4 for _ in boxes])
    assert marked.count("#") == 4 * len(boxes)
    for part in marked.split("#"):
        assert part in text
    assert with_numbers(text, boxes, numbers_of(text, boxes)) == text


@calm
@given(chains())
def test_swapping_twice_is_nothing(text):
    boxes = parse(text).chain_boxes
    if len(boxes) < 2:
        return
    numbers = numbers_of(text, boxes)
    assert swapped(swapped(numbers)) == numbers
    assert swapped(numbers)[:2] == [numbers[1], numbers[0]]
    assert swapped(numbers)[2:] == numbers[2:]


def test_values_are_written_in_the_form_that_was_there():
    assert written_like([(3.6, 20.0, 0.126, -1.0)], [["10", "20.0", "0.25", "7"]]) == [["4", "20.0", "0.13", "-1"]]


def test_boxes_of_thought_are_those_before_it_ends():
    assert len(thought_boxes(parse(CHAIN))) == 3
    only_later = "<think> hm </think> <rethink> [1, 1, 5, 5] and [2, 2, 3, 3] </rethink> <answer> a [1, 2, 3, 9]"
    assert [box.numbers for box in thought_boxes(parse(only_later))] == [(1, 1, 5, 5), (2, 2, 3, 3)]
    assert len(thought_boxes(parse("[1, 2, 3, 9] and no tag"))) == 1


# --- the embedded model, whose chains are begun for it


@pytest.fixture(scope="module")
def backend():
    return open_backend(load_recipe("tiny", ["backend=plain"]))


@pytest.fixture(scope="module")
def answered(backend):
    """Relation questions with the chains that the model wrote once each was begun."""
    scenes = held_out(["relation"], 16)
    questions = [from_triplet(from_scene_question(scene, index)) for index, scene in enumerate(scenes)]
    render = backend.spec.prompts.render
    requests = [Request((scene.image,), render(scene.question), chain_opening(scene)) for scene in scenes]
    rows = []
    for question, request, generated in zip(
        questions, requests, backend.generate(requests, max_new_tokens=160), strict=True
    ):
        completion = request.opening + generated.text
        answer = parse(completion).answer
        row = {"id": question.id, "completion": completion, "answer": answer, "opening": request.opening}
        rows.append(row | {"correct": is_right(answer, question.gold)})
    return questions, rows


def test_swapping_the_boxes_turns_most_relations_around_and_the_same_boxes_none(backend, answered):
    rows, summary = faithfulness(
        backend, *answered, conditions=("same_boxes", "swapped_boxes"), max_new_tokens=160, reference=0.5
    )
    assert summary["questions"] == 16
    assert summary["accuracy"]["value"] > 0.75
    conditions = summary["conditions"]
    assert conditions["same_boxes"]["flip_rate"]["value"] == 0
    assert conditions["swapped_boxes"]["flip_rate"]["value"] > 0.75
    assert conditions["swapped_boxes"]["accuracy"]["value"] < 0.25
    assert summary["effects"]["reading_swapped"]["low"] > 0.5
    assert summary["taken_away"]["swapped_boxes"]["value"] > 1.5
    same = {row["id"]: row["completion"] for row in rows if row["condition"] == "same_boxes"}
    assert same == {row["id"]: row["completion"] for row in answered[1]}
