from pathlib import Path

import pytest

from grit_lite.judge import open_judge
from grit_lite.rewards import build_scorer, loose_score, verdict
from grit_lite.triplets import Triplet


def triplet(answer="4", question="How many cups?"):
    return Triplet("t7", question, answer, Path("none.png"), (100, 100), (), "vsr", "train")


def test_no_judge_is_none():
    assert open_judge("none") is None


@pytest.mark.parametrize(("predicted", "right"), [("4", 1.0), ("four", 1.0), ("5", 0.0), ("4 or 5", 0.0)])
def test_the_rules_decide_in_the_judges_place(predicted, right):
    judge = open_judge("rules")
    for preset in ("grit-paper", "grit-code"):
        scorer = build_scorer(preset, judge)
        assert scorer(f"<answer> {predicted}", triplet())["answer_judge"] == right
    said = judge("How many?", "4", predicted)
    assert verdict(said) == loose_score(said) == right
