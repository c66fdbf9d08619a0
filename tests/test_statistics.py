"""Intervals of shares, means and paired differences, against numbers worked out by hand."""

from math import sqrt

import numpy as np
import pytest

from grit_lite.evaluate.statistics import Cell, Difference, mcnemar, mean_interval, paired_difference, wilson


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
