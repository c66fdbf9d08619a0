import json
import math
import random
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_lite.answer import parse
from grit_lite.errors import Diverged, RecipeError
from grit_lite.rewards import (
    PAD_ID,
    PRESETS,
    build_scorer,
    load_plugin,
    loose_score,
    preset_terms,
    score,
    valid_boxes,
    verdict,
)
from grit_lite.triplets import Triplet

VECTORS = json.loads((Path(__file__).parent / "data" / "reward_vectors.json").read_text())
calm = settings(deadline=None)  # another job on the machine may make one example slow

CODE = {
    "answer_judge": "gpt_binarised",
    "answer_bleu": "bleu",
    "answer_tag": "answer_format",
    "repetition": "repetition",
    "boxes_and_count": "box_and_count",
    "think_tags": "think_format",
    "total": "total_code",
}
PAPER = {
    "tags": "s_st",
    "boxes": "s_bf",
    "count": "r_count",
    "answer_judge": "s_gpt",
    "answer_bleu": "bleu01",
    "total": "total",
}


class Replies:
    """A judge that reads its replies from a list; the last one repeats."""

    def __init__(self, *replies):
        self.replies = replies
        self.asked = []

    def __call__(self, question, gold, predicted):
        self.asked.append((question, gold, predicted))
        return self.replies[min(len(self.asked), len(self.replies)) - 1]


def completion(chain="<think> at [10, 20, 60, 80] </think><rethink> so </rethink>", answer="yes"):
    return f"{chain}<answer> {answer}"


def lite(text, *, answer="yes", dataset="vsr", image_size=(100, 100), judge=None):
    return score(text, question="q", answer=answer, dataset=dataset, image_size=image_size, judge=judge)


def code(text, *, answer="yes", dataset="vsr", ids=None, judge=None):
    judge = judge or Replies("score: 1")
    return score(
        text, question="q", answer=answer, dataset=dataset, preset="grit-code", completion_ids=ids, judge=judge
    )


def paper(text, *, answer="yes", dataset="vsr", judge=None):
    return score(
        text, question="q", answer=answer, dataset=dataset, preset="grit-paper", judge=judge or Replies("score: 1")
    )


# the reference's own numbers


@pytest.mark.parametrize("vector", VECTORS["single"], ids=lambda vector: vector["id"])
def test_grit_code_pays_what_the_released_code_pays(vector):
    judge = Replies(*vector["judge_replies"])
    paid = score(
        vector["completion"],
        question=vector["question"],
        answer=vector["gt_answer"],
        dataset=vector["dataset"],
        preset="grit-code",
        completion_ids=vector["completion_ids"],
        judge=judge,
    )
    assert paid == pytest.approx({ours: vector["code"][theirs] for ours, theirs in CODE.items()}, abs=1e-4)
    assert len(judge.asked) == vector["code"]["judge_calls"]


@pytest.mark.parametrize("vector", VECTORS["single"], ids=lambda vector: vector["id"])
def test_grit_paper_pays_what_the_paper_says(vector):
    paid = score(
        vector["completion"],
        question=vector["question"],
        answer=vector["gt_answer"],
        dataset=vector["dataset"],
        preset="grit-paper",
        judge=Replies(f"{{score: {vector['paper_reading']['s_gpt']}}}"),
    )
    assert paid == pytest.approx({ours: vector["paper_reading"][theirs] for ours, theirs in PAPER.items()}, abs=1e-4)


@pytest.mark.parametrize("vector", VECTORS["judge_parser"], ids=lambda vector: vector["reply"])
def test_a_judges_reply_is_read_as_the_released_code_reads_it(vector):
    assert (loose_score(vector["reply"]) or 0.0) == pytest.approx(vector["raw"])
    judge = Replies(vector["reply"])
    assert code("<answer> yes", judge=judge)["answer_judge"] == vector["binarised"]
    assert len(judge.asked) == vector["calls"]


# grit-code, where the sample vectors are silent


def test_five_characters_behind_the_last_score_are_read():
    assert loose_score("score 1234567") == 1234
    assert loose_score("  0.5") == 0.5
    assert loose_score("score 1.2.3") is None


def test_the_batch_bug_is_not_reproduced():
    # B02: behind a vsr row the reference pays this counting row 0.5; by itself it is worth 1.5
    row = VECTORS["batch"][1]["rows"][1]
    assert code(row["completion"], answer="3", dataset="tallyqa")["boxes_and_count"] == 1.5


def test_a_gold_count_that_is_no_integer_costs_the_bonus_and_nothing_else():
    text = "<think> [1, 2, 3, 4] </think> <rethink> x </rethink> <answer> many"
    assert code(text, answer="many", dataset="tallyqa")["boxes_and_count"] == 0.5
    assert code(text, answer="1.0", dataset="tallyqa")["boxes_and_count"] == 0.5
    assert code(text, answer=" 1 ", dataset="tallyqa")["boxes_and_count"] == 1.5


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[10.5, 20.5, 30.5, 40.5]", 0),  # no run of four integers with commas between them
        ("[0, 1, 2, 3.5]", 1),  # the tail of a float is left over
        ("[0.1, 2, 3, 4, 5]", 1),
        ("(10,20),(30,40)", 0),
        ("380, 209, 453, 293", 1),
        ("1,2,3,4,5,6,7", 1),
        ("-1, -2, -3, -4", 0),
        ("[-1, 2, 3, 4]", 1),
        ("[1, 2, 3, 4px]", 0),
        ("[1,\t2,\n3, 4]", 1),
        ("x1, 2, 3, 4", 0),
    ],
)
def test_any_four_integers_are_a_box_to_the_released_code(text, boxes):
    paid = code(f"{text} <rethink>", dataset="tallyqa", answer="7")
    assert paid["boxes_and_count"] == (0.5 if boxes else 0.0)
    assert code(f"{text} <rethink>", dataset="tallyqa", answer=str(boxes))["boxes_and_count"] == 1.0 + 0.5 * bool(boxes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think> a b </think> <rethink> c </rethink>", 0.5),
        ("<think> ab </think> <rethink> c </rethink>", 0.4),  # one piece
        ("<think>a</think> <rethink> c </rethink>", 0.4),  # one character
        ("<think>!</think> <rethink> c </rethink>", 0.4),  # two pieces, one character
        ("<think> a b </think> <rethink> c <think> </rethink>", 0.2),  # nothing but </rethink> behind the last <think>
        ("<think>a\nb</think> <rethink> c </rethink>", 0.4),  # a newline does not part pieces
        ("<think> a  b </think> <rethink></rethink>", 0.5),
        ("<think> a b </think> <think>c</think> <rethink> c </rethink>", 0.4),  # the last body counts
        ("<think> a b <rethink> c </rethink>", 0.3),
        ("</think><think> a b <rethink> c </rethink>", 0.3),
        ("<rethink> c </rethink>", 0.2),
        ("<rethink> <think> a b </think> c </rethink>", 0.3),
        ("<Think> a b </Think>", 0.0),
        ("", 0.0),
    ],
)
def test_think_tags_are_scanned_one_behind_the_other(text, value):
    assert code(text)["think_tags"] == pytest.approx(value)


@pytest.mark.parametrize(("times", "value"), [(0, 0.0), (1, 0.5), (2, 0.25), (9, 0.25)])
def test_the_answer_tag_is_worth_most_if_it_stands_once(times, value):
    assert code("<answer>" * times)["answer_tag"] == value


WORDS = [*"abcdefghijklmnopqr"]


def test_repetition_without_token_ids_counts_words_only():
    # 16 words, one block twice: 1 of the 16 - 8 comparisons
    assert code(" ".join(WORDS[:8] * 2))["repetition"] == pytest.approx(0.5 * (1 - 1 / 8))


def test_ids_after_the_first_pad_id_do_not_repeat():
    # 16 ids before the pad id, all different: 1 comparison, none equal
    ids = [*range(16), PAD_ID, *[7] * 40]
    assert code(" ".join(WORDS), ids=ids)["repetition"] == 0.5
    assert code(" ".join(WORDS), ids=[7] * 40)["repetition"] == 0.0  # 25 of 25
    assert code("a " * 40, ids=[*[7] * 15, PAD_ID, PAD_ID])["repetition"] == 0.5  # 15 ids are too few


def test_a_short_completion_cannot_repeat():
    assert code("")["repetition"] == 0.5
    assert code("a a a a a a a", ids=[7] * 40)["repetition"] == 0.5  # 7 words
    assert code("a " * 40, ids=[7] * 15)["repetition"] == 0.5
    assert code("a b c d e f g h", ids=[*range(20)])["repetition"] == 0.5  # 8 words: nothing to compare


def test_bleu_counts_what_stands_behind_the_answer():
    # "yes it is" against "yes": precision 1/3, no brevity penalty
    assert code("<answer> Yes, it is.")["answer_bleu"] == pytest.approx(0.1 / 3)
    # "red" against "a red kite": precision 1, brevity penalty exp(1 - 3/1)
    assert code("<answer> red", answer="A red, kite")["answer_bleu"] == pytest.approx(0.1 * math.exp(-2))
    assert code("<answer> naïve", answer="na ve")["answer_bleu"] == pytest.approx(0.1)  # ASCII only
    assert code("<answer>")["answer_bleu"] == code("yes")["answer_bleu"] == 0.0
    assert code("<answer> no")["answer_bleu"] == 0.0
    assert code("<answer> yes", answer="?!")["answer_bleu"] == 0.0


def test_bleu_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code("<answer> yes and no", answer="yes")
        code("<answer> kite", answer="yes")


def test_ovdeval_rows_are_not_judged():
    judge = Replies("score: 1")
    assert code("<answer> yes", dataset="ovd_position", judge=judge)["answer_judge"] == 0.0
    assert judge.asked == []


def test_the_judge_sees_the_answer_and_not_its_tags():
    judge = Replies("score: 1")
    code("<think> a </think><answer> yes </answer> so", judge=judge)
    assert judge.asked == [("q", "yes", "yes")]


# grit-paper


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><rethink>b</rethink>", 1.0),
        ("<think>a</think>", 0.5),
        ("<rethink>b</rethink>", 0.5),
        ("<rethink>b</rethink><think>a</think>", 0.5),
        ("</think><think></rethink><rethink>", 0.0),
        ("<think>a<rethink>b</rethink>", 0.5),
        ("", 0.0),
    ],
)
def test_a_pair_is_worth_a_half_to_the_paper_if_it_is_in_its_place(text, value):
    assert paper(text)["tags"] == value


def test_the_paper_counts_boxes_in_the_whole_chain_but_not_in_the_answer():
    assert paper("<rethink> [1, 2, 3, 4] </rethink> <answer> yes")["boxes"] == 0.5
    assert paper("<think> x </think> <answer> [1, 2, 3, 4]")["boxes"] == 0.0


def test_the_paper_pays_a_half_for_the_count_where_the_code_pays_one():
    text = "<think> [1, 2, 3, 4] [1, 2, 3, 4] </think><rethink>x</rethink><answer>2"
    assert paper(text, answer="2", dataset="tallyqa")["count"] == 0.5
    assert paper(text, answer="2", dataset="vsr")["count"] == 0.0
    assert paper(text, answer="two", dataset="tallyqa")["count"] == 0.0


# the judge


def test_a_preset_with_a_judge_and_no_judge_gives_none_for_that_term_and_the_total():
    for preset in ("grit-paper", "grit-code"):
        for text in ("<answer> yes", "nothing"):
            paid = score(text, question="q", answer="yes", preset=preset)
            assert paid["answer_judge"] is None
            assert paid["total"] is None
            assert paid["answer_bleu"] is not None


def test_an_unreadable_judge_abstains_in_grit_paper_and_grit_lite_but_not_in_grit_code():
    for preset, expected, calls in (("grit-paper", None, 3), ("grit-lite", None, 3), ("grit-code", 0.0, 3)):
        judge = Replies("I do not know.")
        paid = score("<answer> kite", question="q", answer="dog", preset=preset, judge=judge)
        assert paid.get("answer_judge", paid.get("answer")) == expected
        assert (paid["total"] is None) == (expected is None)
        assert len(judge.asked) == calls


@pytest.mark.parametrize("preset", PRESETS)
def test_a_judge_that_abstains_is_asked_once_and_leaves_term_and_total_open(preset):
    judge = Replies(None, "score: 1")
    paid = score("<answer> kite", question="q", answer="dog", preset=preset, judge=judge)
    assert paid.get("answer_judge", paid.get("answer")) is None
    assert paid["total"] is None
    assert len(judge.asked) == 1


def test_the_judge_is_asked_again_until_it_can_be_read():
    judge = Replies("hm", "", "score: 1", "score: 0")
    assert paper("<answer> kite", judge=judge)["answer_judge"] == 1.0
    assert len(judge.asked) == 3


def test_grit_lite_asks_the_judge_only_where_the_rules_say_no():
    judge = Replies('{"score": 1}')
    assert lite("<answer> yes", judge=judge)["answer"] == 1.0
    assert lite("no answer at all", judge=judge)["answer"] == 0.0
    assert judge.asked == []
    assert lite("<answer> a large bird", answer="a big bird", judge=judge)["answer"] == 1.0
    assert judge.asked == [("q", "a big bird", "a large bird")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"score": 1}', 1.0),
        ("{score: 0}", 0.0),
        ('{"reason": "a score of 0 would be wrong", "score": 1}', 1.0),
        ("Score: 0.95", 1.0),
        ("The score is: 0.95", 1.0),
        ("score = 0.4", 0.0),
        ("1", 1.0),
        ("0.", 0.0),
        ("Score: 0 (expected 12, model said 10)", 0.0),
        ("{score: 1} because the standard answer has a score of 0.", None),  # an object and more is cut or chatty
        ("Score: 10/10", None),
        ("score: 1/1", None),
        ("score: 1 out of 10", None),
        ("score: 100%", None),
        ('{"score": -1}', None),
        ("score: -1", None),
        ("score: 9999", None),
        ('{"score": NaN}', None),
        ('{"score": "1"}', 1.0),
        ('{"score": true}', None),
        ("Score (0-1): 1", 1.0),
        ("Score (0-10): 1", None),
        ('{"a": ' * 5000, None),
        ("right!", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_only_where_it_is_plain(reply, expected):
    assert verdict(reply) == expected


# grit-lite


def test_an_honest_right_answer_earns_every_term():
    assert lite(completion()) == {"tags": 1.0, "boxes": 0.5, "count": 0.0, "answer": 1.0, "total": 2.5}


def test_an_honest_right_count_earns_every_term():
    text = completion("<think> [1, 2, 30, 40] [50, 2, 80, 40] </think><rethink> two </rethink>", "two")
    assert lite(text, answer="2", dataset="shapes_count")["total"] == 3.0


@pytest.mark.parametrize(
    ("box", "value"),
    [
        ("[10, 20, 60, 80]", 0.5),
        ("[10.5, 20, 60, 100]", 0.5),
        ("[0, 0, 100, 94]", 0.5),  # 94 % of the image
        ("[0, 0, 100, 95]", 0.0),  # the whole image
        ("[0, 0, 100, 100]", 0.0),
        ("[60, 20, 10, 80]", 0.0),  # out of order
        ("[10, 20, 10, 80]", 0.0),  # without width
        ("[0, 0, 0, 0]", 0.0),
        ("[10, 20, 60, 101]", 0.0),  # outside
        ("[10, 20, 101, 80]", 0.0),
        ("[-1, 20, 60, 80]", 0.0),
        ("[10, 20, 60, 80, 90]", 0.0),
        ("10, 20, 60, 80", 0.0),
        ("(1, 2, 3, 4)", 0.0),
        ("2024-05-17", 0.0),
    ],
)
def test_only_a_box_that_can_point_is_paid(box, value):
    assert lite(completion(f"<think> at {box} </think><rethink> so </rethink>"))["boxes"] == value


def test_without_an_image_size_a_box_must_only_be_ordered_and_not_negative():
    text = completion("<think> [0, 0, 5000, 5000] </think>")
    assert lite(text, image_size=None)["boxes"] == 0.5
    assert lite(completion("<think> [-1, 0, 50, 50] </think>"), image_size=None)["boxes"] == 0.0


def test_a_box_in_the_answer_is_not_paid():
    assert lite("<think> a </think><rethink> b </rethink><answer> [10, 20, 60, 80]")["boxes"] == 0.0


def test_a_copied_box_is_counted_once():
    same, shifted, other = (10, 20, 60, 80), (10, 20, 61, 80), (10, 20, 60, 50)
    # 50 · 60 / (51 · 60) = 0.98 is a copy; 30 / 60 = 0.5 is not
    text = f"<think> {list(same)} {list(same)} {list(shifted)} {list(other)} </think><answer> 2"
    assert valid_boxes(parse(text), (100, 100)) == [same, other]
    assert lite(text, answer="2", dataset="tallyqa")["count"] == 0.5
    assert lite(text, answer="4", dataset="tallyqa")["count"] == 0.0


def test_a_count_of_nothing_is_not_paid():
    assert lite("<think> an empty shelf </think><answer> 0", answer="0", dataset="tallyqa")["count"] == 0.0


def test_the_count_is_for_counting_rows_alone():
    text = completion(answer="1")
    assert lite(text, answer="1", dataset="tallyqa")["count"] == 0.5
    assert lite(text, answer="one", dataset="shapes_count")["count"] == 0.5
    assert lite(text, answer="1", dataset="gqa")["count"] == 0.0
    assert lite(text, answer="many", dataset="tallyqa")["count"] == 0.0


def test_tags_are_paid_by_the_pair():
    assert lite("<think>a</think><rethink>b</rethink>")["tags"] == 1.0
    assert lite("<think>a</think>")["tags"] == 0.5
    assert lite("<rethink>b</rethink>")["tags"] == 0.0
    assert lite("<think>a</think><rethink>b</rethink><answer>c</answer><think>a</think>")["tags"] == 0.0


def test_the_last_answer_counts():
    assert lite("<answer> no </answer><answer> yes")["answer"] == 1.0
    assert lite("<answer> yes </answer><answer> no")["answer"] == 0.0


def test_a_gold_answer_may_be_a_number():
    assert score("<answer> three", question="q", answer=3)["answer"] == 1.0


# presets


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"'grit_lite'.*Did you mean 'grit-lite'"):
        score("x", question="q", answer="a", preset="grit_lite")
    with pytest.raises(RecipeError, match="grit-paper, grit-code, grit-lite"):
        preset_terms("zzz")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_total_is_the_sum_of_the_terms(preset):
    paid = score(completion(), question="q", answer="yes", preset=preset, judge=Replies("score: 1"))
    total = paid.pop("total")
    assert total == pytest.approx(sum(paid.values()))
    assert list(paid) == list(PRESETS[preset])


fragments = st.sampled_from(
    [
        *("<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>"),
        *(" [10, 20, 60, 80] ", "[0, 0, 100, 100]", " (1, 2, 3, 4) ", "1, 2, 3, 4", "bbox_2d: 5, 5, 50, 50"),
        *(" yes", " no", " 2", " the kite is red", "\n", "\ud800", "go go go go go go go go "),
    ]
)
texts = st.one_of(st.lists(fragments, max_size=12).map("".join), st.text(max_size=60))
rows = st.fixed_dictionaries(
    {
        "completion": texts,
        "question": st.just("q"),
        "answer": st.sampled_from(["yes", "no", "2", "0", "many", "a red kite"]),
        "dataset": st.sampled_from(["vsr", "tallyqa", "shapes_count", "ovd_position", ""]),
        "completion_ids": st.one_of(st.none(), st.lists(st.sampled_from([1, 2, PAD_ID]), max_size=60)),
        "image_size": st.sampled_from([None, (100, 100), (1000, 1000)]),
    }
)
replies = st.sampled_from(["score: 1", "score: 0", "0.4", "10/10", "hm", ""])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_term_stays_within_its_documented_range(preset):
    @calm
    @given(rows, replies)
    def check(row, reply):
        paid = score(**row, preset=preset, judge=Replies(reply))
        for name, term in PRESETS[preset].items():
            value = paid[name]
            assert value is None or (math.isfinite(value) and term.low <= value <= term.high)
        assert paid["total"] is None or math.isfinite(paid["total"])

    check()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_rows_reward_does_not_depend_on_its_neighbours(preset):
    @settings(deadline=None, max_examples=30)
    @given(st.lists(rows, min_size=2, max_size=6), st.randoms())
    def check(batch, shuffler):
        def pay(row):
            return score(**row, preset=preset, judge=Replies("score: 1"))

        alone = [pay(row) for row in batch]
        order = list(range(len(batch)))
        shuffler.shuffle(order)
        assert {index: pay(batch[index]) for index in order} == dict(enumerate(alone))

    check()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 60_000 + "</think>",
        "</think>" + "<think>" * 14_000,
        "1, " * 100_000,
        "[0, 0, 9, 9]" * 9000,
        "go " * 100_000,
    ],
    ids=["open", "closed first", "numbers", "boxes", "words"],
)
def test_a_hostile_completion_is_scored_in_a_moment(preset, text):
    started = time.process_time()
    score(text, question="q", answer="2", dataset="tallyqa", preset=preset, judge=Replies("score: 1"))
    assert time.process_time() - started < 4.0  # mostly nltk's first import; quadratic time takes minutes


# a recipe's rewards


def triplet(answer="yes", dataset="vsr"):
    return Triplet("t7", "q", answer, Path("none.png"), (100, 100), (), dataset, "train")


def plugin(tmp_path, body, name="pays"):
    path = tmp_path / "my_rewards.py"
    path.write_text(f"def {name}(answer, triplet):\n    {body}\n")
    return f"{path}:{name}"


def test_a_preset_name_builds_its_scorer():
    scorer = build_scorer("grit-lite")
    paid = scorer(completion(), triplet(), image_size=(100, 100))
    assert paid == lite(completion())


def test_the_default_scorer_passes_token_ids_and_the_judge_on():
    scorer = build_scorer("grit-code", judge=Replies("score: 1"))
    assert scorer("<answer> " + "go " * 40, triplet(), completion_ids=[7] * 40)["repetition"] < 0.1


def test_terms_and_plugins_are_weighed(tmp_path):
    spec = plugin(tmp_path, "return len(answer.boxes) + (triplet.answer == 'yes')")
    paid = build_scorer({"answer": 2, "grit-code/answer_tag": 0.5, spec: 0.1})(completion(), triplet())
    # 2 · 1 + 0.5 · 0.5 + 0.1 · (1 + 1)
    assert paid == pytest.approx({"answer": 1.0, "grit-code/answer_tag": 0.5, spec: 2.0, "total": 2.45})


def test_a_plugin_may_be_a_function_of_a_module():
    assert load_plugin("math:isfinite") is math.isfinite


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("return float('nan')", Diverged, r"pays', on triplet 't7', gave nan"),
        ("return float('inf')", Diverged, r"gave inf"),
        ("return 'much'", RecipeError, r"pays', on triplet 't7', gave 'much', a str"),
        ("return None", RecipeError, r"gave None, a NoneType"),
        ("return [1.0]", RecipeError, r"a list"),
        ("return 1j", RecipeError, r"a complex"),
        ("return 1 / 0", RecipeError, r"pays', on triplet 't7', raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_faulty_plugin_stops_the_run_naming_itself_and_the_triplet(tmp_path, body, error, message):
    scorer = build_scorer({plugin(tmp_path, body): 1.0})
    with pytest.raises(error, match=message):
        scorer(completion(), triplet())


def test_a_plugin_that_cannot_be_loaded_is_a_recipe_error(tmp_path):
    with pytest.raises(RecipeError, match=r"missing\.py"):
        load_plugin(str(tmp_path / "missing.py:pays"))
    with pytest.raises(RecipeError, match="no_such_package"):
        load_plugin("no_such_package.rewards:pays")
    with pytest.raises(RecipeError, match="other"):
        load_plugin(plugin(tmp_path, "return 1").replace(":pays", ":other"))
    (tmp_path / "broken.py").write_text("x = (\n")
    with pytest.raises(RecipeError, match=r"broken.py:pays' could not be loaded: SyntaxError"):
        load_plugin(str(tmp_path / "broken.py:pays"))
    (tmp_path / "data.py").write_text("pays = 3\n")
    with pytest.raises(RecipeError, match="pays"):
        load_plugin(str(tmp_path / "data.py:pays"))


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("grit-lte", "Did you mean 'grit-lite'"),
        ({"anser": 1.0}, "no term 'anser'. Did you mean 'answer'"),
        ({"grit-code/tags": 1.0}, "no term 'grit-code/tags'"),
        ({"grit/tags": 1.0}, "no reward preset 'grit'"),
        ({"answer": "much"}, "weight of 'answer' is 'much'"),
        ({"answer": float("nan")}, "weight of 'answer' is nan"),
        ({"answer": True}, "weight of 'answer' is True"),
        ({}, "rewards is empty"),
        ("grit-code", "'grit-code' has the term answer_judge, which needs a judge"),
        ({"grit-paper/answer_judge": 1.0}, "needs a judge"),
    ],
)
def test_a_recipe_that_cannot_be_scored_is_refused(rewards, message):
    with pytest.raises(RecipeError, match=message):
        build_scorer(rewards)


def test_an_abstaining_judge_leaves_the_weighted_total_open():
    paid = build_scorer({"answer": 1.0, "tags": 1.0}, judge=Replies("hm"))("<answer> kite", triplet("dog"))
    assert paid == {"answer": None, "tags": 0.0, "total": None}


def test_scoring_twice_gives_the_same():
    texts = [completion(answer=random.Random(seed).choice(["yes", "no"])) for seed in range(8)]
    scorer = build_scorer("grit-lite")
    assert [scorer(text, triplet()) for text in texts] == [scorer(text, triplet()) for text in texts]
