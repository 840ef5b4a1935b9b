"""One study at work: it is asked for points and told how their trials ended, and is rebuilt from rows alone."""

import logging
import random
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner, WilcoxonPruner
from optuna.trial import TrialState, create_trial

from kdtrain.config import canonical, digest
from sweeps import space
from sweeps.points import Tried
from sweeps.samplers import SAMPLERS, Setting
from sweeps.schema import OBJECTIVES, Status
from sweeps.searches import Search
from sweeps.space import Dimension, Point

RETRIES = 50  # of a sampler that offers what was tried or exceeds the limits; then a point is drawn at random
MANY = 100_000  # points that are counted to find those not tried yet
_STATES = {
    Status.COMPLETED: TrialState.COMPLETE,
    Status.STOPPED: TrialState.PRUNED,
    Status.DIVERGED: TrialState.FAIL,
    Status.FAILED: TrialState.FAIL,
}

optuna.logging.set_verbosity(logging.ERROR)


class Asking:
    """The study of a cell, in memory. `search` is what its rows have.

    Points have numbers of ours, since Optuna also numbers what was refused.
    """

    def __init__(self, search: Search, p_threshold: float | None = None) -> None:
        self.search, self.space = search, search.study.space
        self.one_by_one = p_threshold is not None
        self.points = {each.number: each for each in search.tried}
        self.seen = {canonical(each.point) for each in search.tried}
        self.next_number = search.next_number
        self.trials: dict[int, Trial] = {}  # of the points under way
        self.queue = [("start", point) for point in search.study.starts]
        self.queue += [("prior", point) for point in search.prior]
        self.optuna = self._new_study(p_threshold)
        ended = [each for each in search.tried if each.ended(search.seeds)]
        for each in ended:
            self.optuna.add_trial(self._frozen(each))
        for each in search.tried:
            if not each.ended(search.seeds):
                self.trials[each.number] = self._fixed(each.point)
                self._report_seeds(each)

    @property
    def left(self) -> int:
        """How many points it may still be asked for."""
        return max(0, self.search.budget - len(self.points))

    @property
    def over(self) -> bool:
        """Whether all its points have ended."""
        return not self.left and all(each.ended(self.search.seeds) for each in self.points.values())

    @property
    def to_come(self) -> int:
        """How many trials of it have not ended, at most: of its points and of its confirmations."""
        seeds = self.search.seeds
        open_trials = sum(seed not in each.rows for each in self.points.values() for seed in seeds)
        confirmations = min(self.search.top, self.search.budget) * len(self.search.fresh)
        return self.left * len(seeds) + open_trials + confirmations

    def seeds_to_run(self, each: Tried) -> list[int]:
        """The seeds with which a point is to be tried now: one after the other where that may spare some."""
        left = [seed for seed in self.search.seeds if seed not in each.rows]
        return left[:1] if self.one_by_one else left

    def ask(self) -> Tried:
        """The next point. It is none that was tried, and its student is within the limits."""
        assert self.left, "the budget is spent"
        origin, (trial, point) = "sampler", (None, {})
        while self.queue and trial is None:
            origin, wanted = self.queue.pop(0)
            if self._is_new(wanted) and not self.search.excess(wanted):
                trial, point = self._fixed(wanted), wanted
        if trial is None:
            origin, (trial, point) = "sampler", self._sampled()
        each = Tried(self.next_number, point, origin)
        self.next_number += 1
        self.points[each.number], self.trials[each.number] = each, trial
        self.seen.add(canonical(point))
        return each

    def report(self, number: int, epoch: int, accuracy: float) -> None:
        """A trial of a point with one seed has done an epoch."""
        if len(self.search.seeds) == 1 and len(self.search.table.objectives) == 1 and number in self.trials:
            self.trials[number].report(accuracy, epoch)

    def tell(self, number: int, seed: int, row: dict[str, Any]) -> list[int]:
        """A trial of a point has ended. Returns the seeds with which it is not worth trying.

        row: status, and of a completed trial the columns of the objectives.
        """
        each = self.points[number]
        each.rows[seed] = row
        trial, seeds = self.trials[number], self.search.seeds
        left = [other for other in seeds if other not in each.rows]
        if left and len(seeds) > 1 and row["status"] == Status.COMPLETED:
            self._report_seeds(each)
            return left if trial.should_prune() else []
        if not left:
            del self.trials[number]
            values = each.values(seeds, self.search.table.objectives)
            state = _STATES[each.status(seeds)]
            if values is not None:
                self.optuna.tell(trial, values)
            else:
                self.optuna.tell(trial, state=state)
        return []

    def _report_seeds(self, each: Tried) -> None:
        """Tell the trial the accuracies so far, by the place of their seeds."""
        seeds, trial = self.search.seeds, self.trials[each.number]
        if len(seeds) == 1 or len(self.search.table.objectives) > 1:
            return
        known = self.optuna.get_trials(deepcopy=False)[trial.number].intermediate_values
        for place, seed in enumerate(seeds):
            row = each.rows.get(seed)
            if row is not None and row["status"] == Status.COMPLETED and place not in known:
                trial.report(row["val_acc"], place)

    def _new_study(self, p_threshold: float | None) -> optuna.Study:
        table, study = self.search.table, self.search.study
        # A sequence goes on where it was; other samplers would repeat their first draws.
        known = 0 if table.sampler == "qmc" else len(self.points)
        seed = int(digest([table.seed, study.id, known]), 16) % 2**32
        self.random = random.Random(seed)
        conditional = any(dim.when for dim in self.space.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = SAMPLERS[table.sampler](Setting(seed, self.search.budget, conditional))
            pruner: BasePruner = NopPruner() if p_threshold is None else WilcoxonPruner(p_threshold=p_threshold)
        directions = [OBJECTIVES[name][1] for name in table.objectives]
        return optuna.create_study(directions=directions, sampler=sampler, pruner=pruner)

    def _frozen(self, each: Tried) -> optuna.trial.FrozenTrial:
        """A point that has ended, as Optuna remembers it."""
        seeds, rows = self.search.seeds, each.rows
        values = each.values(seeds, self.search.table.objectives)
        if len(seeds) > 1:
            steps = {i: rows[seed]["val_acc"] for i, seed in enumerate(seeds) if rows[seed]["val_acc"] is not None}
        else:
            (row,) = (rows[seed] for seed in seeds)
            steps = {} if row["val_acc"] is None else {row["epochs_done"]: row["val_acc"]}
        state = _STATES[each.status(seeds)]
        return create_trial(
            state=state,
            values=values,
            params={name: _code(self.space[name], value) for name, value in each.point.items()},
            distributions={name: _distribution(self.space[name]) for name in each.point},
            intermediate_values=steps if len(self.search.table.objectives) == 1 else {},
        )

    def _sampled(self) -> tuple[Trial, Point]:
        if self.search.table.sampler == "grid":
            return self._drawn(next(self._not_tried()))
        for _ in range(RETRIES + len(self.points)):
            trial = self.optuna.ask()
            point = self._suggested(trial)
            excess = self.search.excess(point)
            if self._is_new(point) and not excess:
                return trial, point
            if excess:
                trial.set_constraint("limits", excess)
                self.optuna.tell(trial, state=TrialState.PRUNED)
            else:
                self.optuna.tell(trial, state=TrialState.FAIL)
        return self._drawn(self._random_point())

    def _drawn(self, point: Point) -> tuple[Trial, Point]:
        return self._fixed(point), point

    def _fixed(self, point: Point) -> Trial:
        """A trial of Optuna's for a point that it did not choose."""
        self.optuna.enqueue_trial({name: _code(self.space[name], value) for name, value in point.items()})
        trial = self.optuna.ask()
        self._suggested(trial)
        return trial

    def _suggested(self, trial: Trial) -> Point:
        point: Point = {}
        for name, dim in self.space.items():
            if space.exists(dim, point):
                point[name] = _decoded(dim, _suggest(trial, name, _distribution(dim)))
        return point

    def _is_new(self, point: Point) -> bool:
        return canonical(point) not in self.seen

    def _not_tried(self) -> Iterator[Point]:
        """The points of a space that has an end, without those tried and those beyond the limits."""
        for point in space.points(self.space) or ():
            if self._is_new(point) and not self.search.excess(point):
                yield point

    def _random_point(self) -> Point:
        """A point that was not tried, any one alike."""
        if not space.has_more_than(self.space, MANY):
            return self.random.choice(list(self._not_tried()))
        while True:
            point = space.draw(self.space, self.random)
            if self._is_new(point) and not self.search.excess(point):
                return point


def _distribution(dim: Dimension) -> BaseDistribution:
    """Of the number that stands for a value: itself in a range, its place among choices."""
    if dim.choices is not None:
        last = len(dim.choices) - 1
        return IntDistribution(0, last) if dim.ordered else CategoricalDistribution(tuple(range(last + 1)))
    assert dim.low is not None
    assert dim.high is not None
    if dim.whole:
        return IntDistribution(round(dim.low), round(dim.high), log=dim.log, step=round(dim.step or 1))
    return FloatDistribution(dim.low, dim.high, log=dim.log, step=dim.step)


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _code(dim: Dimension, value: Any) -> Any:
    """The number that stands for a value."""
    return value if dim.choices is None else dim.choices.index(value)


def _decoded(dim: Dimension, code: Any) -> Any:
    return dim.cast(code) if dim.choices is None else dim.choices[code]
