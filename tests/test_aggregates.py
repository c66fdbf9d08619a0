import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_lite.errors import RecipeError
from grit_lite.evaluate.aggregates import AGGREGATES, GROUPS, find, resampled

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
    assert values(rows, "mme") == pytest.approx({"accuracy": 0.5, "accuracy_plus": 1 / 3, "score": 50 + 100 / 3})
    perfect = [scored(1.0, pair) for pair in "aabb"]
    assert AGGREGATES["mme_score"](perfect) == 200.0


def test_mme_adds_up_its_categories():
    rows = [scored(1.0, "a"), scored(1.0, "a"), scored(1.0, "a", "position"), scored(0.0, "a", "position")]
    assert AGGREGATES["mme_score"](rows) == pytest.approx(200 + 50)
    assert AGGREGATES["mme_accuracy"](rows) == pytest.approx(3 / 4)
    assert AGGREGATES["mme_accuracy_plus"](rows) == pytest.approx(1 / 2)


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
    assert len(find(["pope", "mme"])) == 8
    with pytest.raises(RecipeError, match="Did you mean 'pope_f1'"):
        find(["pope_f2"])


# resampling


answers = st.lists(
    st.tuples(st.sampled_from(["yes", "no", "?"]), st.sampled_from(["yes", "no"])), min_size=1, max_size=30
)


@calm
@given(answers, st.integers(0, 5))
def test_a_resample_is_the_value_of_the_rows_that_were_drawn(pairs, seed):
    rows, clusters = [said(*pair) for pair in pairs], [place // 2 for place in range(len(pairs))]
    aggregate = AGGREGATES["pope_f1"]
    n = clusters[-1] + 1
    drawn = np.random.default_rng(seed).integers(n, size=(3, n))
    expected = [
        aggregate([row for c in draw for row, k in zip(rows, clusters, strict=True) if k == c]) for draw in drawn
    ]
    found = aggregate.value(resampled(aggregate.statistics(rows), clusters, 3, seed))
    assert found.tolist() == pytest.approx([float("nan") if e is None else e for e in expected], nan_ok=True)


@pytest.mark.parametrize("name", AGGREGATES)
def test_ten_thousand_resamples_of_three_thousand_rows_lie_around_the_value(name):
    rng = np.random.default_rng(0)
    rated = 6.0 if name.startswith("mmhal_") else 1.0
    rows = [
        {
            **said("yes" if rng.random() < 0.6 else "no", "yes" if place % 2 else "no"),
            "score": rated * float(rng.random() < 0.7),
            "dataset": ("ADE20K", "COCO", "Omni3D")[place // 2 % 3],
            "cluster": place // 2,
        }
        for place in range(3000)
    ]
    aggregate = AGGREGATES[name]
    values = aggregate.value(resampled(aggregate.statistics(rows), [row["cluster"] for row in rows], 10_000, seed=0))
    low, high = np.percentile(values, [2.5, 97.5])
    assert values.shape == (10_000,)
    assert low < aggregate(rows) < high
    assert high - low < 0.1 * max(1.0, aggregate(rows))


def test_two_systems_are_drawn_alike():
    statistics = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    drawn = resampled(np.hstack([statistics, statistics]), [0, 1, 2], 600, seed=1)
    assert (drawn[:, :2] == resampled(statistics, [0, 1, 2], 600, seed=1)).all()
