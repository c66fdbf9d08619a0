"""One completion, read and scored as a row of an evaluation."""

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
    return row("tuned", style, Asked(question, 0, "p", "k"), said, ModelSpec("f", space, GRIT_PROMPT))


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
