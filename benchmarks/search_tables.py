"""What the search benchmark shows of its results."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import binom, spearmanr

from analysis.best_of_n import CONFIDENCE
from benchmarks.page import Shown, middle, number, percent, spread
from benchmarks.search_grid import Grid
from benchmarks.search_overhead import CELLS, EPOCHS_EACH, POINTS, median_ms
from benchmarks.search_simulate import ROUNDING, WORKERS, Ended, reached, regret
from benchmarks.search_ties import BUDGET, Values, covered, wilson
from sweeps.schema import Status

TOLERANCES = (0.0, 0.1, 0.15, 0.2, 0.3)
SHARES = (0.02, 0.05, 0.10, 0.15, 0.20, 0.30, 0.50)
WITHIN, TARGET = 0.2, 0.15  # points of accuracy; share of compute
EPOCHS_SHOWN = (1, 2, 3, 4, 6, 9, 12, 15)
Runs = Mapping[str, Sequence[Sequence[Ended]]]


def reading_of(grid: Grid) -> Shown:
    """What can be known of the end early, and how rare good points are: no search does better than this allows."""
    finals = [grid.accuracies[point] for point in grid.accuracies]
    good = [point for point, accuracy in grid.accuracies.items() if grid.best - accuracy <= WITHIN + ROUNDING]
    rows = []
    for epoch in EPOCHS_SHOWN:
        early = {point: grid.curves[point][epoch - 1] for point in grid.accuracies}
        rho = spearmanr(list(early.values()), finals).statistic
        ahead = [sum(other > early[point] for other in early.values()) / len(early) for point in good]
        kept = [sum(share < 1 / factor for share in ahead) for factor in (3, 4)]
        rows.append([str(epoch), f"{rho:.2f}", *(f"{n} of {len(good)}" for n in kept)])
    spans = ", ".join(f"{grid.within(points)} within {points:g}" for points in (0.1, 0.2, 0.3, 0.5, 1.0))
    low, high = min(finals), grid.best
    about = (
        f"{len(grid.curves)} points of CID on fashion_mini, one seed, {len(finals)} completed; accuracy on 2,000 "
        f"held-out images (steps of 0.05 points) after the last epoch: {low:.2f} to {high:.2f}, median "
        f"{median(finals):.2f}, standard deviation {np.std(finals, ddof=1):.2f}. Points of the best: {spans}. A "
        f"quadratic surface in the logarithms of the weights explains {percent(explained(grid))} of the variance of "
        "points left out. Below: the rank correlation (Spearman) of the accuracy after an epoch with that after the "
        f"last, and how many of the {len(good)} points within {WITHIN} of the best are then in the best third or "
        "quarter of all, where ASHA with factor 3 or 4 keeps them. To draw one of them with probability 1/2, "
        f"points drawn at random and trained to the end take {percent(random_share(len(finals), len(good)), 1)} of the "
        "compute."
    )
    return Shown("The grid", about, ["epoch", "rank correlation", "in the best third", "in the best quarter"], rows)


def explained(grid: Grid) -> float:
    """1 - PRESS / SST of the least squares quadratic in the logarithms of the weights."""
    points = [json.loads(point) for point in grid.accuracies]
    x = np.array([[math.log(value) for value in point.values()] for point in points])
    y = np.array(list(grid.accuracies.values()))
    x = (x - x.mean(0)) / x.std(0)
    pairs = [(i, j) for i in range(x.shape[1]) for j in range(i, x.shape[1])]
    design = np.column_stack([np.ones(len(x)), x, *(x[:, i] * x[:, j] for i, j in pairs)])
    hat = design @ np.linalg.pinv(design)
    left_out = (y - hat @ y) / (1 - np.diag(hat))
    return float(1 - (left_out**2).sum() / ((y - y.mean()) ** 2).sum())


def random_share(points: int, good: int) -> float:
    """The share of `points` to draw without replacement so that one of `good` is among them with probability 1/2."""
    missed = 1.0
    for drawn in range(1, points + 1):
        missed *= 1 - good / (points - drawn + 1)
        if missed <= 0.5:
            return drawn / points
    raise AssertionError("a grid has a best point")


def regret_tables(grid: Grid, runs: Runs) -> list[Shown]:
    """Regret at shares of the compute, how often it is small enough, and when."""
    n = len(next(iter(runs.values())))
    about = (
        f"Regret: the best accuracy of the grid, {grid.best:.2f}, minus the best of the points that a search "
        f"completed, in points; compute: epochs trained, of the {grid.epochs:,} of the grid. {n} simulated searches "
        f"each (`[search] seed` 0 to {n - 1}), {WORKERS} workers, ordered choices, no starting point; median "
        "[quartiles]. `-`: not run so far; of a search that has tried all points before, what it found. All look up "
        "one grid: the spread is that of the searches, not of another training of the grid."
    )
    shares = [percent(share) for share in SHARES]
    rows, hits, ends = [], [], []
    for name, every in runs.items():
        known = [share for share in SHARES if _ran(grid, every) >= share or _complete(grid, every)]
        at = {share: [regret(run, grid.best, share * grid.epochs) for run in every] for share in known}
        rows.append([name, *(spread(at[share]) if share in at else "-" for share in SHARES)])
        within = {share: sum(value <= WITHIN + ROUNDING for value in at[share]) / len(every) for share in known}
        hits.append([name, *(percent(within[share]) if share in within else "-" for share in SHARES)])
        ends.append(_end(grid, name, every))
    return [
        Shown("Regret", about, ["regret at", *shares], rows),
        Shown(
            f"Searches within {WITHIN} points of the grid's best",
            f"Share of the same {n} searches. Target: tpe + asha, half of them at 15 % of the compute. Its setting of "
            "grace 2 and factor 3 was chosen before any search was measured; the other two are all that were tried.",
            ["compute", *shares], hits,
        ),
        Shown(
            f"When they come within {WITHIN} points",
            "Share of the grid's compute after which half of the same searches are there, with the 95 % interval of "
            f"that median (order statistics), and three in four; how many are there at {percent(TARGET)}, with the "
            "95 % Wilson interval; then the points that they tried and completed until they were given up, in the "
            "median, and the epochs a point.",
            ["", "half", "three in four", f"at {percent(TARGET)}", "tried", "completed", "epochs a point"], ends,
        ),
        _tolerances(grid, runs),
    ]  # fmt: skip


def _tolerances(grid: Grid, runs: Runs) -> Shown:
    """Whether another target would have given another answer."""
    rows = []
    for name, every in runs.items():
        found = [regret(run, grid.best, TARGET * grid.epochs) for run in every]
        hits = [sum(value <= points + ROUNDING for value in found) / len(found) for points in TOLERANCES]
        rows.append([name, *map(percent, hits)])
    return Shown(
        f"Other tolerances at {percent(TARGET)} of the compute",
        f"Share of the same searches within so many points of the best at {percent(TARGET)} of the compute. "
        f"{WITHIN} is the target; the others show how much of the order hangs on single points of this grid.",
        ["within", *(f"{points:g}" for points in TOLERANCES)],
        rows,
    )


def _end(grid: Grid, name: str, every: Sequence[Sequence[Ended]]) -> list[str]:
    """The row of a strategy in the last table of regret."""
    times = sorted(reached(run, grid.best, WITHIN) / grid.epochs for run in every)
    n = len(times)
    place = max(1, int(binom.ppf(0.025, n, 0.5)))  # the first and last values between which the median lies
    half = f"{percent(middle(times), 1)} [{percent(times[place - 1], 1)}, {percent(times[n - place], 1)}]"
    there = sum(each <= TARGET for each in times)
    low, high = wilson(there, n)
    tried = median(len(run) for run in every)
    completed = median(sum(each.status == Status.COMPLETED for each in run) for run in every)
    a_point = median(run[-1].epochs / len(run) for run in every)
    later = percent(times[math.ceil(0.75 * n) - 1], 1)
    at = f"{percent(there / n)} [{percent(low)}, {percent(high)}]"
    return [name, half, later, at, f"{tried:g}", f"{completed:g}", number(a_point, 1)]


def _ran(grid: Grid, every: Sequence[Sequence[Ended]]) -> float:
    """The share of compute that all of these searches had: each was given up while its workers had trials."""
    return (min(run[-1].epochs for run in every) + WORKERS * EPOCHS_EACH) / grid.epochs


def _complete(grid: Grid, every: Sequence[Sequence[Ended]]) -> bool:
    return all(len(run) == len(grid.curves) for run in every)


def ties_table(found: Mapping[str, Sequence[tuple[Values, Values]]]) -> Shown:
    """How often the interval of the difference of two searches that differ in their name covers zero."""
    rows = []
    for name, pairs in found.items():
        for n in (BUDGET // 4, BUDGET // 2, 3 * BUDGET // 4, BUDGET):
            hits = [sum(covered(one, other, n, level) for one, other in pairs) for level in (CONFIDENCE, 0.99)]
            low, high = wilson(hits[0], len(pairs))
            shares = [percent(hit / len(pairs), 1) for hit in hits]
            rows.append([name, str(n), shares[0], f"[{percent(low, 1)}, {percent(high, 1)}]", shares[1]])
    (first, *_) = found.values()
    about = (
        f"{len(first)} comparisons of two searches of {BUDGET} points each on the grid, whose study ids alone differ: "
        "how often the 95 % bootstrap interval of `analysis.best_of_n.difference` (2,000 resamples) for the difference "
        "of their expected best of n covers zero, with its 95 % Wilson interval. Target: at least 90 %. No resample "
        "has a better point than the best there is, so intervals of a maximum are too narrow; the last column is that "
        "of the 99 % bootstrap interval."
    )
    headers = ["search", "n", "95 % covers zero", "Wilson", "99 % covers zero"]
    return Shown("Identical methods come out tied", about, headers, rows)


def overhead_tables(run: Mapping[str, Any]) -> list[Shown]:
    """Wall time of trials that train nothing, and the searcher's part of it."""
    clock, trials, workers = run["clock"], run["trials"], run["workers"]
    last = clock["suggest"][-100:]
    rows = [
        ["wall time with the start of Ray, s", f"{run['wall']:.1f}"],
        ["first to last end of a trial, s", f"{run['steady']:.1f}"],
        ["a trial, s of wall time", f"{run['steady'] / (trials - 1):.3f}"],
        ["a trial, s of a worker", f"{workers * run['steady'] / (trials - 1):.3f}"],
        ["an epoch, s of a worker", f"{workers * run['steady'] / (trials - 1) / EPOCHS_EACH:.4f}"],
        ["a suggestion, ms: median (95th percentile)", median_ms(clock["suggest"])],
        ["of the last 100, with 900 to 1,000 known trials", median_ms(last)],
        ["of it the study, ms", median_ms(clock["ask"])],
        ["of it Optuna, all suggestions, share", percent(clock["of_optuna"] / sum(clock["suggest"]))],
    ]
    about = (
        f"One run of `sweeps.run.run` with tpe, {CELLS} cells of {POINTS} points, no scheduler, {workers} workers: "
        f"{trials:,} trials that return {EPOCHS_EACH} stored epochs each, so all of its time is overhead. n = 1 run, "
        f"{len(clock['suggest']):,} suggestions. A suggestion is `SweepSearch.suggest`: it asks the study, makes the "
        "job and writes the file that lets a killed search go on. Target: at most 20 ms in the median. Load average of "
        f"the machine before: {run['load']:.1f}."
    )
    return [Shown("Overhead through Ray Tune", about, ["", "measured"], rows)]


def known_table(found: Mapping[str, Mapping[str, Any]]) -> Shown:
    """A study that already knows many points."""
    rows, load = [], max(one["load"] for one in found.values())
    for one in found.values():
        inner, every = sum(one["optuna"]), sum(one["ask"])
        times = [f"{1000 * one['rebuild']:.0f}", median_ms(one["ask"]), percent(inner / every)]
        rows.append([one["sampler"], f"{one['known']:,}", str(len(one["ask"])), *times])
    about = (
        "`Asking` of CID's default space, rebuilt from rows, then asked; a suggestion in ms, median (95th percentile). "
        f"gp fits its model anew for each suggestion. Load average of the machine before: {load:.1f}."
    )
    headers = ["sampler", "known points", "n", "rebuilt, ms", "a suggestion, ms", "of it Optuna"]
    return Shown("One large study", about, headers, rows)
