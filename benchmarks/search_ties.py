"""Whether two searches that differ in nothing but their name come out tied."""

from collections.abc import Sequence

from scipy.stats import binomtest

from analysis.best_of_n import CONFIDENCE, difference
from benchmarks.search_grid import Grid
from benchmarks.search_simulate import ROUNDING, Ended, Strategy, simulate
from sweeps.schema import Status

SEARCHES, BUDGET = 200, 24  # simulated comparisons; points of each of their two searches
Values = list[float | None]


def pair(grid: Grid, strategy: Strategy, number: int) -> tuple[Values, Values]:
    """The values of two studies of one grid, whose ids alone differ, in the order of their ends."""
    one, other = (values(simulate(grid, strategy, number, BUDGET, f"tie-{name}")) for name in ("one", "other"))
    return one, other


def values(ended: Sequence[Ended]) -> Values:
    """What a report knows of the points of a search: the accuracy of those that completed."""
    return [each.accuracy if each.status == Status.COMPLETED else None for each in ended]


def covered(one: Values, other: Values, n: int, confidence: float = CONFIDENCE) -> bool:
    """Whether the interval of the difference of their expected best of n covers zero."""
    low, high = difference(one, other, n, confidence=confidence)
    return low <= ROUNDING and high >= -ROUNDING


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score."""
    found = binomtest(hits, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
