import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_lite.errors import RecipeError
from grit_lite.evaluate.aggregates import AGGREGATES, GROUPS, find
from grit_lite.evaluate.statistics import Cell, share, wilson

calm = settings(deadline=None)  # another job on the machine may make one example slow


def said(answer, gold):
    return {"answer": answer, "gold": gold, "dataset": "adversarial", "cluster": "a", "correct": answer == gold}


def scored(score, pair, dataset="count", **others):
    return {"score": score, "facts": {"pair": pair}, "dataset": dataset, "cluster": "", **others}


def values(rows, group):
    return {name.removeprefix(f"{group}_"): AGGREGATES[name](rows) for name in GROUPS[group]}


# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
TABLE = [
    *[said("Yes.", "yes")] * 3,
    said("yes", "no"),
    *[said("no", "yes")] * 2,
    *[said("No, there is not", "no")] * 4,
]


def test_pope_on_a_table_computed_by_hand():
    assert values(TABLE, "pope") == pytest.approx(
        {"accuracy": 7 / 10, "precision": 3 / 4, "recall": 3 / 5, "f1": 6 / 9, "yes_ratio": 4 / 10}
    )


def test_mmhal_has_a_mean_rating_and_a_share_that_makes_something_up():
    rated = [scored(score, pair=str(place)) for place, score in enumerate([6, 3, 2, 0, None])]
    # 6 + 3 + 2 + 0 of four that were rated; 2 and 0 are below the line of 3
    assert values(rated, "mmhal") == pytest.approx({"rating": 11 / 4, "hallucination_rate": 2 / 4})
    assert values([scored(None, pair="a")], "mmhal") == {"rating": None, "hallucination_rate": None}


def test_an_answer_that_is_neither_is_wrong_and_no_yes():
    rows = [*TABLE, said("maybe", "yes"), said(None, "no")]
    assert values(rows, "pope") == pytest.approx(
        {"accuracy": 7 / 12, "precision": 3 / 4, "recall": 3 / 6, "f1": 6 / 10, "yes_ratio": 4 / 12}
    )


def test_the_yes_ratio_is_that_of_predictions():
    # half of the gold answers are yes; a public engine gives 0.5 here
    rows = [said("no", "yes"), said("no", "no")]
    assert AGGREGATES["pope_yes_ratio"](rows) == 0.0
    assert AGGREGATES["pope_precision"](rows) is None
    assert AGGREGATES["pope_f1"](rows) == 0.0


def test_mme_adds_accuracy_and_accuracy_of_pairs():
    # right: 2 of 2, 1 of 2, 0 of 2: accuracy 3/6, one image of three has both
    rows = [scored(s, pair) for pair, both in {"a": (1, 1), "b": (1, 0), "c": (0, 0)}.items() for s in both]
    assert AGGREGATES["mme_accuracy"](rows) == pytest.approx(0.5)
    assert AGGREGATES["mme_accuracy_plus"](rows) == pytest.approx(1 / 3)


PERCEPTION = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]


def mme(right=lambda gold, place: True, categories=(*PERCEPTION, *COGNITION), images=10):
    """As many images of each category, with two questions each: is the gold answer yes, is it no."""
    return [
        {
            **scored(float(right(gold, place)), f"{category}/{place}", category, correct=right(gold, place)),
            "cluster": f"{category}/{place}",
        }
        for category in categories
        for place in range(images)
        for gold in (True, False)
    ]


def test_mme_is_published_as_perception_and_cognition_of_at_most_2000_and_800():
    perfect = mme()
    assert (AGGREGATES["mme_perception"](perfect), AGGREGATES["mme_cognition"](perfect)) == (2000, 800)
    # right half of the time, on no image both times
    assert AGGREGATES["mme_perception"](mme(lambda gold, place: gold)) == 500
    # one category of ten with 3 of 4 right, both on one image of two
    rows = [*mme(categories=PERCEPTION[1:]), *mme(lambda gold, place: gold or place, PERCEPTION[:1], images=2)]
    assert AGGREGATES["mme_perception"](rows) == pytest.approx(9 * 200 + 75 + 50)
    assert AGGREGATES["mme_cognition"](rows) is None


def test_the_score_of_some_of_mmes_categories_is_not_published():
    assert AGGREGATES["mme_perception"](mme(categories=PERCEPTION[:9])) is None


def test_half_a_pair_is_no_pair():
    rows = [scored(1.0, "a"), scored(1.0, "b"), scored(0.0, "b")]
    assert AGGREGATES["pair_accuracy"](rows) == 0.0
    assert AGGREGATES["pair_accuracy"](rows[:1]) is None


def test_a_pair_that_the_judge_did_not_decide_is_left_out():
    rows = [scored(1.0, "a"), scored(None, "a"), scored(1.0, "b"), scored(1.0, "b")]
    assert AGGREGATES["pair_accuracy"](rows) == 1.0
    assert AGGREGATES["mme_accuracy"](rows) == 1.0


def test_rows_of_one_cluster_are_a_pair_where_no_fact_says_so():
    rows = [
        {"correct": right, "dataset": "d", "cluster": pair} for right, pair in [(True, "a"), (True, "a"), (False, "b")]
    ]
    assert AGGREGATES["pair_accuracy"](rows) == 1.0


def test_cv_bench_weighs_its_sources_and_is_not_the_mean():
    parts = {"ADE20K": (1, 0), "COCO": (1, 1), "Omni3D": (0, 0, 0, 1)}
    rows = [scored(s, i, part) for part, scores in parts.items() for i, s in enumerate(scores)]
    # ((0.5 + 1) / 2 + 0.25) / 2
    assert AGGREGATES["cv_bench"](rows) == pytest.approx(0.5)
    assert AGGREGATES["cv_bench"](rows[:4]) is None


@pytest.mark.parametrize("name", AGGREGATES)
def test_no_rows_have_no_value(name):
    assert AGGREGATES[name]([]) is None


def test_names_and_groups_are_found_and_others_are_named_with_the_nearest():
    assert [aggregate.name for aggregate in find(["pairs", "pope_f1"])] == ["pair_accuracy", "pope_f1"]
    assert len(find(["pope", "mme"])) == 9
    with pytest.raises(RecipeError, match="Did you mean 'pope_f1'"):
        find(["pope_f2"])


# intervals


def clusters_of(rows):
    return [row["cluster"] for row in rows]


def cell(name, rows):
    return AGGREGATES[name].cell(rows, clusters_of(rows))


def difference(name, a, b):
    return AGGREGATES[name].difference(a, b, clusters_of(a))


def pope(yes, n=3000):
    """A model that says yes to the first `yes` questions only; every second is one with a yes."""
    answers = [("yes" if place < yes else "no", "yes" if place % 2 == 0 else "no") for place in range(n)]
    return [{**said(*pair), "cluster": f"image {place // 5}"} for place, pair in enumerate(answers)]


def test_a_share_has_the_interval_of_a_share():
    always_yes = mme(lambda gold, place: gold, ["count"], images=30)
    assert cell("mme_accuracy", always_yes) == share([True, False] * 30, clusters_of(always_yes))
    assert cell("mme_accuracy", always_yes).low < 0.4 < 0.6 < cell("mme_accuracy", always_yes).high
    assert cell("mme_accuracy_plus", always_yes) == wilson(0, 30)
    assert cell("pair_accuracy", always_yes).n == 30  # pairs, not rows


def test_precision_of_few_yes_has_the_interval_of_those_few():
    few = pope(yes=24)
    assert cell("pope_precision", few) == share([True, False] * 12, [f"image {place // 5}" for place in range(24)])
    assert cell("pope_precision", few).n == 24
    assert cell("pope_precision", pope(yes=0)) == Cell(None, None, None, 0)
    assert cell("pope_recall", few).n == 1500


def test_f1_has_the_interval_of_the_share_that_it_is_a_function_of():
    few = pope(yes=24)
    # 12 true positives, 12 false ones, 1488 false negatives
    found = cell("pope_f1", few)
    assert found.value == pytest.approx(24 / (24 + 12 + 1488))
    assert 0 < found.low < found.value < found.high < 1
    assert cell("pope_f1", pope(yes=0)).high > 0


def test_a_sum_of_shares_keeps_its_width_where_all_rows_are_alike():
    found = cell("mme_perception", mme(lambda gold, place: gold))
    assert found.value == 500
    assert found.n == 200
    # of each category the distances for 10 of 20 and 0 of 10, added; of ten categories the root of the squares
    half = share([True, False] * 10, [image // 2 for image in range(20)])
    low, high = (half[side] + wilson(0, 10)[side] for side in (1, 2))
    below, above = 100 * (0.5 - low) * 10**0.5, 100 * (high - 0.5) * 10**0.5
    assert (found.low, found.high) == pytest.approx((500 - below, 500 + above))


def test_a_sum_with_an_empty_part_has_no_value_and_one_with_a_single_image_in_a_part_no_interval():
    assert cell("mme_cognition", mme(images=2)).low is not None
    assert cell("mme_cognition", mme(images=1)) == Cell(800, None, None, 8)
    assert cell("mme_cognition", mme(images=1)[:-2]) == Cell(None, None, None, 6)


@pytest.mark.parametrize("parts", [4, 12, 40])
def test_nine_in_ten_intervals_of_a_sum_or_more_hold_the_truth(parts):
    rng, held = np.random.default_rng(0), []
    truth = {"ADE20K": 0.6, "COCO": 0.8, "Omni3D": 0.7}
    for _ in range(200):
        rows = [
            {**scored(float(rng.random() < p), place, part), "cluster": f"{part} {place}"}
            for part, p in truth.items()
            for place in range(parts)
        ]
        found = cell("cv_bench", rows)
        held.append(found.low <= 0.7 <= found.high)
    assert np.mean(held) >= 0.9


answers = st.lists(
    st.tuples(st.sampled_from(["yes", "no", "?"]), st.sampled_from(["yes", "no"])), min_size=1, max_size=30
)


@calm
@given(answers)
def test_every_number_is_the_value_of_its_cell_and_lies_within_its_interval(pairs):
    rows = [{**said(*pair), "cluster": place // 2} for place, pair in enumerate(pairs)]
    for name in GROUPS["pope"]:
        found = cell(name, rows)
        assert found.value == (None if (value := AGGREGATES[name](rows)) is None else pytest.approx(value))
        if found.low is not None:
            assert 0 <= found.low <= found.value + 1e-9
            assert found.value <= found.high + 1e-9 <= 1 + 2e-9


@pytest.mark.parametrize("name", AGGREGATES)
def test_the_interval_of_three_thousand_rows_lies_around_the_number_and_is_narrow(name):
    rng = np.random.default_rng(0)
    rated = 6.0 if name.startswith("mmhal_") else 1.0
    datasets = {"cv_bench": ("ADE20K", "COCO", "Omni3D"), "mme_perception": PERCEPTION, "mme_cognition": COGNITION}
    parts = datasets.get(name, ["count"])
    made = [
        [
            {
                **said("yes" if rng.random() < share_of_yes else "no", "yes" if place % 2 else "no"),
                "score": rated * float(rng.random() < share_of_yes),
                "dataset": parts[place // 2 % len(parts)],
                "cluster": place // 2,
            }
            for place in range(3000)
        ]
        for share_of_yes in (0.8, 0.6)
    ]
    aggregate, scale = AGGREGATES[name], sum(AGGREGATES[name].weights)
    found, above = cell(name, made[0]), difference(name, *made)
    assert found.low < aggregate(made[0]) < found.high
    assert found.high - found.low < 0.1 * max(scale, found.value)
    assert above.difference == pytest.approx(aggregate(made[0]) - aggregate(made[1]))
    assert above.low < above.difference < above.high
    # the two systems are independent here, so that the error of their difference is about 1.4 times that of one;
    # of precision it is less, because every image has one question with a yes
    assert 0.7 < (above.high - above.low) / (found.high - found.low) < 1.9


def test_a_difference_is_drawn_within_each_part():
    # one image of code_reasoning alone: drawn from all images, a third of the samples would have none
    rows = [*mme(categories=COGNITION[:3], images=20), *mme(categories=COGNITION[3:], images=1)]
    worse = [{**row, "score": float(place % 4 > 0)} for place, row in enumerate(rows)]
    found = difference("mme_cognition", rows, worse)
    assert found.low is not None
    assert found.low < found.difference < found.high


def test_a_number_that_a_few_samples_do_not_have_still_has_an_interval_of_its_difference():
    found = difference("pope_precision", pope(yes=1500), pope(yes=24))
    assert found.difference == pytest.approx(0.0)
    assert found.low < 0 < found.high
    assert difference("pope_precision", pope(yes=1500), pope(yes=0)).difference is None


@pytest.mark.parametrize("images", [1, 2, 3, 9])
def test_a_difference_on_few_images_or_without_any_has_no_interval(images):
    right, wrong = mme(categories=["count"], images=images), mme(lambda *_: False, ["count"], images=images)
    assert difference("pair_accuracy", right, wrong) == (1.0, None, None, images)
    many = mme(categories=["count"], images=30)
    assert difference("pair_accuracy", many, many) == (0.0, None, None, 30)
