import itertools
from statistics import fmean

import numpy as np
import pytest

from analysis.best_of_n import curve, difference, expected_best


def brute_force(values, n):
    """The mean of the best over all subsets of n."""
    return fmean(max(subset) for subset in itertools.combinations(values, n))


@pytest.mark.parametrize("values", [[3.0], [3.0, 1.0, 2.0], [5.0, 5.0, 1.0, 2.5], [80.1, 79.9, 12.0, 80.1, 55.5, 61.0]])
def test_the_formula_is_the_mean_over_all_subsets(values):
    expected = [brute_force(values, n) for n in range(1, len(values) + 1)]
    assert expected_best(values) == pytest.approx(expected, rel=1e-12)


def test_points_without_a_value_count_as_the_lowest():
    # Of {1, 3, nothing}: alone (1 + 3 + 1) / 3; in pairs 3, 3 and 1 (the pair of 1 and nothing); all three 3.
    assert expected_best([1.0, 3.0, None]) == pytest.approx([5 / 3, 7 / 3, 3.0])


def test_the_floor_is_what_nothing_counts_as():
    assert expected_best([3.0, None], floor=1.0) == pytest.approx([2.0, 3.0])
    assert expected_best([None, None], floor=1.0) == [1.0, 1.0]


def test_many_points_do_not_overflow():
    # Of 0..N-1 the best of n is expected at n (N + 1) / (n + 1) - 1, the mean of the largest of n of N ranks.
    total = 2000
    expected = [n * (total + 1) / (n + 1) - 1 for n in range(1, total + 1)]
    assert expected_best(list(map(float, range(total)))) == pytest.approx(expected, rel=1e-9)


def test_the_band_holds_the_curve_and_no_more_than_the_best():
    values = [60.0, 62.0, 70.0, 71.0, 71.5, None, None, 65.0]
    found = curve(values, resamples=500)
    assert found.best == expected_best(values)
    assert all(low <= best <= high for low, best, high in zip(found.low, found.best, found.high, strict=True))
    assert found.high[-1] == 71.5
    assert found == curve(values, resamples=500)  # seeded
    assert found != curve(values, resamples=500, seed=1)


def test_the_band_of_one_point_is_the_bootstrap_interval_of_the_mean():
    values = [1.0, 2.0, 4.0, 8.0]
    # All 4^4 resamples, each as probable.
    means = [fmean(drawn) for drawn in itertools.product(values, repeat=4)]
    low, high = np.quantile(means, [0.1, 0.9])
    found = curve(values, confidence=0.8, resamples=20_000)
    assert (found.low[0], found.high[0]) == (pytest.approx(low, abs=0.1), pytest.approx(high, abs=0.1))


def test_difference_of_like_searches_covers_zero_and_has_a_sign():
    a, b = [70.0, 71.0, 72.0, 73.0, None, 71.5], [70.5, 71.2, 72.1, None, 73.1, 70.9]
    low, high = difference(a, b, 3)
    assert low < 0 < high
    low, high = difference([value and value + 10 for value in a], b, 3)
    assert 5 < low < high
    assert difference(a, a, 1, resamples=50) != (0.0, 0.0)  # drawn independently


def test_difference_at_the_same_n_allows_unequal_searches():
    assert difference([1.0, 1.0, 1.0], [2.0, 2.0], 2) == (-1.0, -1.0)


def test_difference_gives_both_the_same_floor():
    # b's nothing counts as a's 1.0, the lowest of both: between 1 and 3 as against 3.
    low, high = difference([1.0, 1.0], [None, 3.0], 1)
    assert (low, high) == (-2.0, 0.0)


@pytest.mark.parametrize("n", [0, 3])
def test_difference_needs_n_points_of_both(n):
    with pytest.raises(ValueError, match=rf"1 <= n <= the points of each search must hold, but got n={n}, "):
        difference([1.0, 2.0, 3.0], [1.0, 2.0], n)


@pytest.mark.parametrize("values", [[], [None, None]])
def test_nothing_has_no_best(values):
    with pytest.raises(ValueError, match="must have a completed point"):
        expected_best(values)


def test_floor_and_confidence_are_checked():
    with pytest.raises(ValueError, match=r"floor <= every value must hold, but got floor=2.0, lowest=1.0"):
        expected_best([1.0], floor=2.0)
    with pytest.raises(ValueError, match=r"0 < confidence < 1 must hold, but got confidence=1"):
        curve([1.0], confidence=1)
