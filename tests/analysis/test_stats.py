import math

import pytest
import scipy.stats

from analysis.stats import half_width, mean, sample_std


def test_two_three_seven():
    # Mean 12 / 3 = 4; deviations -2, -1, 3; variance (4 + 1 + 9) / 2 = 7.
    assert mean([2.0, 3.0, 7.0]) == 4.0
    assert sample_std([2.0, 3.0, 7.0]) == pytest.approx(math.sqrt(7))


def test_half_width_of_two_values():
    # t_1 is the Cauchy distribution: its 97.5 % quantile is tan(0.475 pi). s = sqrt 2, so s / sqrt n = 1.
    assert half_width([1.0, 3.0]) == pytest.approx(math.tan(0.475 * math.pi))


def test_half_width_agrees_with_scipy():
    values = [70.1, 70.9, 69.4, 71.2, 70.3]
    low, high = scipy.stats.t.interval(0.9, 4, loc=mean(values), scale=scipy.stats.sem(values))
    assert half_width(values, confidence=0.9) == pytest.approx((high - low) / 2)


def test_few_values():
    assert mean([]) is None
    assert mean([3.5]) == 3.5
    assert sample_std([3.5]) is None
    assert half_width([3.5]) is None


def test_confidence_outside():
    with pytest.raises(ValueError, match="0 < confidence < 1 must hold, but got confidence=95"):
        half_width([1.0, 2.0], confidence=95)
