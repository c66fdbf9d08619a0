"""What is read in the replies of judges, which are as models write them: fenced, cut off, thought over, chatty."""

import time

import pytest
from judge_server import verdict

from grit_lite.judge import MMHAL, RIGHT_OR_WRONG


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"reason": "a score of 0 would be wrong", "score": 1}', 1),
        ('{"reason": "uses </think> and ```1```", "score": 1}', 1),
        ('{\n  "reason": "no",\n  "score": 0\n}', 0),
        ('```json\n{"reason": "no", "score": 0}\n```', 0),
        ('Here it is:\n\n```json\n{\n "reason": "no",\n "score": 0\n}\n```', 0),
        ('Sure!\n{"reason": "the score is 0 only if it is red", "score": 1}', 1),
        ("{score: 0}", 0),
        ('{"score": "0"}', 0),
        ('{"score": 1.0}', 1),
        ("<think> A score of 1? No. </think>\nScore: 0", 0),
        ("A score of 1? No. </think> Score: 0", 0),  # a chat template that has opened it already
        ("<think>" + "Is the score 1? " * 2000 + "</think>\n0", 0),
        ("Score: 1", 1),
        ("0", 0),
        ("**1**", 1),
        ("SCORE 0", 0),
        ("```\nScore: 0\n```", 0),
        ("**Score:** 1", 1),
        ("The score is 1.", 1),
        ("So I give this answer a score of 1.", 1),
        ("The answer names the colour, which is right.\n\nFinal score: **1**", 1),
        ("It names the colour. Score: 1", 1),
        ("Score: 1. It names the colour.", 1),
        ("Score: 0 because it does not say the same.", 0),
        ("Score: 0 (expected 12, model said 10)", 0),
        ("Score (0-1): 1", 1),
        ("Score (0 or 1): 1", 1),
        ("**Score [0, 1]:** 1", 1),
    ],
)
def test_a_reply_that_states_one_score_is_read(text, score):
    assert RIGHT_OR_WRONG.read(text) == score


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "Score: 10/10",
        "Score: 1 / 10",
        "Score: 1/1",
        "1/1",
        "score: 100%",
        "1%",
        "score: 1 of 10",
        "score: 1 out of 10",
        "score: 1 (out of 10)",
        "score: 1 (on a scale to 10)",
        "score: 1-6",
        "score: 1 – 6",
        "score: 1 or 0",
        "Score (0-10): 1",  # of another scale
        "Score (0-1)",
        "score: 1. On reflection, score: 0",
        "Score: 1\nScore: 0",
        "Score: 1\nOn reflection, it does not say the same.",
        "The score is not 1, it is 0.",
        "The score is 1 if it says maroon.",
        "The score is 1, unless the car is red.",
        "I refuse to give the score 1.",
        "It would have the score 1.",
        "What is wrong with it:\n1.",  # a list that was cut off
        '{"score": 1, "score": 0}',
        '{"score": 0.5}',
        '{"score": 2}',
        '{"score": -1}',
        '{"score": NaN}',
        '{"score": 1e400}',
        '{"score": true}',
        '{"score": 1}{"score": 0}',
        '{"reason": "ok", "score": 1}\n{"reason": "ok", "score": 0}',
        "{score: 1} because the standard answer has a score of 0.",
        '{"reason": "the score is 1 if',
        '{\n  "reason": "The score is 1 if it says maroon, but',
        '{\n  "reason": "The car is red.\nScore: 1',
        '{ "reason": "a score of 1 would need the colour',
        '```json\n{\n "reason": "score 1 would be wrong',
        '```\n\n{ "reason": "score: 1',
        'Sure!\n{"reason": "The answer claims score: 1 but is wrong", "final": 0}',
        '{"reason": "The score is 1 only if the car is maroon, which I cannot tell.", "score": null}',
        '{"reason": "A score of 1 is not deserved.", "verdict": 0}',
        '{"reason": "A score of 1 is not deserved.", "score": "zero"}',
        '{"reason": "no", "details": {"score": 1}}',
        "<think> If it said maroon, the score is 1. But",
        "<think> If it said maroon:\nScore: 1",
        "</think> It said: <think>\nScore: 1",
        '{"a":' * 3000,
        "Score: 1" + " " * 20_000 + ".",
    ],
)
def test_a_reply_that_does_not_plainly_state_one_score_states_none(text):
    assert RIGHT_OR_WRONG.read(text) is None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        *((verdict(score), score) for score in (0, 6)),
        (verdict(3.0), 3),
        (verdict(7), None),
        (verdict(2.5), None),
        (verdict(True), None),
        ("Score: 4", 4),
        ("Score (0-6): 4", 4),
        ("Score [0-6]: 4", 4),
        ("**Score (0–6):** 5", 5),
        ("Score (from 0 to 6): 5", 5),
        ("Score (0-10): 5", None),
        ("Score (1): 4", None),
        ("score: 5 (out of 10)", None),
        ("score: 5 (max 10)", None),
        ("Score: 5 of 10", None),
        ("Score: 5 of 6", None),
        ("Score: 5 to 6", None),
    ],
)
def test_a_rating_is_a_whole_number_of_its_range(text, score):
    assert MMHAL.read(text) == score


@pytest.mark.parametrize(
    "piece", [" ", "\n", "score ", "score: 1 ", "the score is 1. ", "{", "<think>", "```", "(0-1) ", "- ", "\n1"]
)
def test_no_reply_takes_long_to_read(piece):
    started = time.process_time()
    for text in (piece * 10_000, (piece * 10_000)[:9_900]):
        RIGHT_OR_WRONG.read(text)
        RIGHT_OR_WRONG.read(f"score{text[:9_900]}x")
    assert time.process_time() - started < 0.5
