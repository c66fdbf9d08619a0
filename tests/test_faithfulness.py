"""Changed images and changed chains, as pure functions and with the embedded model, which reads what it wrote."""

import io
import json
import shutil
from collections.abc import Sequence
from copy import copy
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_server import choice, served
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from grit_lite.answer import GRIT_PROMPT, number_spans, parse
from grit_lite.backends import Generated, Request, open_backend
from grit_lite.boxes import Box, BoxSpace, draw, iou
from grit_lite.cli import app
from grit_lite.errors import JudgeError, UsageError
from grit_lite.evaluate import SYSTEMS, Decoding, Evaluation
from grit_lite.evaluate.faithfulness import CONDITIONS, faithfulness, reasoning_correlation, summarise
from grit_lite.evaluate.faithfulness.conditions import Case
from grit_lite.evaluate.faithfulness.correlation import by_judge
from grit_lite.evaluate.faithfulness.examination import examine, read_examination, thinned
from grit_lite.evaluate.faithfulness.interventions import (
    blank,
    cover_elsewhere,
    distinct,
    elsewhere,
    hidden,
    keep_only,
    numbers_of,
    paint_over,
    swapped,
    thought_boxes,
    up_to_whole_token,
    with_numbers,
    written_like,
)
from grit_lite.evaluate.faithfulness.table import table
from grit_lite.evaluate.question import Question, from_triplet
from grit_lite.evaluate.runner import Asking
from grit_lite.evaluating import Wish, begin, finished
from grit_lite.judge import as_sent
from grit_lite.pages.faithfulness import LABELS, lines, sentences
from grit_lite.recipe import load_recipe
from grit_lite.report.evaluation import benchmark as report_on
from grit_lite.run import Run, read_rows
from grit_lite.scorers import is_right
from grit_lite.tiny.build import save_untrained
from grit_lite.tiny.measure import chain_opening
from grit_lite.tiny.questions import held_out
from grit_lite.training import save_adapter
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


@pytest.mark.parametrize("within", [1, 2, 9])
def test_a_box_that_lies_within_its_object_is_not_painted_over_with_it(within):
    pixels = np.full((40, 60, 3), 7, dtype=np.uint8)
    pixels[5:35, 15:45] = 255
    box = Box(15 + within, 5 + within, 45 - within, 35 - within)
    assert (np.array(paint_over(Image.fromarray(pixels), [box]))[inside([box])] == 7).all()


def test_on_one_colour_there_is_nothing_to_paint():
    image = Image.new("RGB", SIZE, (9, 8, 7))
    assert np.array_equal(np.array(paint_over(image, [Box(10, 10, 20, 20)])), np.array(image))


@pytest.mark.parametrize(
    ("box", "share"),
    [
        (Box(0, 0, 10, 10), 0.0),  # where there is nothing
        (Box(25, 10, 35, 20), 1.0),  # the object
        (Box(20, 10, 30, 20), 0.5),  # half of it, and as much of nothing
        (Box(46, 0, 56, 10), 0.0),  # what differs, but hardly
        (Box(70, 50, 90, 60), 0.0),  # off the image
    ],
)
def test_what_is_hidden_is_what_looks_different(box, share):
    pixels = np.full((40, 60, 3), 7, dtype=np.uint8)
    pixels[10:20, 25:35] = 255
    pixels[2:8, 48:54] = 20
    image = Image.fromarray(pixels)
    assert hidden(image, paint_over(image, [box]), [box]) == share


def test_noise_that_is_painted_over_hides_nothing():
    rng = np.random.default_rng(0)
    pixels = (120 + rng.normal(0, 8, (40, 60, 3))).clip(0, 255).astype(np.uint8)
    image, box = Image.fromarray(pixels), Box(10, 10, 40, 30)
    assert hidden(image, paint_over(image, [box]), [box]) < 0.01


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
    right = np.array(paint_over(noise(), [Box(50, 0, 60, 10), Box(20, 5, 31, 12)]))
    other = [Box(80.0, 9.5, 50.2, -3), Box(30.1, 12, 20.9, 5)]
    assert np.array_equal(np.array(paint_over(noise(), other)), right)


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


def seen(boxes: Sequence[Box]) -> int:
    """How many pixels of the image the boxes cover, whatever they are off it."""
    (width, height), canvas = SIZE, np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        canvas[max(0, int(y1)) : min(height, int(y2)), max(0, int(x1)) : min(width, int(x2))] = True
    return int(canvas.sum())


@pytest.mark.parametrize(
    "boxes",
    [
        [Box(50, 30, 90, 60)],  # most of it is off the image
        [Box(10, 10, 20, 20)] * 3,
        [Box(10, 10, 20, 20), Box(15, 15, 25, 25)],
        [Box(0, 0, 10, 10), Box(5, 5, 20, 12), Box(40, 20, 50, 30), Box(-5, 30, 4, 50)],
        [Box(48, 28, 300, 400), Box(0, 0, 8, 8)],  # another unit
    ],
)
def test_a_control_covers_as_much_of_the_image_as_the_boxes_do(boxes):
    for seed in range(30):
        moved = cover_elsewhere(boxes, SIZE, np.random.default_rng(seed))
        assert seen(moved) == seen(boxes)
        assert (inside(moved) & inside(distinct(boxes, SIZE))).sum() == 0


@calm
@given(boxes_in(most=6), st.integers(0, 2**32))
def test_a_control_never_covers_more(boxes, seed):
    moved = cover_elsewhere(boxes, SIZE, np.random.default_rng(seed))
    assert seen(moved) <= seen(boxes)
    assert len(moved) == len(set(boxes))


def test_where_nothing_is_seen_there_is_no_control():
    assert cover_elsewhere([Box(70, 50, 90, 60)], SIZE, np.random.default_rng(0)) == []


def test_a_control_in_a_large_image_is_moved_by_whole_pixels():
    boxes = [Box(0.5, 0.5, 1000.25, 2000), Box(900, 10, 1200, 700)]
    moved = cover_elsewhere(boxes, (6001, 4003), np.random.default_rng(0))
    assert all(number == int(number) for box in moved for number in box)
    assert [(box.x2 - box.x1, box.y2 - box.y1) for box in moved] == [(1001, 2000), (300, 690)]


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
    rows, summary = faithfulness(backend, *answered, conditions=("same_boxes", "swapped_boxes"), max_new_tokens=160)
    assert summary["questions"] == 16
    conditions = summary["conditions"]
    assert conditions["same_boxes"]["flip_rate"]["value"] == 0
    assert conditions["swapped_boxes"]["flip_rate"]["value"] > 0.75
    assert conditions["swapped_boxes"]["accuracy"]["value"] < summary["accuracy"]["value"] - 0.3
    assert summary["effects"]["reading_swapped"]["low"] > 0.4
    same = {row["id"]: row["completion"] for row in rows if row["condition"] == "same_boxes"}
    assert same == {row["id"]: row["completion"] for row in answered[1]}


def test_what_is_masked_where_it_matters_flips_more_than_what_is_masked_elsewhere(backend, answered):
    _, summary = faithfulness(backend, *answered, conditions=("mask_predicted", "mask_random"), max_new_tokens=160)
    conditions = summary["conditions"]
    assert conditions["mask_predicted"]["n"] == conditions["mask_random"]["n"] == 16
    assert summary["effects"]["grounding"]["difference"] > 0.1
    assert "taken_away" not in summary


def test_masks_that_hide_nothing_are_counted_and_it_is_said():
    pixels = np.full((SIZE[1], SIZE[0], 3), 7, dtype=np.uint8)
    pixels[5:15, 5:15] = 255
    image = Image.fromarray(pixels)
    questions = [Question(f"q{k}", "which?", "A", (image,), SIZE, cluster=f"c{k}") for k in range(3)]
    chains = ("[5, 5, 15, 15]", "[30, 20, 40, 30]", "[15, 5, 25, 15]")  # the object, and nothing twice
    rows = [
        {"id": f"q{k}", "completion": f"<think> at {chain} </think> <answer> A", "answer": "A", "correct": True}
        for k, chain in enumerate(chains)
    ]
    masks = ("mask_predicted", "mask_random")
    found, summary = faithfulness(Listener(), questions, rows, conditions=(*masks, "blank"), max_new_tokens=2)
    assert [row["hid"] for row in found if row["condition"] == "mask_predicted"] == [1.0, 0.0, 0.0]
    assert summary["conditions"]["mask_predicted"]["hid_nothing"] == 2
    assert "hid_nothing" not in summary["conditions"]["blank"]
    hid = [row["hid"] for row in found if row["condition"] == "mask_random"]
    assert summary["conditions"]["mask_random"]["hid_nothing"] == sum(share < 0.05 for share in hid)
    said = sentences({**summary, "settings": {"left_out": 0}, "datasets": {}, "correlation": {"obstacle": "none"}})[1]
    assert said.startswith("Painting over its boxes hid almost nothing in 2 of 3 questions, where an answer that stays")


def test_rows_depend_neither_on_the_batch_nor_on_the_other_questions(backend, answered):
    questions, rows = (part[:6] for part in answered)
    names = ("mask_random", "wrong_boxes", "blank")
    together, _ = faithfulness(backend, questions, rows, conditions=names, max_new_tokens=160)
    in_twos, _ = faithfulness(backend, questions, rows, conditions=names, max_new_tokens=160, batch_size=2)
    alone, _ = faithfulness(backend, questions[3:4], rows[3:4], conditions=names, max_new_tokens=160)

    def keyed(found):
        return {(row["id"], row["condition"]): row for row in found}

    assert keyed(in_twos) == keyed(together)
    assert keyed(alone).items() <= keyed(together).items()


def test_a_question_without_boxes_is_counted_and_not_asked_again(backend, answered):
    questions, rows = (part[:3] for part in answered)
    rows = [
        {**rows[0], "completion": "<answer> yes", "answer": "yes", "correct": True},
        {**rows[1], "completion": "<think> at [200, 200, 220, 230] </think> <answer> yes", "correct": None},
        rows[2],
    ]
    told = []
    found, summary = faithfulness(
        backend,
        questions,
        rows,
        conditions=("blank", "shuffled", "swapped_boxes"),
        max_new_tokens=8,
        progress=lambda *done: told.append(done),
    )
    assert [row["condition"] for row in found if row["id"] == questions[0].id] == ["without_boxes"]
    assert [row["condition"] for row in found if row["id"] == questions[1].id] == ["nothing_covered"]
    assert (summary["questions"], summary["without_boxes"], summary["nothing_covered"]) == (3, 1, 1)
    said = sentences({**summary, "settings": {"left_out": 0}, "datasets": {}, "correlation": {"obstacle": "none"}})[0]
    assert said == (
        "Of 3 questions, 1 were answered without a box and 1 with boxes that cover nothing of the image; they stay out."
    )
    assert lines({**summary, "datasets": {}})[0].n == 1
    assert {name: one["n"] for name, one in summary["conditions"].items()} == {
        "blank": 1,
        "shuffled": 1,
        "swapped_boxes": 1,
    }
    assert told == [("faithfulness", 3, 3)]


def test_one_box_has_no_other_to_change_places_with(backend, answered):
    questions, rows = answered
    single = {**rows[0], "completion": "<think> at [10, 10, 40, 40] </think> <answer> yes"}
    same = {**rows[1], "completion": "<think> at [10, 10, 40, 40] and [10, 10, 40, 40] </think> <answer> yes"}
    _, summary = faithfulness(
        backend, questions[:2], [single, same], conditions=("swapped_boxes", "same_boxes"), max_new_tokens=8
    )
    assert "swapped_boxes" not in summary["conditions"]
    assert summary["conditions"]["same_boxes"]["n"] == 2


# --- several images


class Listener:
    """A backend that says A whatever it is asked, and remembers the images."""

    spec = SimpleNamespace(prompts=GRIT_PROMPT, box_space=BoxSpace.RESIZED_PIXELS)
    processor = SimpleNamespace(tokenizer=SimpleNamespace(all_special_tokens=[]))

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []

    def resized(self, image):
        return image.size

    def generate(self, requests, **options):
        self.asked += [[image.tobytes() for image in request.images] for request in requests]
        return [Generated("<answer> A", 2, True, SIZE)] * len(requests)


SEVERAL = [2, 1, 2, 3, 2, 1]  # images of each question


def about(counts: Sequence[int]) -> tuple[list[Question], list[dict]]:
    """Questions about so many images, each answered with a box."""
    images = [[noise(10 * k + place) for place in range(count)] for k, count in enumerate(counts)]
    questions = [Question(f"q{k}", "which?", "A", tuple(own), SIZE, cluster=f"c{k}") for k, own in enumerate(images)]
    said = {"completion": "<think> at [1, 1, 9, 9] </think> <answer> A", "answer": "A", "correct": True}
    return questions, [{"id": question.id, **said} for question in questions]


def test_of_several_images_all_are_blank():
    listener = Listener()
    faithfulness(listener, *about([2]), conditions=("blank",), max_new_tokens=2)
    assert listener.asked == [[blank(noise(place)).tobytes() for place in (0, 1)]]


def test_several_images_are_exchanged_for_as_many_of_one_other_question():
    listener, (questions, rows) = Listener(), about(SEVERAL)
    found, _ = faithfulness(listener, questions, rows, conditions=("shuffled",), max_new_tokens=2)
    own = [[image.tobytes() for image in question.load_images()] for question in questions]
    exchanged = {row["id"]: images for row, images in zip(shuffled(found), listener.asked, strict=True)}
    assert exchanged.keys() == {"q0", "q1", "q2", "q4", "q5"}  # no other question has three images
    for id, images in exchanged.items():
        assert images in own
        assert images != own[int(id[1:])]


def shuffled(rows):
    return [row for row in rows if row["condition"] == "shuffled"]


def test_boxes_of_several_images_have_no_place_and_it_is_said():
    listener, (questions, rows) = Listener(), about(SEVERAL)
    off = {**rows[0], "completion": "<think> at [100, 1, 190, 9] </think> <answer> A"}  # perhaps the second is wider
    masks = ("mask_predicted", "mask_random", "keep_predicted")
    _, summary = faithfulness(listener, questions, [off, *rows[1:]], conditions=(*masks, "blank"), max_new_tokens=2)
    assert {name: condition["n"] for name, condition in summary["conditions"].items()} == {
        **dict.fromkeys(masks, 2),
        "blank": 6,
    }
    assert (summary["questions"], summary["without_boxes"], summary["several_images"]) == (6, 0, 4)
    result = {**summary, "settings": {"left_out": 0}, "datasets": {}, "correlation": {"obstacle": "none"}}
    assert sentences(result)[1].startswith("Of those asked again, 4 are about several images.")
    one = {**result, "several_images": 0}
    assert not any("several images" in said for said in sentences(one))


def test_chains_about_several_images_are_not_changed_nor_read():
    changed = ("same_boxes", "wrong_boxes", "swapped_boxes")
    found, _ = faithfulness(Listener(), *about([2, 2]), conditions=changed, max_new_tokens=2)
    assert [row["condition"] for row in found] == ["unchanged"] * 2
    found, _ = reasoning_correlation(Listener(), *about(SEVERAL), reader=lambda pairs: [0.0] * len(pairs))
    assert [row["id"] for row in found] == ["q1", "q5"]


def test_a_system_may_be_asked_in_its_own_way(backend, answered):
    questions, rows = (part[:2] for part in answered)
    asked = []

    def ask(question, images, opening):
        asked.append((question.id, images[0].size, opening))
        return Request(tuple(images), "\nQuestion: What is it?", opening)

    faithfulness(backend, questions, rows, conditions=("same_boxes",), max_new_tokens=2, ask=ask)
    assert [id for id, _, _ in asked] == [question.id for question in questions]
    assert all(opening.startswith("<think> I look for") for _, _, opening in asked)


def test_what_nobody_judged_has_no_accuracy_and_still_flips(backend, answered):
    questions, rows = (part[:2] for part in answered)
    unjudged = [{**row, "correct": None} for row in rows]
    _, summary = faithfulness(
        backend,
        questions,
        unjudged,
        conditions=("same_boxes", "swapped_boxes"),
        max_new_tokens=160,
        score=lambda question, read, resized: None,
        reference=0.5,
    )
    assert summary["accuracy"]["n"] == summary["conditions"]["same_boxes"]["accuracy"]["n"] == 0
    assert summary["conditions"]["swapped_boxes"]["flip_rate"]["n"] == 2
    assert summary["effects"]["reading_swapped_accuracy"]["n"] == 0


def test_an_opening_ends_with_a_whole_token(backend):
    tokenizer = backend.processor.tokenizer
    text = 'The circle is at {"bbox_2d": [1, 2, 30, 40], "label": "circle"}.'
    box = parse(text).written[0]
    assert up_to_whole_token(tokenizer, text, box.end) == text[: text.index('circle"}')]
    assert up_to_whole_token(tokenizer, "short", 99) == "short"


# --- numbers


def made_up(condition, outcomes):
    """Rows of questions 0, 1, … from (correct, flipped) pairs; two questions share an image."""
    return [
        {"condition": condition, "id": str(k), "cluster": str(k // 2), "answer": "yes", "correct": c, "flipped": f}
        for k, (c, f) in enumerate(outcomes)
    ]


def test_numbers_are_those_of_the_rows():
    rows = [
        *made_up("unchanged", [(1.0, 0.0)] * 3 + [(0.0, 0.0)]),
        *made_up("same_boxes", [(1.0, 0.0)] * 3 + [(0.0, 0.0)]),
        *made_up("wrong_boxes", [(0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]),
        *made_up("mask_predicted", [(0.0, 1.0)] * 3),  # the fourth has no such row
        *made_up("mask_random", [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]),
        {"condition": "without_boxes", "id": "9", "cluster": "9", "answer": None, "correct": 0.0, "flipped": 0.0},
    ]
    summary = summarise(rows, reference=0.25)
    assert (summary["questions"], summary["without_boxes"], summary["unanswered"]) == (5, 1, 0)
    assert summary["accuracy"]["value"] == 0.75
    assert summary["conditions"]["wrong_boxes"]["accuracy"]["value"] == 0.5
    assert summary["conditions"]["wrong_boxes"]["flip_rate"]["value"] == 0.75
    assert "unchanged" not in summary["conditions"]
    assert summary["effects"]["reading"]["difference"] == 0.75
    assert summary["effects"]["reading_accuracy"]["difference"] == -0.25
    grounding = summary["effects"]["grounding"]
    assert (grounding["difference"], grounding["n"]) == (pytest.approx(2 / 3), 3)
    assert "reading_swapped" not in summary["effects"]


def test_what_is_taken_away_is_a_share_of_what_was_gained():
    before = [(float(k % 10 < 9), 0.0) for k in range(60)]
    after = [(float(k % 10 < 6), float(k % 10 >= 6)) for k in range(60)]
    rows = [*made_up("unchanged", before), *made_up("same_boxes", before), *made_up("wrong_boxes", after)]
    taken = summarise(rows, reference=0.5)["taken_away"]["wrong_boxes"]
    assert taken["value"] == pytest.approx((0.9 - 0.6) / (0.9 - 0.5))
    assert 0 < taken["low"] < 0.75 < taken["high"] < 2
    by_id = summarise(rows, reference={str(k): 0.5 for k in range(60)})["taken_away"]["wrong_boxes"]
    assert by_id == taken


def test_where_nothing_was_gained_nothing_can_be_taken_away():
    before, after = [(1.0, 0.0), (0.0, 0.0)] * 10, [(0.0, 1.0), (0.0, 0.0)] * 10
    rows = [*made_up("same_boxes", before), *made_up("wrong_boxes", after)]
    taken = summarise(rows, reference=0.5)["taken_away"]["wrong_boxes"]
    assert taken == {"value": None, "low": None, "high": None, "n": 20}


def test_nothing_asked_is_no_number():
    summary = summarise([], reference=0.5)
    assert summary["accuracy"]["value"] is None
    assert (summary["conditions"], summary["effects"], summary["taken_away"]) == ({}, {}, {})


# --- which image the text belongs to


def test_a_judge_is_shown_both_orders_without_coordinates(backend, answered):
    questions, rows = (part[:3] for part in answered)
    shown = []

    def first(images, text):
        shown.append((images, text))
        return "A."

    found, summary = reasoning_correlation(backend, questions, rows, reader=by_judge(first))
    assert len(shown) == 12
    for (one, text), (other, again) in zip(shown[::2], shown[1::2], strict=True):
        assert text == again
        assert [image.tobytes() for image in one] == [image.tobytes() for image in reversed(other)]
        assert one[0].tobytes() != one[1].tobytes()
    for own, _, another, _ in zip(*(shown[k::4] for k in range(4)), strict=True):
        assert own[1] != another[1]  # another chain's text, about the same images
        assert [image.tobytes() for image in own[0]] == [image.tobytes() for image in another[0]]
    assert '"bbox_2d": […, …, …, …]' in shown[0][1]
    assert not any(character.isdigit() for character in shown[0][1].replace("bbox_2d", ""))
    assert "<answer>" not in shown[0][1]
    assert summary["correlation"]["value"] == 0.5  # always the first one is no knowledge
    assert (summary["ties"], summary["unanswered"]) == (3, 0)
    assert [row["condition"] for row in found] == ["correlation"] * 3


def test_a_judge_that_knows_is_right_whatever_the_order(backend, answered):
    questions, rows = (part[:2] for part in answered)
    boxes = [Case(question, row, backend, "", None).boxes for question, row in zip(questions, rows, strict=True)]
    right = [draw(question.load_images()[0], own).tobytes() for question, own in zip(questions, boxes, strict=True)]

    def knows(images, text):
        return "A" if images[0].tobytes() in right else " b "

    _, summary = reasoning_correlation(backend, questions, rows, reader=by_judge(knows))
    assert summary["correlation"]["value"] == 1.0
    _, summary = reasoning_correlation(
        backend, questions, rows, reader=by_judge(lambda *pair: "B" if knows(*pair) == "A" else "A")
    )
    assert summary["correlation"]["value"] == 0.0


def test_no_answer_of_a_judge_is_counted_and_no_preference(backend, answered):
    questions, rows = (part[:2] for part in answered)
    said = iter([None, "both", "B", "A", "A", "I cannot say", "A", "A"])
    found, summary = reasoning_correlation(backend, questions, rows, reader=by_judge(lambda *pair: next(said)))
    assert [(row["points"], row["other_points"]) for row in found] == [(0.5, 0.0), (1.0, 0.5)]
    assert (summary["ties"], summary["unanswered"]) == (1, 3)
    assert summary["difference"]["difference"] == 0.5


def test_the_model_reads_by_itself_in_any_batch(backend, answered):
    questions, rows = (part[:3] for part in answered)
    spelt = {**rows[0], "completion": rows[0]["completion"].replace("I look", "I <|image_pad|> look")}
    one, _ = reasoning_correlation(backend, questions, [spelt, *rows[1:]], batch_size=1)
    three, _ = reasoning_correlation(backend, questions, [spelt, *rows[1:]], batch_size=3)
    for a, b in zip(one, three, strict=True):
        assert a["as_first"] == pytest.approx(b["as_first"], abs=1e-4)
        assert a["as_second"] == pytest.approx(b["as_second"], abs=1e-4)


# --- as a part of an evaluation


def rows_with(boxes):
    return [{"boxes": [[0, 0, 1, 1]] * count} for count in boxes]


def test_questions_are_thinned_evenly_and_those_without_boxes_stay():
    rows = rows_with([1, 1, 0, 2, 1, 0, 1, 1])
    assert thinned(rows, None) == list(range(8))
    assert thinned(rows, 99) == list(range(8))
    assert thinned(rows, 2) == [0, 2, 4, 5]
    assert thinned(rows, 3) == [0, 2, 3, 5, 6]
    assert thinned(rows_with([0, 0]), 5) == [0, 1]


@pytest.fixture(scope="module")
def evaluated(backend, answered, tmp_path_factory):
    """An evaluation whose system `tuned` said what the model says once its chain is begun for it."""
    questions, rows = (part[:8] for part in answered)
    folder = tmp_path_factory.mktemp("run") / "eval"
    evaluation = Evaluation(questions, benchmark="made", folder=folder, decoding=Decoding(60), batch_size=4)
    asking = Asking(backend, evaluation.decoding, 4)
    for name in ("base_direct", "tuned"):
        said = [row["completion"] if name == "tuned" else "yes" for row in rows]
        asked = asking.prepare(questions, SYSTEMS[name])
        generated = [Generated(text, 60, True, (112, 112)) for text in said]
        evaluation.completions.add({one.key: text for one, text in zip(asked, generated, strict=True)})
    evaluation.ask(backend, {name: SYSTEMS[name] for name in ("base_direct", "tuned")}, lambda *done: None)
    return evaluation


@pytest.fixture(scope="module")
def examined(backend, evaluated):
    return examine(evaluated, backend, "made", "tuned", lambda *done: None)


def test_an_examination_is_written_beside_the_evaluation(examined, evaluated):
    folder = evaluated.folder / "faithfulness"
    assert json.loads((folder / "made.json").read_text()) == examined == read_examination(evaluated.folder, "made")
    found = list(read_rows(folder / "made.jsonl"))
    assert {row["condition"] for row in found} == {"unchanged", "correlation", *CONDITIONS}
    assert len([row for row in found if row["condition"] == "mask_predicted"]) == 8
    assert examined["conditions"]["same_boxes"]["flip_rate"]["value"] == 0
    assert examined["datasets"].keys() == {"shapes_relation"}
    assert examined["datasets"]["shapes_relation"]["effects"] == examined["effects"]
    assert examined["correlation"]["correlation"]["n"] == 8
    assert examined["settings"]["left_out"] == 0
    assert examined["settings"]["reference"] == "base_direct"


def test_what_is_known_is_not_asked_again(backend, examined, evaluated, monkeypatch):
    monkeypatch.setattr(Asking, "generate", None)
    monkeypatch.setattr(backend, "log_likelihoods", None)
    assert examine(evaluated, backend, "made", "tuned", lambda *done: None) == examined


def test_an_examination_that_was_interrupted_goes_on(backend, examined, evaluated, tmp_path):
    def interrupt(what, done, total):
        raise KeyboardInterrupt

    again = copy(evaluated)
    again.folder = tmp_path / "eval"
    with pytest.raises(KeyboardInterrupt):
        examine(again, backend, "made", "tuned", interrupt)
    first = (tmp_path / "eval" / "faithfulness" / "made.completions.jsonl").read_bytes()
    assert first.count(b"\n") >= 4 * 7
    assert examine(again, backend, "made", "tuned", lambda *done: None) == examined
    files = [folder / "faithfulness" / "made.completions.jsonl" for folder in (again.folder, evaluated.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(first)


def test_what_was_read_before_an_interruption_is_not_read_again(backend, examined, evaluated, tmp_path, monkeypatch):
    def interrupt(what, done, total):
        if what == "correlation":
            raise KeyboardInterrupt

    again = copy(evaluated)
    again.folder = tmp_path / "eval"
    with pytest.raises(KeyboardInterrupt):
        examine(again, backend, "made", "tuned", interrupt)
    monkeypatch.setattr(backend, "log_likelihoods", None)
    assert examine(again, backend, "made", "tuned", lambda *done: None) == examined


@pytest.fixture
def narrow(backend, monkeypatch):
    """How many pairs the model is shown at a time, in a memory that no more than the set number of them fit into."""
    shown, read = [], backend.log_likelihoods

    def hold(most):
        def narrowly(*asked, batch_size, **options):
            shown.append(batch_size)
            if batch_size > most:
                raise MemoryError
            return read(*asked, batch_size=batch_size, **options)

        monkeypatch.setattr(backend, "log_likelihoods", narrowly)
        return shown

    return hold


def test_pairs_that_do_not_fit_into_memory_are_read_in_smaller_parts(backend, evaluated, narrow):
    shown = narrow(2)
    found = examine(evaluated, backend, "narrow", "tuned", lambda *done: None, most=2)
    assert shown == [4, 2]  # the batch of the evaluation, and half of it
    assert found["correlation"]["correlation"]["n"] == 2


def test_where_not_even_one_pair_fits_the_other_numbers_are_kept(backend, evaluated, narrow):
    assert narrow(0) == []
    found = examine(evaluated, backend, "too-narrow", "tuned", lambda *done: None, most=2)
    assert "not even one question at a time" in found["correlation"]["obstacle"]
    assert found["conditions"]["blank"]["n"] == 2


def test_fewer_questions_may_be_asked_and_it_says_so(backend, evaluated):
    few = examine(evaluated, backend, "few", "tuned", lambda *done: None, most=2)
    assert (few["questions"], few["settings"]["left_out"]) == (2, 6)
    assert "6 more were not asked" in sentences(few)[0]


def test_a_model_that_cannot_read_its_own_boxes_says_why(backend, evaluated, monkeypatch):
    monkeypatch.setattr(backend, "vlm", None)
    found = examine(evaluated, backend, "unread", "tuned", lambda *done: None, most=2)
    assert "cannot score texts" in found["correlation"]["obstacle"]
    assert any(said.startswith("No reasoning correlation: tiny cannot") for said in sentences(found))


def test_the_table_fits_a_terminal_and_shows_no_markup_of_others(examined):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table({**examined, "benchmark": "[red]made\x1b[2J"}))
    text = console.export_text()
    assert "[red]made: does the answer of tuned depend on its boxes?" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    for label in LABELS.values():
        assert label in text
    assert "…" in text


def test_the_report_shows_it_only_beside_the_same_model(examined, evaluated, tmp_path):
    folder = tmp_path / "eval"
    shutil.copytree(evaluated.folder, folder)
    moved = copy(evaluated)
    moved.folder = folder
    moved.conclude("made", ["base_direct", "tuned"])
    assert report_on(folder / "made.json")["faithfulness"]["lines"][0].label == "nothing changed"
    beside = folder / "faithfulness" / "made.json"
    beside.write_text(json.dumps({**examined, "settings": {**examined["settings"], "adapter": "another"}}))
    assert report_on(folder / "made.json")["faithfulness"] is None
    beside.unlink()
    assert report_on(folder / "made.json")["faithfulness"] is None


def test_lines_are_divided_by_dataset_where_there_is_a_control(examined):
    part = {**examined, "taken_away": {"wrong_boxes": {"value": 0.5, "low": 0.25, "high": 1.0, "n": 8}}}
    two = {**examined, "datasets": {"one": part, "two": examined}}
    labels = [(line.label, line.part) for line in lines(two)]
    after = [
        labels[labels.index((LABELS[name], False)) + 1][0] for name in LABELS if (LABELS[name], False) in labels[:-1]
    ]
    assert [name for name, label in zip(LABELS, after, strict=False) if label == "one"] == [
        "mask_predicted",
        "wrong_boxes",
        "swapped_boxes",
    ]
    said = sentences({**two, "datasets": {"one": part, "two": {**examined, "taken_away": {}}}})
    assert said[1] == (
        "one: wrong boxes take away 50.0 % (25.0 … 100.0) of what the chain gains over the base asked directly."
    )
    assert not any(line.part for line in lines(examined))


@pytest.fixture
def run(tmp_path):
    """A finished run of a model that writes no boxes."""
    model = save_untrained(tmp_path / "untrained")
    settings = [f"model={model}", "max_completion_tokens=4", "eval_questions=4"]
    run = Run.create(tmp_path / "run", load_recipe("tiny", settings))
    untrained = open_backend(run.recipe)
    untrained.attach_lora(run.recipe)
    save_adapter(run, untrained)
    run.finish("done")
    run.close()
    return run.folder


def test_the_command_line_asks_prints_and_writes_it(run):
    done = CliRunner().invoke(app, ["eval", str(run), "--faithfulness", "--faithfulness-questions", "2"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "shapes: does the answer of tuned depend on its boxes?" in said
    assert "Of 4 questions, 4 were answered without a box and stay out." in said
    assert (run / "eval" / "faithfulness" / "shapes.json").is_file()
    assert "Does the answer depend on the boxes?" in (run / "report.html").read_text()
    done = CliRunner().invoke(app, ["eval", str(run), "--faithfulness", "--json"])
    result = json.loads(done.stdout)
    assert result["faithfulness"]["without_boxes"] == result["n"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--faithfulness-questions", "2"], "add --faithfulness"),
        (["--faithfulness-judge", "gpt-4o"], "add --faithfulness"),
        (["--faithfulness", "--faithfulness-judge", "rules"], "rules sees no pictures"),
        (["--faithfulness", "--faithfulness-judge", "none"], "none sees no pictures"),
    ],
)
def test_what_does_not_go_with_faithfulness_is_refused(run, options, said):
    with pytest.raises(UsageError, match=said):
        CliRunner().invoke(app, ["eval", str(run), *options], catch_exceptions=False)


@pytest.fixture
def spoken(run):
    """(the run, its questions by the name of a thing): as if its model had written a chain about that thing."""
    recipe = finished(run)
    evaluation = begin(run, recipe, Wish(faithfulness=True))[0].evaluation
    backend = open_backend(recipe, run / "adapter")
    asked = Asking(backend, evaluation.decoding, 32).prepare(evaluation.questions, SYSTEMS["tuned"])
    things = dict(zip(("cup", "hat", "key", "pen"), evaluation.questions, strict=True))
    chains = [f"<think> The {name} is at {corners(one)}. </think><answer> yes" for name, one in things.items()]
    said = [Generated(text, 30, True, one.size) for text, one in zip(chains, things.values(), strict=True)]
    evaluation.completions.add({one.key: generated for one, generated in zip(asked, said, strict=True)})
    return run, things


def corners(question):
    return [int(number) for number in question.boxes[0]] if question.boxes else [5, 5, 40, 40]


def test_a_judge_that_sees_reads_in_the_place_of_the_model(spoken, monkeypatch, tmp_path):
    run, things = spoken
    marked = {name: pixels(as_sent(draw(one.load_images()[0], [Box(*corners(one))]))) for name, one in things.items()}

    def look(item):
        """Right about the chain of these pictures, and about any other always for the first."""
        own = next(mark for name, mark in marked.items() if name in item.text)
        away = [np.abs(own - pixels(picture)).mean() for picture in item[:2]]
        return choice("A" if min(away) > 1 or away[0] < away[1] else "B")

    with served(look) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        command = ["eval", str(run), "--faithfulness", "--faithfulness-judge", "a-judge"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert len(server.asked) == 16
        assert all("[…, …, …, …]" in item.text and "<answer>" not in item.text for item in server.asked)
        assert CliRunner().invoke(app, command).exit_code == 0
        assert len(server.asked) == 16
    found = read_examination(run / "eval", "shapes")["correlation"]
    assert [found[name]["value"] for name in ("correlation", "other_text")] == [1.0, 0.5]
    assert (found["unanswered"], found["ties"]) == (0, 0)
    assert (found["reader"]["judge"], found["reader"]["cached"]) == ("a-judge", 16)
    for text in (done.stdout, (run / "report.html").read_text()):
        assert "Reasoning correlation, with a-judge as the reader: 1.00" in " ".join(text.split())


def pixels(file):
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image, dtype=float)


def test_a_judge_that_sees_nothing_is_refused_before_the_model_is_asked(run, monkeypatch, tmp_path):
    with served() as server:
        server.say_to_canary = lambda item: choice("B")
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        command = ["eval", str(run), "--faithfulness", "--faithfulness-judge", "a-judge"]
        with pytest.raises(JudgeError, match="It may not see pictures at all"):
            CliRunner().invoke(app, command, catch_exceptions=False)
    assert not list((run / "eval").glob("*.completions*"))


def test_it_is_said_who_read_and_how_often_no_picture_was_named(examined):
    assert examined["correlation"]["reader"] is None
    assert any("with the model as its own reader" in said for said in sentences(examined))
    read = {**examined["correlation"], "reader": {"judge": "gpt-4o"}, "unanswered": 3}
    said = sentences({**examined, "correlation": read})
    assert any("with gpt-4o as the reader" in one for one in said)
    assert said[-1] == "3 of 32 readings named no picture, which is no preference."
