"""One completion, read and scored as a row of an evaluation."""

from dataclasses import replace

import pytest
from PIL import Image

from grit_lite.answer import GRIT_PROMPT
from grit_lite.backends import Generated, ModelSpec
from grit_lite.boxes import Box, BoxSpace
from grit_lite.evaluate.question import Question
from grit_lite.evaluate.rows import row
from grit_lite.evaluate.runner import Asked

PIXELS, NORM = BoxSpace.RESIZED_PIXELS, BoxSpace.NORM1000
# The dog is the lower right quarter of a picture of 640 × 480, which the model sees at 504 × 364.
DOG = Question(
    id="q",
    text="Where is the dog?",
    gold="[320.00, 240.00, 640.00, 480.00]",
    images=(Image.new("RGB", (640, 480)),),
    size=(640, 480),
    scorer="box",
    boxes=(Box(320, 240, 640, 480),),
)
WRITTEN = {PIXELS: "[252, 182, 504, 364]", NORM: "[500, 500, 1000, 1000]"}  # the dog, in the model's unit
spaces = pytest.mark.parametrize("space", BoxSpace)


def scored(text: str, space: BoxSpace, style: str = "grounded", question: Question = DOG) -> dict:
    said = Generated(text, tokens=9, finished=True, resized=(504, 364))
    return row("tuned", style, Asked(question, 0, "p", None, "k"), said, ModelSpec("f", space, GRIT_PROMPT))


def chain(thought: str, answer: str) -> str:
    return f"<think> {thought} </think> <rethink> so </rethink> <answer> {answer} </answer>"


@spaces
def test_a_box_is_scored_in_pixels_of_the_original_whatever_the_model_writes(space):
    assert scored(chain("a dog", WRITTEN[space]), space)["correct"]
    assert not scored(chain("a dog", "[320, 240, 640, 480]"), space)["correct"]  # right in another unit


@spaces
def test_where_the_answer_is_words_the_box_of_the_chain_is_the_one_referred_to(space):
    assert scored(chain(f"it is at {WRITTEN[space]}", "the left dog"), space)["correct"]
    assert not scored(chain(f"it is at {WRITTEN[space]}", "[1, 2, 30, 40]"), space)["correct"]
    assert not scored(chain("it is there", "the left dog"), space)["correct"]


@spaces
def test_a_box_asked_for_directly_needs_no_tags(space):
    assert scored(f"It is at {WRITTEN[space]}.", space, "direct")["correct"]


@spaces
def test_a_box_without_an_answer_counts_leniently_only(space):
    found = scored(f"<think> [1, 2, 3, 40] </think>\n{WRITTEN[space]}", space)
    assert (found["correct"], found["correct_lenient"]) == (False, True)
    found = scored(f"<think> it is at {WRITTEN[space]} and so on </think>", space)
    assert (found["correct"], found["correct_lenient"]) == (False, False)


@spaces
def test_the_box_that_answers_points_as_well_as_those_of_the_reasoning(space):
    found = scored(chain("a dog", WRITTEN[space]), space)
    assert (found["without_box"], found["n_boxes"], found["union_iou"]) == (False, 1, pytest.approx(1.0))
    assert found["boxes"] == [pytest.approx([320, 240, 640, 480])]
    again = scored(chain(f"a dog at {WRITTEN[space]}", WRITTEN[space]), space)
    assert (again["n_boxes"], again["f1"]) == (1, 1.0)


def test_where_no_box_was_asked_for_only_those_of_the_reasoning_point():
    yes = replace(DOG, scorer="yes_no", gold="yes")
    assert scored(chain("a dog", f"yes {WRITTEN[PIXELS]}"), PIXELS, question=yes)["without_box"]


def test_a_row_has_the_overlap_of_the_released_script_beside_the_one_in_original_pixels():
    found = scored(chain(f"at {WRITTEN[PIXELS]}", "252, 182, 504, 364"), PIXELS)
    # left unscaled: shared 184 × 124, of 252 × 182 + 320 × 240 - shared
    assert found["union_iou_released"] == pytest.approx(22816 / (45864 + 76800 - 22816))
    assert found["union_iou"] == pytest.approx(1.0)
    # bare integers are boxes to the script alone, and boxes with decimals to us alone
    bare, exact = (
        scored(chain(f"at {box}", "a dog"), NORM) for box in ("500, 500, 1000, 1000", "[500.0, 500.0, 1000.0, 1000.0]")
    )
    assert (bare["union_iou_released"], bare["union_iou"]) == (1.0, 0.0)
    assert (exact["union_iou_released"], exact["union_iou"]) == (0.0, 1.0)
