"""What `python -m benchmarks.scoring` times is scored at all, and length beyond a limit changes nothing."""

import pytest

from benchmarks.scoring import ANSWERS, GOLDS, HOSTILE, PLACES, Row, main, ordinary, score_row
from grit_lite import answer, scorers


def test_ordinary_completions_are_of_every_kind_right_and_wrong_and_point_at_something():
    rows = ordinary(200)
    scored = [score_row(row) for row in rows]
    assert {row.scorer for row in rows} == set(GOLDS) == set(ANSWERS)
    assert {result["score"] for result in scored} == {0.0, 1.0}
    assert all(result["tags"] == 1.0 for result in scored)
    assert any(result["union_iou"] > 0 for result in scored)
    assert rows == ordinary(200)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_has_its_length_and_gets_finite_numbers(name):
    for wrap in PLACES.values():
        text = HOSTILE[name](2048)
        assert len(text) == 2048
        numbers = score_row(Row(wrap(text), "number", "3"))
        assert all(value is None or 0.0 <= value <= 1e4 for value in numbers.values())


@pytest.mark.parametrize("name", HOSTILE)
def test_what_lies_beyond_the_limits_of_length_is_never_read(name):
    text = HOSTILE[name](answer.MAX_CHARS)
    assert answer.parse(text + "<answer> yes [1, 2, 30, 40]") == answer.parse(text)
    too_long = HOSTILE[name](scorers.MAX_CHARS - 1) + "3\n"
    assert {scorers.score(scorer, too_long + "3", "3") for scorer in scorers.SCORERS if scorer != "box"} == {0.0}


def test_the_exit_code_says_whether_a_limit_was_missed(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.scoring.HOSTILE", {"blanks": HOSTILE["blanks"]})
    monkeypatch.setattr("benchmarks.scoring.SECONDS", 1e9)
    monkeypatch.setattr("benchmarks.scoring.MILLISECONDS", 1e9)
    monkeypatch.setattr("benchmarks.scoring.TIMES_AS_LONG", 1e9)
    assert main(["--completions", "5", "--repeats", "1"]) == 0
    monkeypatch.setattr("benchmarks.scoring.SECONDS", 0.0)
    assert main(["--completions", "5", "--repeats", "1"]) == 1
    assert "no" in capsys.readouterr().out
