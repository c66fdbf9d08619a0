import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from grit_lite.boxes import (
    PALETTE,
    PICTURE_SIDE,
    Box,
    BoxSpace,
    draw,
    f1_at,
    iou,
    match,
    mean_matched_iou,
    smart_resize,
    union_iou,
)
from grit_lite.errors import DataError

calm = settings(deadline=None)  # another job on the machine may make one example slow
VECTORS = json.loads((Path(__file__).parent / "data" / "reward_vectors.json").read_text())

coordinates = st.floats(-2000, 2000, allow_nan=False).map(lambda number: round(number, 3))
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
box_lists = st.lists(boxes, max_size=6)
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


# BoxSpace


def test_qwen2_5_vl_boxes_are_scaled_on_each_axis_by_its_own_factor():
    # 640 × 480 is seen at 504 × 364: x · 640/504, y · 480/364
    box = BoxSpace.RESIZED_PIXELS.to_pixels((252, 182, 504, 364), original=(640, 480), resized=(504, 364))
    assert box == pytest.approx(Box(320, 240, 640, 480))


def test_thousandths_do_not_depend_on_the_resized_size():
    box = BoxSpace.NORM1000.to_pixels((250, 500, 750, 1000), original=(640, 480), resized=(32, 32))
    assert box == pytest.approx(Box(160, 240, 480, 480))


def test_the_extent_of_an_image_is_in_the_unit_that_the_model_writes():
    assert BoxSpace.RESIZED_PIXELS.extent((504, 364)) == (504, 364)
    assert BoxSpace.NORM1000.extent((504, 364)) == (1000, 1000)


@calm
@given(boxes, sizes, sizes, st.sampled_from(BoxSpace))
def test_to_pixels_and_back_is_the_same_box(box, original, resized, space):
    pixels = space.to_pixels(box, original=original, resized=resized)
    assert space.from_pixels(pixels, original=original, resized=resized) == pytest.approx(box, rel=1e-9, abs=1e-9)


@calm
@given(boxes, sizes, sizes, st.sampled_from(BoxSpace))
def test_from_pixels_and_back_is_the_same_box(box, original, resized, space):
    written = space.from_pixels(box, original=original, resized=resized)
    assert space.to_pixels(written, original=original, resized=resized) == pytest.approx(box, rel=1e-9, abs=1e-9)


@calm
@given(sizes, sizes, st.sampled_from(BoxSpace))
def test_the_whole_image_stays_the_whole_image(original, resized, space):
    whole = (0, 0, *space.extent(resized))
    assert space.to_pixels(whole, original=original, resized=resized) == pytest.approx((0, 0, *original))


# smart_resize


@pytest.mark.parametrize("vector", VECTORS["smart_resize"], ids=lambda vector: str(vector["original_wh"]))
def test_the_references_two_resizings_are_reproduced(vector):
    loaded = smart_resize(tuple(vector["original_wh"]), factor=28, min_pixels=4 * 784, max_pixels=16384 * 784)
    seen = smart_resize(loaded, factor=28, min_pixels=3136, max_pixels=200704)
    assert [*loaded] == vector["loader_wh"]
    assert [*seen] == vector["processor_wh"]
    assert seen[0] * seen[1] // 28**2 == vector["vision_tokens"]


@calm
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([(28, 3136, 200704), (32, 4096, 262144), (16, 256, 1024)]),
)
def test_smart_resize_equals_the_one_of_transformers(width, height, limits):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as theirs

    factor, low, high = limits
    if max(width, height) > 200 * min(width, height):
        return
    expected_height, expected_width = theirs(height, width, factor=factor, min_pixels=low, max_pixels=high)
    assert smart_resize((width, height), factor=factor, min_pixels=low, max_pixels=high) == (
        expected_width,
        expected_height,
    )


def test_an_image_far_too_narrow_is_refused_with_its_size():
    with pytest.raises(DataError, match="2010 × 10 pixels"):
        smart_resize((2010, 10), factor=28, min_pixels=3136, max_pixels=200704)


# overlap


@pytest.mark.parametrize("vector", VECTORS["grounding_iou"], ids=lambda vector: vector["note"])
def test_the_references_grounding_iou_is_reproduced(vector):
    assert union_iou(vector["pred"], vector["gt"]) == pytest.approx(vector["giou"], abs=1e-6)


def test_where_boxes_overlap_the_area_counts_once():
    # pred covers 10 × 10 twice, gold 10 × 20: 100 / 200
    assert union_iou([(0, 0, 10, 10), (0, 0, 10, 10)], [(0, 0, 10, 20)]) == pytest.approx(0.5)


def test_boxes_without_area_cover_nothing():
    assert union_iou([(5, 5, 5, 9)], [(5, 5, 5, 9)]) == 0.0
    assert union_iou([], [(0, 0, 1, 1)]) == 0.0
    assert union_iou([], []) == 0.0


@calm
@given(box_lists, box_lists)
def test_union_iou_is_symmetric_and_within_0_and_1(pred, gold):
    value = union_iou(pred, gold)
    assert 0.0 <= value <= 1.0
    assert value == union_iou(gold, pred)


@calm
@given(st.lists(boxes, min_size=1, max_size=5))
def test_union_iou_of_boxes_with_themselves_is_1_unless_they_cover_nothing(pred):
    assert union_iou(pred, pred[::-1]) == (1.0 if any(a != c and b != d for a, b, c, d in pred) else 0.0)


@calm
@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=4),
    st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=4),
)
def test_union_iou_equals_counting_unit_squares(pred, gold):
    def covered(some):
        raster = np.zeros((12, 12), dtype=bool)
        for x1, y1, x2, y2 in some:
            raster[min(y1, y2) : max(y1, y2), min(x1, x2) : max(x1, x2)] = True
        return raster

    shared, either = (covered(pred) & covered(gold)).sum(), (covered(pred) | covered(gold)).sum()
    assert union_iou(pred, gold) == pytest.approx(shared / either if either else 0.0)


def test_a_coordinate_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        union_iou([(0, 0, float("nan"), 1)], [(0, 0, 1, 1)])


def test_iou_of_two_boxes_sharing_a_quarter():
    # 5 × 5 shared of 100 + 100 - 25
    assert iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)


# matching


def test_matching_takes_the_pairs_with_the_largest_sum():
    # greedy would give gold 0 to the first prediction (IoU 1.0) and leave the second with nothing to pair
    pred, gold = [(0, 0, 10, 10), (0, 0, 10, 6)], [(0, 0, 10, 10), (0, 2, 10, 10)]
    # sums: straight 1.0 + 4/10, crossed 0.8 + 0.6; equal, so move gold 1 to make crossing worth more
    gold[1] = (0, 0, 10, 9)
    # straight 1.0 + 6/9 = 1.667, crossed 0.9 + 0.6 = 1.5
    assert match(pred, gold) == [(0, 0, 1.0), (1, 1, pytest.approx(6 / 9))]


def test_boxes_that_do_not_overlap_are_not_a_pair():
    assert match([(0, 0, 1, 1)], [(5, 5, 6, 6)]) == []
    assert match([], [(5, 5, 6, 6)]) == []


def test_one_gold_box_is_matched_once():
    assert len(match([(0, 0, 10, 10)] * 3, [(0, 0, 10, 10)])) == 1


def test_f1_counts_found_missed_and_surplus_boxes():
    pred = [(0, 0, 10, 10), (50, 50, 60, 60), (80, 80, 90, 90)]
    gold = [(0, 0, 10, 10), (50, 50, 60, 70)]
    # IoUs 1.0 and 0.5, both found: 2 · 2 / (3 + 2)
    assert f1_at(pred, gold) == pytest.approx(0.8)
    assert f1_at(pred, gold, threshold=0.6) == pytest.approx(0.4)
    assert f1_at([], gold) == f1_at([], []) == 0.0


def test_a_box_without_a_partner_counts_as_0_in_the_mean():
    # (1.0 + 0.5 + 0) / 3
    pred = [(0, 0, 10, 10), (50, 50, 60, 60), (80, 80, 90, 90)]
    assert mean_matched_iou(pred, [(0, 0, 10, 10), (50, 50, 60, 70)]) == pytest.approx(0.5)
    assert mean_matched_iou([], [(0, 0, 1, 1)]) == 0.0


# drawing


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("color", PALETTE)
def test_a_colour_stands_out_from_black_and_from_white(color):
    # contrast of WCAG 2: (lighter + 0.05) / (darker + 0.05)
    assert (luminance(color) + 0.05) / 0.05 >= 3
    assert 1.05 / (luminance(color) + 0.05) >= 3


# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def cielab(color, sight):
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(np.array(sight) @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_colours_can_be_told_apart(sight):
    apart = [np.linalg.norm(cielab(a, SIGHT[sight]) - cielab(b, SIGHT[sight])) for a, b in combinations(PALETTE, 2)]
    assert min(apart) >= 30


BACKGROUNDS = ["black", "white", "gray", "red", "navy", *(f"rgb{color}" for color in PALETTE)]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_outline_is_seen_on_any_background(background):
    color = ImageColor.getrgb(background)
    picture = draw(Image.new("RGB", (600, 600), color), [Box(100, 100, 400, 400)])
    row = [picture.getpixel((x, 300)) for x in range(95, 110)]
    contrast = [sorted([luminance(pixel) + 0.05, luminance(color) + 0.05]) for pixel in row]
    assert max(high / low for low, high in contrast) >= 3


def test_the_kth_box_has_the_kth_colour_and_its_number_on_a_tag():
    boxes = [Box(50, 300, 150, 500), Box(300, 300, 400, 500)]
    picture = draw(Image.new("RGB", (600, 600)), boxes)
    for number, box in enumerate(boxes):
        tag = picture.crop((int(box.x1), int(box.y1) - 24, int(box.x1) + 12, int(box.y1)))
        assert PALETTE[number] in {color for _, color in tag.getcolors()}
        assert any(min(color) > 200 for _, color in tag.getcolors()), "the number is written in white"
    assert picture.getpixel((51, 400)) == PALETTE[0]


def test_colours_repeat_when_they_run_out():
    boxes = [Box(10 + 60 * k, 100, 50 + 60 * k, 400) for k in range(len(PALETTE) + 1)]
    picture = draw(Image.new("RGB", (600, 600)), boxes)
    assert picture.getpixel((11 + 60 * len(PALETTE), 300)) == PALETTE[0]


def test_a_small_image_is_enlarged_by_a_whole_factor():
    # 112 · 4 = 448
    picture = draw(Image.new("RGB", (112, 84)), [Box(28, 28, 56, 56)])
    assert picture.size == (PICTURE_SIDE, 336)
    assert picture.getpixel((28 * 4 + 1, 160)) == PALETTE[0]


def test_the_given_image_is_left_alone():
    image = Image.new("P", (600, 600))
    draw(image, [Box(0, 0, 500, 500)])
    assert image.getcolors() == [(360000, 0)]
    assert image.mode == "P"


def tags(picture):
    return sum(count for count, color in picture.getcolors(maxcolors=1 << 24) if color == PALETTE[0])


@pytest.mark.parametrize("corner", [(0, 0), (520, 0), (0, 520), (520, 520)])
def test_a_tag_is_kept_inside_the_image(corner):
    def draw_at(x, y):
        return tags(draw(Image.new("RGB", (600, 600)), [Box(x, y, x + 80, y + 80)], ["a long label here"]))

    # the same ink as in the middle, up to the outline that the tag hides or the border cuts
    assert draw_at(*corner) == pytest.approx(draw_at(300, 300), rel=0.2)


def test_tags_of_boxes_at_the_same_place_do_not_cover_each_other():
    picture = draw(Image.new("RGB", (600, 600)), [Box(200, 200, 400, 400)] * 4, ["one"] * 4)
    filled = {color: count for count, color in picture.getcolors(maxcolors=1 << 24)}
    assert all(filled.get(PALETTE[k], 0) > 300 for k in range(4))


@calm
@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 4), max_size=3), st.lists(st.text(max_size=40), max_size=3))
def test_any_finite_box_and_any_label_can_be_drawn(some, labels):
    assert draw(Image.new("RGB", (64, 48)), [Box(*box) for box in some], labels).mode == "RGB"


def test_a_label_with_a_lone_surrogate_is_drawn():
    draw(Image.new("RGB", (64, 48)), [Box(1, 1, 20, 20)], ["\ud800\x1b[31m"])


def test_a_box_that_is_not_finite_is_not_drawn():
    with pytest.raises(ValueError, match="not finite"):
        draw(Image.new("RGB", (64, 48)), [Box(0, 0, float("inf"), 4)])
