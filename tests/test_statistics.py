"""Intervals of shares, means and paired differences, against numbers worked out by hand."""

import tracemalloc
from math import sqrt
from time import process_time

import numpy as np
import pytest
from scipy import stats

from grit_lite.evaluate import statistics
from grit_lite.evaluate.statistics import (
    Cell,
    Difference,
    Outcomes,
    aggregate,
    detectable,
    holm,
    mcnemar,
    mean_interval,
    outcomes,
    paired_difference,
    share,
    standard_error,
    wilson,
)


def test_wilson_of_8_in_10_is_the_textbook_interval():
    # z = 1.96: centre (0.8 + z²/20) / (1 + z²/10) = 0.71673,
    # half width z·sqrt(0.8·0.2/10 + z²/400) / (1 + z²/10) = 0.22659
    cell = wilson(8, 10)
    assert cell.value == 0.8
    assert cell.low == pytest.approx(0.4902, abs=1e-4)
    assert cell.high == pytest.approx(0.9433, abs=1e-4)
    assert cell.n == 10


def test_wilson_of_no_success_starts_at_zero_and_still_has_a_width():
    # low 0, high z²/(n + z²) = 3.8415 / 23.8415
    assert wilson(0, 20) == pytest.approx(Cell(0.0, 0.0, 0.16112, 20), abs=1e-4)


def test_no_rows_have_no_value_and_no_interval():
    assert wilson(0, 0) == mean_interval([]) == Cell(None, None, None, 0)
    assert paired_difference([], []) == Difference(None, None, None, 0)


def test_one_value_has_a_mean_and_no_interval():
    assert mean_interval([0.25]) == Cell(0.25, None, None, 1)


def test_mean_interval_is_as_wide_as_the_central_limit_says():
    values = [0.0, 1.0] * 200
    # mean 0.5, standard error 0.5 / sqrt(400) = 0.025, so ± 1.96 · 0.025 = ± 0.049
    cell = mean_interval(values)
    assert cell.value == 0.5
    assert cell.low == pytest.approx(0.451, abs=0.004)
    assert cell.high == pytest.approx(0.549, abs=0.004)


def test_mean_interval_never_leaves_the_range_of_the_values():
    cell = mean_interval([0.0, 0.0, 0.0, 1.0])
    assert cell.low == 0.0
    assert cell.high is not None
    assert cell.high <= 1.0


def test_the_same_values_give_the_same_interval_every_time():
    values = list(np.linspace(0, 1, 37))
    assert mean_interval(values) == mean_interval(values)
    assert paired_difference(values, values[::-1]) == paired_difference(values, values[::-1])


def test_paired_difference_sees_what_the_separate_intervals_hide():
    base = [0.0, 1.0] * 100
    tuned = [value + 0.1 for value in base]
    # every row is better by exactly 0.1, although the two means overlap widely
    result = paired_difference(tuned, base)
    assert result == pytest.approx(Difference(0.1, 0.1, 0.1, 200))


def test_paired_difference_is_first_minus_second():
    assert paired_difference([1, 1, 1, 0], [1, 0, 0, 0]).difference == 0.5
    assert paired_difference([1, 0, 0, 0], [1, 1, 1, 0]).difference == -0.5


def test_rows_of_one_image_count_as_one_draw():
    # 20 images with 10 identical rows each: 200 rows know no more than 20, so the interval is sqrt(10) times wider
    gaps = [float(image % 2) for image in range(20) for _ in range(10)]
    images = [image for image in range(20) for _ in range(10)]
    zeros = [0.0] * 200
    alone = paired_difference(gaps, zeros)
    together = paired_difference(gaps, zeros, clusters=images)
    assert together.difference == alone.difference == 0.5
    assert together.n == 200
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(sqrt(10), rel=0.1)


def test_unequal_lists_are_not_pairs():
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1, 0], [1])


def test_mcnemar_counts_only_the_rows_where_the_systems_differ():
    # 6 rows only a has right, 1 row only b: p = 2 · (C(7,0) + C(7,1)) / 2^7 = 16 / 128
    a = [True] * 6 + [False] + [True] * 50
    b = [False] * 6 + [True] + [True] * 50
    assert mcnemar(a, b) == pytest.approx(0.125)


def test_mcnemar_without_a_difference_is_certain_of_nothing():
    assert mcnemar([True, False], [True, False]) == 1.0


def test_nine_in_ten_wilson_intervals_or_more_hold_the_truth():
    truth, n = 0.85, 125
    successes = np.random.default_rng(1).binomial(n, truth, size=400)
    held = [cell.low <= truth <= cell.high for cell in (wilson(int(k), n) for k in successes)]
    assert np.mean(held) >= 0.92


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (50, 100), (499, 500)])
def test_wilson_is_scipys(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n)[1:3] == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_independent_rows_is_wilsons():
    held = [True] * 8 + [False] * 2
    assert share(held) == share(held, clusters=range(10)) == wilson(8, 10)
    assert share([], clusters=[]) == Cell(None, None, None, 0)


def test_rows_that_repeat_one_another_are_worth_as_many_as_there_are_images():
    # 40 images with 5 equal rows each: the interval of 200 rows is that of 40, but for the quantile of t
    held = [image % 2 == 0 for image in range(40) for _ in range(5)]
    images = [image for image in range(40) for _ in range(5)]
    together, of_images = share(held, images), wilson(20, 40)
    assert (together.value, together.n) == (0.5, 200)
    assert together.high - together.low == pytest.approx(of_images.high - of_images.low, rel=0.05)
    assert together.high - together.low > of_images.high - of_images.low


def test_a_share_that_is_one_of_two_in_every_pair_is_not_made_certain_by_it():
    cell = share([True, False] * 30, [pair for pair in range(30) for _ in range(2)])
    low, high = wilson(30, 60)[1:3]
    assert cell.low <= low < high <= cell.high


def test_all_right_on_few_images_leaves_as_much_doubt_as_the_images_do():
    cell = share([True] * 60, [image for image in range(6) for _ in range(10)])
    assert (cell.low, cell.high) == pytest.approx(wilson(6, 6)[1:3])
    assert share([True] * 12, list(range(6)) * 2, [0] * 6 + [1] * 6)[1:3] == pytest.approx(wilson(6, 6)[1:3])
    assert share([True, True], ["one", "one"]) == Cell(1.0, None, None, 2)


def test_the_standard_error_is_the_textbooks_for_independent_rows_and_the_sandwich_for_clusters():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert standard_error(values) == pytest.approx(np.std(values, ddof=1) / sqrt(5))
    # clusters {0, 1}, {1, 0}, {1}: residual sums -0.2, -0.2, 0.4; sqrt(3/2 * 0.24) / 5 = 0.12
    assert standard_error(values, ["a", "a", "b", "b", "c"]) == pytest.approx(0.12)


def simulated(rng, images=60, per_image=4, truth=0.7, spread=1.5):
    """Rows of right and wrong, those of an image alike: its chance is drawn around the truth."""
    chances = rng.beta(truth * spread, (1 - truth) * spread, size=images)
    return (rng.random((images, per_image)) < chances[:, None]).ravel()


def test_intervals_of_rows_that_share_images_hold_the_truth_as_often_as_they_say():
    rng, images = np.random.default_rng(3), np.repeat(np.arange(60), 4)
    samples = [simulated(rng) for _ in range(400)]

    def held(cells):
        return np.mean([cell.low <= 0.7 <= cell.high for cell in cells])

    assert 0.925 <= held(share(sample, images) for sample in samples) <= 0.985
    assert held(wilson(int(sample.sum()), 240) for sample in samples) < 0.88  # as if rows were independent
    # a percentile bootstrap over 60 clusters is a little short, as it is known to be
    assert held(mean_interval(sample, images) for sample in samples[:60]) >= 0.9


def test_intervals_over_draws_and_images_hold_the_truth():
    rng, held = np.random.default_rng(4), []
    images, draws = np.tile(np.arange(50), 3), np.repeat(np.arange(3), 50)
    for _ in range(60):
        chances = rng.beta(1.4, 0.6, size=50)
        sampled = (rng.random((3, 50)) < chances).ravel()
        cell = share(sampled, images, draws)
        held.append(cell.low <= 0.7 <= cell.high)
    assert np.mean(held) >= 0.93


def test_more_draws_of_the_same_images_do_not_make_more_images():
    right = np.array([image % 2 for image in range(50)], dtype=float)
    once = mean_interval(right, range(50))
    thrice = mean_interval(np.tile(right, 3), list(range(50)) * 3, np.repeat([0, 1, 2], 50))
    assert thrice.n == 150
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.1)


def test_rows_that_few_draws_have_get_no_interval():
    assert mean_interval([0.5, 1.0], ["a", "b"], [0, 1]) == Cell(0.75, None, None, 2)


def test_mcnemar_counts_an_image_once():
    # one image on which a alone has 6 rows right, and one each on which a alone, then b alone, has one
    a, b = [1] * 6 + [1, 0], [0] * 6 + [0, 1]
    images = [0] * 6 + [1, 2]
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar(a, b, images) == 1.0  # two against one


def test_holm_is_the_published_example():
    # four tests at 0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_wins_losses_and_ties_are_counted_by_row():
    assert outcomes([1, 1, 0, 0.5], [0, 1, 1, 0.25]) == Outcomes(2, 1, 1)


def test_the_detectable_difference_is_detected_four_times_in_five():
    # independent rows of which 30 % differ: the sample that is as wide as it says shows it in 80 % of draws
    rng = np.random.default_rng(5)
    gaps = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=400)
    effect = detectable(gaps, np.zeros(400))
    assert effect == pytest.approx(2.8016 * standard_error(gaps), rel=1e-3)
    up, down = 0.15 + effect / 2, 0.15 - effect / 2
    samples = rng.choice([-1.0, 0.0, 1.0], p=[down, 0.7, up], size=(2000, 400))
    shown = np.abs(samples.mean(1)) > 1.96 * samples.std(1, ddof=1) / 20
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)


def test_rows_of_which_none_differs_do_not_say_what_could_be_detected():
    assert detectable([1, 1], [1, 1]) is None
    assert detectable([], []) is None
    assert detectable([1], [0]) is None


def test_an_aggregate_is_drawn_by_whole_images():
    values = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])

    def mean(rows):
        return float(values[list(rows)].mean())

    together = aggregate(mean, ["a", "a", "b", "b", "c", "c"])
    assert set(np.round(together, 6)) <= {0.5, 0.666667, 0.833333, 1.0}
    assert len(together) == 1000
    assert np.array_equal(together, aggregate(mean, ["a", "a", "b", "b", "c", "c"]))


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_few_questions_have_no_interval_of_a_difference_however_many_were_won(n):
    assert paired_difference([1] * n, [0] * n) == Difference(1.0, None, None, n)
    assert mcnemar([1] * n, [0] * n) == min(1.0, 2 / 2**n)


@pytest.mark.parametrize("n", [1, 2, 3, 3000])
def test_ties_alone_have_no_interval_of_a_difference(n):
    assert paired_difference([1] * n, [1] * n) == Difference(0.0, None, None, n)


def test_ten_images_are_enough_for_an_interval_and_many_questions_about_nine_are_not():
    a, b = [0, 1] * 5, [0] * 10
    assert paired_difference(a, b).low is not None
    assert paired_difference(a * 9, b * 9, [place % 9 for place in range(90)]).low is None
    # what is won on one question of each image is lost on the other
    assert paired_difference([1, 0] * 20, [0, 1] * 20, [place // 2 for place in range(40)]).low is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.beta(4, 2, 3000),  # overlaps
        lambda rng: rng.random(3000) < 0.004,  # a rare event
        lambda rng: rng.exponential(30, 3000) ** 2,  # with a long tail
    ],
)
def test_the_interval_of_many_images_is_that_of_ten_thousand_samples(draw, monkeypatch):
    rng = np.random.default_rng(0)
    values = draw(rng).astype(float)
    images = [int(image) for image in rng.integers(0, 2500, 3000)]
    assert len(set(images)) < 2000 < 3000
    computed = mean_interval(values)
    monkeypatch.setattr(statistics, "MANY", 10_000)
    drawn = mean_interval(values)
    width = drawn.high - drawn.low
    assert (computed.low, computed.high) == pytest.approx((drawn.low, drawn.high), abs=0.06 * width)
    of_images = mean_interval(values, images)
    monkeypatch.setattr(statistics, "MANY", 100)
    computed, width = mean_interval(values, images), of_images.high - of_images.low
    assert (computed.low, computed.high) == pytest.approx((of_images.low, of_images.high), abs=0.06 * width)


def test_the_interval_of_many_equal_values_is_a_point_and_never_leaves_their_range():
    assert mean_interval([0.5] * 3000) == Cell(0.5, 0.5, 0.5, 3000)
    assert mean_interval([1.0] + [0.0] * 2999).low == 0.0


def test_a_number_of_25000_images_takes_little_time_and_memory():
    values, images = np.random.default_rng(0).random(38_589), [row * 25_000 // 38_589 for row in range(38_589)]
    started = process_time()
    tracemalloc.start()
    mean_interval(values, images)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert process_time() - started < 2  # 0.1 s alone
    assert held < 50e6
