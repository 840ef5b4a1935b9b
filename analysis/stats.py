"""Statistics of a few repeated trials: pure functions on floats."""

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def sample_std(values: Sequence[float]) -> float | None:
    """sqrt(sum (x - mean)^2 / (n - 1)); None for fewer than two values."""
    centre = mean(values)
    if centre is None or len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def half_width(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Half of Student's t interval for the mean, t_{n-1} s / sqrt(n), in the unit of the values.

    None for fewer than two values. ValueError unless 0 < confidence < 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"0 < confidence < 1 must hold, but got {confidence=}.")
    std = sample_std(values)
    if std is None:
        return None
    from scipy.special import stdtrit  # takes a while to import, and tables have no intervals

    quantile = stdtrit(len(values) - 1, (1 + confidence) / 2)
    return float(quantile) * std / math.sqrt(len(values))
