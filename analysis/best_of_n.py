"""How good the best of n points of a search is to be expected: pure functions on the values of its points.

A value is the validation accuracy of a point, or None for a point that cost its budget and gave none: it was stopped,
diverged or failed. None counts as `floor`, by default the lowest value of all: who has met only such points has nothing
better than the worst that was trained to its end. So the expectation exists for every n, grows with n, and wasted
budget shows. (The mean over draws with a value, the other reading, would hide it: a method that diverges nine times in
ten would look as good at n = 1 as one that never does.) Curves that are compared need the same floor.

Points are drawn as if their order did not matter. A sampler that learns finds its better points late, so the left part
of its curve is not what a shorter search would have found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Value = float | None
Array = NDArray[np.float64]
CONFIDENCE, RESAMPLES = 0.95, 2000


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The expected best of n points, and its bootstrap band, for n = 1..N."""

    best: list[float]
    low: list[float]
    high: list[float]


def expected_best(values: Sequence[Value], floor: float | None = None) -> list[float]:
    """The expected best of n of the N values, drawn without replacement, for n = 1..N.

    E[max of n] = sum_i v_(i) [C(i,n) - C(i-1,n)] / C(N,n), where v_(1) <= ... <= v_(N): C(i,n) - C(i-1,n) of the
    C(N,n) subsets have v_(i) as their best. ValueError if there is no value, or one below the floor.
    """
    numbers = np.sort(_numbers(values, floor))
    return [float(best) for best in numbers @ _weights(len(numbers), np.arange(1, len(numbers) + 1))]


def curve(
    values: Sequence[Value],
    floor: float | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Curve:
    """expected_best with percentile bootstrap bands: the points, those without a value too, are drawn anew.

    No resample has a better point than the best there is, so near n = N the bands are too narrow.
    """
    numbers = _numbers(values, floor)
    drawn = _resampled(numbers, resamples, np.random.default_rng(seed))
    low, high = _interval(drawn @ _weights(len(numbers), np.arange(1, len(numbers) + 1)), confidence)
    return Curve(best=expected_best(values, floor), low=low.tolist(), high=high.tolist())


def difference(
    a: Sequence[Value],
    b: Sequence[Value],
    n: int,
    floor: float | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval (low, high) of E_a[best of n] - E_b[best of n], the points drawn anew in both.

    floor: by default the lowest value of both. ValueError unless 1 <= n <= the number of points of each.
    """
    if not 1 <= n <= min(len(a), len(b)):
        raise ValueError(f"1 <= n <= the points of each search must hold, but got {n=}, {len(a)=}, {len(b)=}.")
    if floor is None:
        floor = min((value for value in [*a, *b] if value is not None), default=None)
    rng = np.random.default_rng(seed)
    one, other = (
        _resampled(numbers, resamples, rng) @ _weights(len(numbers), np.array([n]))[:, 0]
        for numbers in (_numbers(a, floor), _numbers(b, floor))
    )
    low, high = _interval(one - other, confidence)
    return float(low), float(high)


def _numbers(values: Sequence[Value], floor: float | None) -> Array:
    lowest = min((value for value in values if value is not None), default=floor)
    if not values or lowest is None:
        raise ValueError(f"a search must have a completed point, but got {values!r}.")
    if floor is not None and floor > lowest:
        raise ValueError(f"floor <= every value must hold, but got {floor=}, {lowest=}.")
    least = lowest if floor is None else floor
    return np.array([least if value is None else value for value in values], dtype=np.float64)


def _weights(total: int, n: NDArray[np.int64]) -> Array:
    """P(v_(i) is the best of n) = C(i-1,n-1) / C(N,n), of shape [N, len(n)].

    From i = N down, as C(i-1,n-1) / C(i,n-1) = (i-n+1) / i: the binomials themselves overflow.
    """
    weights = np.zeros((total, len(n)))
    weights[-1] = n / total
    for i in range(total - 1, 0, -1):
        weights[i - 1] = weights[i] * np.maximum(i - n + 1, 0) / i
    return weights


def _resampled(numbers: Array, resamples: int, rng: np.random.Generator) -> Array:
    """[resamples, N]: as many of the numbers, drawn with replacement, in ascending order."""
    return np.sort(rng.choice(numbers, (resamples, len(numbers))), axis=1)


def _interval(drawn: Array, confidence: float) -> tuple[Array, Array]:
    if not 0 < confidence < 1:
        raise ValueError(f"0 < confidence < 1 must hold, but got {confidence=}.")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
