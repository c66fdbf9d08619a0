import json
from dataclasses import asdict

import pytest

from grit_lite.attacks import ATTACKS, CASES, MANY_BOXES, SHOWN_BAD_LINES, attack_table, lenient_judge, score_file
from grit_lite.errors import DataError, RecipeError
from grit_lite.rewards import PRESETS

TABLE = attack_table()
BY_NAME = {row.name: row for row in TABLE}
ATTACK_ROWS = [row for row in TABLE if row.role == "attack"]

GOOD = "<think> kite [10, 20, 60, 80] </think><rethink> so </rethink><answer> yes"


def honest(case, quality):
    return BY_NAME[f"honest {quality} answer, {case}"]


def write(tmp_path, rows):
    path = tmp_path / "completions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def row(completion=GOOD, question="Is it above?", answer="yes", **more):
    return {"completion": completion, "question": question, "answer": answer, "image_size": [100, 100], **more}


def flags(scored):
    return {(flag.term, flag.rows) for flag in scored.flags if "every row" not in flag.reason}


# the table


@pytest.mark.parametrize("attack", ATTACK_ROWS, ids=lambda attack: attack.name)
def test_no_attack_earns_more_than_an_honest_wrong_answer_under_grit_lite(attack):
    assert attack.totals["grit-lite"] <= honest(attack.case, "wrong").totals["grit-lite"]
    assert "grit-lite" not in attack.earns_more


@pytest.mark.parametrize("attack", ATTACK_ROWS, ids=lambda attack: attack.name)
def test_no_term_of_grit_lite_pays_an_attack_more_than_an_honest_wrong_answer(attack):
    limits = honest(attack.case, "wrong").terms["grit-lite"]
    assert all(value <= limits[term] for term, value in attack.terms["grit-lite"].items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("preset", PRESETS)
def test_an_honest_right_answer_earns_most_in_every_preset(case, preset):
    best = honest(case, "right").totals[preset]
    assert all(best >= row.totals[preset] for row in TABLE if row.case == case)
    assert best > honest(case, "wrong").totals[preset]


def test_the_honest_wrong_answers_are_in_the_right_format():
    assert [honest(case, "wrong").terms["grit-lite"] for case in CASES] == [
        {"tags": 1.0, "boxes": 0.5, "count": 0.0, "answer": 0.0}
    ] * len(CASES)


def test_the_reference_pays_for_what_grit_lite_refuses():
    # tags 1 + boxes 0.5 + count 0.5 for one box written three times
    assert BY_NAME["one box, copied"].totals["grit-paper"] == 2.0
    # + box bonus 1.5, tag 0.5, repetition 0.5, think tags 0.5
    assert BY_NAME["one box, copied"].totals["grit-code"] == 3.0
    assert BY_NAME["one box, copied"].earns_more == ("grit-paper", "grit-code")
    assert BY_NAME["no box for a count of none"].earns_more == ("grit-code",)
    assert BY_NAME["says nothing"].totals["grit-code"] == 0.5
    assert BY_NAME["enumeration"].terms["grit-paper"]["boxes"] == 0.5
    assert BY_NAME["enumeration"].terms["grit-lite"]["boxes"] == 0.0


def test_every_kind_of_attack_is_in_the_table():
    names = " ".join(attack.name for attack in ATTACKS)
    asked_for = ["empty boxes", "box spam", "whole-image box", "enumeration", "date", "answer-tag spam", "prompt echo"]
    assert all(kind in names for kind in [*asked_for, "repeated text", "copied"])


def test_names_are_unique_and_rows_can_be_written_as_json():
    assert len(BY_NAME) == len(TABLE) == len(ATTACKS) + 2 * len(CASES)
    assert json.loads(json.dumps([asdict(row) for row in TABLE]))[0]["totals"]["grit-lite"] == 2.5


def test_the_stand_in_judge_is_content_with_the_gold_word_anywhere():
    assert lenient_judge("q", "3", "1, 2, 3") == "{score: 1}"
    assert lenient_judge("q", "3", "13") == "{score: 0}"


# a file


def test_a_file_is_scored_row_by_row(tmp_path):
    scored = score_file(write(tmp_path, [row(), "", row("no tags at all")]))
    assert [paid["line"] for paid in scored.rows] == [1, 3]
    assert scored.rows[0] == {"line": 1, "tags": 1.0, "boxes": 0.5, "count": 0.0, "answer": 1.0, "total": 2.5}
    assert scored.means == {"tags": 0.5, "boxes": 0.25, "count": 0.0, "answer": 0.5, "total": 1.25}


def test_the_samples_of_a_run_can_be_scored_as_they_are(tmp_path):
    sample = {
        "step": 1,
        "completion": "<answer> 3",
        "question": "q",
        "gold": "3",
        "dataset": "shapes_count",
        "scores": {},
    }
    assert score_file(write(tmp_path, [sample])).rows[0]["answer"] == 1.0


def test_a_gold_answer_may_be_a_number_and_a_byte_order_mark_is_fine(tmp_path):
    path = tmp_path / "completions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row("<answer> three", answer=3)).encode() + b"\r\n")
    assert score_file(path).means["answer"] == 1.0


def test_token_ids_reach_the_repetition_term(tmp_path):
    rows = [row("go " * 40, completion_ids=[7] * 40)]
    # 25 of 25 token grams and 25 of 32 word grams repeat
    assert score_file(write(tmp_path, rows), "grit-code").rows[0]["repetition"] == pytest.approx(0.5 * (0 - 25 / 32))


def test_without_a_judge_judged_terms_have_no_mean(tmp_path):
    scored = score_file(write(tmp_path, [row(), row()]), "grit-paper")
    assert scored.means["answer_judge"] is None
    assert scored.means["total"] is None
    assert scored.means["tags"] == 1.0


def test_a_judge_is_asked_for_every_row(tmp_path):
    scored = score_file(write(tmp_path, [row(), row(answer="no")]), "grit-paper", judge=lenient_judge)
    assert [paid["answer_judge"] for paid in scored.rows] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ('{"completion": "x", "question": "q"}', '"answer" is missing'),
        ('{"completion": 3, "question": "q", "answer": "a"}', '"completion" Input should be a valid string'),
        ('{"completion": "x", "question": "q", "answer": NaN}', '"answer"'),
        ('{"completion": "x", "question": "q", "answer": "a", "image_size": [0, 5]}', '"image_size"'),
        ('{"completion": "x", "question": "q", "answer": "a", "image_size": [5]}', '"image_size"'),
        ('{"completion": "x", "question": "q", "answer": ' + "9" * 5000 + "}", "number out of range"),
        ("[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_bad_line_is_reported_with_its_place(tmp_path, line, reason):
    with pytest.raises(DataError) as caught:
        score_file(write(tmp_path, [row(), line]))
    assert str(caught.value).startswith(f"{tmp_path / 'completions.jsonl'}:2: ")
    assert reason in str(caught.value)


def test_bytes_that_are_not_utf_8_are_reported_with_their_line(tmp_path):
    path = tmp_path / "completions.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b'\n{"completion": "\xff"}')
    with pytest.raises(DataError, match=r"completions\.jsonl:2: "):
        score_file(path)


def test_all_bad_lines_are_reported_up_to_a_limit(tmp_path):
    with pytest.raises(DataError) as caught:
        score_file(write(tmp_path, ["{}"] * (SHOWN_BAD_LINES + 7)))
    lines = str(caught.value).splitlines()
    assert len(lines) == SHOWN_BAD_LINES + 1
    assert lines[0].endswith('"completion" is missing; "question" is missing; "answer" is missing')
    assert lines[-1] == "… and 7 more"


def test_a_file_that_is_missing_or_empty_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        score_file(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        score_file(tmp_path)
    with pytest.raises(DataError, match="holds no rows"):
        score_file(write(tmp_path, ["", " "]))


def test_an_unknown_preset_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(RecipeError, match="grit-lte"):
        score_file(tmp_path / "none.jsonl", "grit-lte")


# flags


def test_terms_paid_for_nothing_are_flagged(tmp_path):
    cheats = [
        row("<think> so 1, 2, 3, 4 </think><rethink> x </rethink><answer> no"),
        row("<think> a b </think><think> [1, 2, 30, 40] </think><rethink> x </rethink><answer> yes"),
        row(
            "<think> [1, 2, 30, 40] [1, 2, 30, 40] </think><rethink> x </rethink><answer> 2",
            answer="2",
            dataset="tallyqa",
        ),
        row(),
    ]
    path = write(tmp_path, cheats)
    assert flags(score_file(path, "grit-paper")) == {("boxes", 1), ("tags", 1), ("count", 1)}
    found = flags(score_file(path, "grit-code", judge=lambda *_: "score: 1"))
    assert found == {("boxes_and_count", 1), ("answer_tag", 1), ("answer_judge", 1), ("think_tags", 1)}
    assert flags(score_file(path)) == set()


def test_box_spam_and_a_box_that_is_always_the_same_are_flagged(tmp_path):
    spam = " ".join(f"[{k}, 0, {k + 1}, 9]" for k in range(MANY_BOXES + 1))
    rows = [row(GOOD, question=f"q{k}") for k in range(3)] + [row(f"<think> {spam} </think>")]
    reasons = {flag.reason: flag.lines for flag in score_file(write(tmp_path, rows)).flags}
    assert reasons["paid for more than 20 boxes in one chain"] == (4,)
    assert reasons["paid for the same box [10.0, 20.0, 60.0, 80.0] in most rows, whatever is asked"] == (1, 2, 3)


def test_the_same_box_for_half_of_the_questions_is_no_habit(tmp_path):
    rows = [row(GOOD, question=f"q{k}") for k in range(2)] + [row("x"), row("y", answer="z")]
    assert flags(score_file(write(tmp_path, rows))) == set()


def test_the_same_box_for_the_same_question_is_no_habit(tmp_path):
    assert flags(score_file(write(tmp_path, [row(), row(), row("x")]))) == set()


def test_a_term_that_tells_nothing_apart_is_flagged(tmp_path):
    scored = score_file(write(tmp_path, [row(), row("<think> x </think>")]))
    assert {flag.term for flag in scored.flags} == {"count"}
    assert "every row earns 0" in scored.flags[0].reason
    assert score_file(write(tmp_path, [row("<answer> no")])).flags == ()
