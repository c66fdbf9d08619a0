import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_lite.answer import parse
from grit_lite.boxes import Box, BoxSpace, f1_at, mean_matched_iou, union_iou
from grit_lite.evaluate.grounding import grounding, referred_box, released_union_iou

calm = settings(deadline=None)  # another job on the machine may make one example slow
VECTORS = json.loads((Path(__file__).parent / "data" / "reward_vectors.json").read_text())
PIXELS, NORM = BoxSpace.RESIZED_PIXELS, BoxSpace.NORM1000
OVERLAPS = ("union_iou", "f1", "precision", "recall", "matched_iou")
# 640 × 480 is seen at 504 × 364
PHOTO = {"original": (640, 480), "resized": (504, 364)}

coordinates = st.floats(-2000, 2000, allow_nan=False).map(lambda number: round(number, 2))
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
solid = st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(1, 200)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
spaces = st.sampled_from(BoxSpace)


def same_size(written, gold, side=1000):
    return grounding(written, gold, PIXELS, (side, side), (side, side))


def test_a_box_that_is_right_in_the_models_unit_is_right_in_pixels_of_the_original():
    numbers = grounding([(252, 182, 504, 364)], [(320, 240, 640, 480)], PIXELS, **PHOTO)
    assert (numbers["union_iou"], numbers["f1"], numbers["matched_iou"]) == pytest.approx((1.0, 1.0, 1.0))


def test_thousandths_are_always_scaled():
    numbers = grounding([(500, 500, 1000, 1000)], [(320, 240, 640, 480)], NORM, **PHOTO)
    assert numbers["union_iou"] == pytest.approx(1.0)


def test_found_missed_and_surplus_boxes():
    written = [(0, 0, 10, 10), (50, 50, 60, 60), (80, 80, 90, 90)]
    numbers = same_size(written, [(0, 0, 10, 10), (50, 50, 60, 70)])
    # IoUs of the partners 1.0 and 0.5: two of three written are found, two of two gold
    assert numbers["precision"] == pytest.approx(2 / 3)
    assert numbers["recall"] == pytest.approx(1.0)
    assert numbers["f1"] == pytest.approx(0.8)
    assert numbers["matched_iou"] == pytest.approx((1.0 + 0.5) / 3)
    assert (numbers["n_boxes"], numbers["without_box"]) == (3, False)


def test_an_answer_without_boxes_overlaps_nothing_and_has_no_rates():
    numbers = same_size([], [(0, 0, 10, 10)])
    assert [numbers[name] for name in ("union_iou", "f1", "precision", "recall", "matched_iou")] == [0.0] * 5
    assert (numbers["n_boxes"], numbers["without_box"], numbers["off_image"]) == (0, True, False)
    assert numbers["off_image_rate"] is None
    assert numbers["disordered_rate"] is None


def test_without_gold_boxes_there_is_nothing_to_overlap():
    numbers = same_size([(0, 0, 10, 10)], [])
    assert {numbers[name] for name in OVERLAPS} == {None}
    assert numbers["n_boxes"] == 1


@pytest.mark.parametrize(
    ("box", "off", "disordered"),
    [
        ((0, 0, 504, 364), False, False),  # to the very edge
        ((0, 0, 505, 364), True, False),
        ((0, 0, 504, 365), True, False),
        ((-1, 0, 10, 10), True, False),
        ((600, 0, 10, 10), True, True),
        ((10, 10, 5, 20), False, True),
        ((10, 10, 20, 10), False, True),
    ],
)
def test_a_box_that_leaves_the_image_or_has_its_corners_in_disorder_is_counted(box, off, disordered):
    numbers = grounding([box, (1, 1, 2, 2)], [], PIXELS, **PHOTO)
    assert numbers["off_image"] is off
    assert numbers["off_image_rate"] == (0.5 if off else 0.0)
    assert numbers["disordered_rate"] == (0.5 if disordered else 0.0)


def test_a_box_in_thousandths_leaves_the_image_above_1000():
    assert grounding([(0, 0, 1001, 5)], [], NORM, **PHOTO)["off_image"]
    assert not grounding([(0, 0, 1000, 1000)], [], NORM, **PHOTO)["off_image"]


@calm
@given(st.lists(boxes, max_size=5), st.lists(boxes, min_size=1, max_size=5), spaces, sizes, sizes)
def test_every_overlap_is_within_0_and_1(written, gold, space, original, resized):
    numbers = grounding(written, gold, space, original, resized)
    for name in OVERLAPS:
        assert 0.0 <= numbers[name] <= 1.0 + 1e-9
    assert numbers["f1"] <= 2 * min(numbers["precision"], numbers["recall"]) + 1e-9
    assert numbers["off_image"] is bool(numbers["off_image_rate"])


@calm
@given(st.lists(solid, min_size=1, max_size=5, unique=True), spaces, sizes, sizes)
def test_boxes_written_in_the_models_unit_from_gold_are_found_all(gold, space, original, resized):
    written = [space.from_pixels(box, original=original, resized=resized) for box in gold]
    numbers = grounding(written, gold, space, original, resized)
    assert [numbers[name] for name in ("union_iou", "f1", "precision", "recall", "matched_iou")] == pytest.approx(
        [1.0] * 5
    )


@calm
@given(st.lists(solid, min_size=1, max_size=5), st.lists(solid, min_size=1, max_size=5), st.randoms())
def test_the_order_of_boxes_does_not_matter(written, gold, random):
    shuffled = random.sample(written, len(written)), random.sample(gold, len(gold))
    before, after = same_size(written, gold), same_size(*shuffled)
    assert after["union_iou"] == pytest.approx(before["union_iou"])
    assert after["matched_iou"] == pytest.approx(before["matched_iou"])


@calm
@given(st.lists(solid, max_size=5), st.lists(solid, min_size=1, max_size=5))
def test_the_numbers_are_those_of_boxes(written, gold):
    numbers = same_size(written, gold)
    assert numbers["union_iou"] == pytest.approx(union_iou(written, gold))
    assert numbers["f1"] == pytest.approx(f1_at(written, gold))
    assert numbers["matched_iou"] == pytest.approx(mean_matched_iou(written, gold))


@calm
@given(st.lists(solid, min_size=1, max_size=4), st.lists(solid, min_size=1, max_size=4), solid)
def test_a_surplus_box_never_raises_precision_or_the_mean_of_a_full_match(written, gold, surplus):
    more = same_size([*gold, surplus], gold)
    assert more["precision"] <= 1.0
    assert more["matched_iou"] <= same_size(gold, gold)["matched_iou"]
    assert more["recall"] == 1.0


# the released script


def test_the_released_script_reads_four_integers_anywhere_and_leaves_qwens_pixels_unscaled():
    text = "<think> at 100, 100, 300, 300 </think> <answer> (100,100,300,300)"
    assert released_union_iou(text, [(100, 100, 300, 300)], PIXELS, (640, 480)) == 1.0
    assert released_union_iou("at [100.0, 100.0, 300.0, 300.0]", [(100, 100, 300, 300)], PIXELS, (640, 480)) == 0.0


def test_the_released_script_cuts_thousandths_to_whole_pixels():
    # 333 thousandths of 640 are 213.12, of 480 159.84
    assert released_union_iou("[0, 0, 333, 333]", [(0, 0, 213, 159)], NORM, (640, 480)) == 1.0


def test_the_released_script_gives_a_perfect_box_in_a_photograph_of_640_by_480_little_more_than_a_third():
    # (100, 100, 300, 300) as the model sees it; shared 136 × 127, of 157 × 151 + 200 × 200 - shared
    text = '{"bbox_2d": [79, 76, 236, 227]}'
    assert released_union_iou(text, [(100, 100, 300, 300)], PIXELS, (640, 480)) == pytest.approx(17272 / 46435)


@pytest.mark.parametrize("vector", VECTORS["grounding_iou"], ids=lambda vector: vector["note"])
def test_the_references_grounding_iou_is_reproduced_from_text_up_to_whole_pixels(vector):
    text = " ".join(str([round(number) for number in box]) for box in vector["pred"])
    assert released_union_iou(text, vector["gt"], PIXELS, (640, 480)) == pytest.approx(vector["giou"], abs=0.01)


@pytest.mark.parametrize("text", ["", "9" * 5000, f"{'9' * 5000},1,2,3", "1,2,3," * 20_000, "1,2,3,4 " * 12_000])
def test_the_released_reading_survives_any_text(text):
    assert released_union_iou(text, [(0, 0, 3, 4)], PIXELS, (640, 480)) <= 1.0
    assert released_union_iou(text, [], PIXELS, (640, 480)) is None


# referring expressions


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("<think> [1, 2, 30, 40] </think> <answer> [5, 6, 70, 80]", (5, 6, 70, 80)),
        ("<think> [1, 2, 30, 40] </think> <answer> [5, 6, 70, 80] or [1, 2, 30, 40]", (5, 6, 70, 80)),
        ("<think> [1, 2, 30, 40] then [9, 9, 20, 20] </think> <answer> the left one", (1, 2, 30, 40)),
        ("<think> nothing </think> <answer> the left one", None),
        ("[5, 6, 70, 80]", (5, 6, 70, 80)),
    ],
)
def test_the_first_box_of_the_answer_is_the_one_referred_to_else_the_first_of_the_reasoning(text, box):
    found = referred_box(parse(text), PIXELS, (100, 100), (100, 100))
    assert found == (None if box is None else Box(*box))


def test_the_box_referred_to_is_in_pixels_of_the_original():
    assert referred_box(parse("<answer> [252, 182, 504, 364]"), PIXELS, **PHOTO) == pytest.approx((320, 240, 640, 480))
