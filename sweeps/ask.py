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
from optuna.trial import TrialState

from kdtrain.config import canonical, digest
from sweeps import space
from sweeps.points import Tried
from sweeps.samplers import SAMPLERS, Setting
from sweeps.schema import OBJECTIVES, Status
from sweeps.searches import Search
from sweeps.space import Dimension, Point

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
        self.seen = {self._key(each.point) for each in search.tried}
        self.next_number = search.next_number
        self.trials: dict[int, Trial] = {}  # of the points under way
        self.queue = [("start", point) for point in search.study.starts]
        self.queue += [("prior", point) for point in search.prior]
        self.sampler = SAMPLERS[search.table.sampler]
        self.optuna = self._new_study(p_threshold)
        for each in search.tried:
            trial = self.trials[each.number] = self._fixed(each.point)
            self._report_steps(trial, each)
            self._close_if_ended(each)

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
        while self.queue:
            origin, point = self.queue.pop(0)
            if self._may_try(point):
                return self._begin(origin, point, self._fixed(point))
        trial, point = self._sampled()
        return self._begin("sampler", point, trial)

    def _begin(self, origin: str, point: Point, trial: Trial) -> Tried:
        each = Tried(self.next_number, point, origin)
        self.next_number += 1
        self.points[each.number], self.trials[each.number] = each, trial
        self.seen.add(self._key(point))
        return each

    def report(self, number: int, epoch: int, accuracy: float) -> None:
        """A trial of a point with one seed has done an epoch."""
        if len(self.search.seeds) == 1 and len(self.search.table.objectives) == 1 and number in self.trials:
            self._report(self.trials[number], epoch, accuracy)

    def tell(self, number: int, seed: int, row: dict[str, Any]) -> list[int]:
        """A trial of a point has ended. Returns the seeds with which it is not worth trying.

        row: status, and of a completed trial the columns of the objectives.
        """
        each, trial, seeds = self.points[number], self.trials[number], self.search.seeds
        each.rows[seed] = row
        if len(seeds) > 1:
            self._report_steps(trial, each)
        self._close_if_ended(each)
        worse = self.one_by_one and row["status"] == Status.COMPLETED and number in self.trials and trial.should_prune()
        return [other for other in seeds if other not in each.rows] if worse else []

    def _report_steps(self, trial: Trial, each: Tried) -> None:
        for step, accuracy in self._steps(each).items():
            self._report(trial, step, accuracy)

    def _report(self, trial: Trial, step: int, accuracy: float) -> None:
        """Tell a trial an accuracy, once: one whose worker died repeats its last epochs."""
        if step not in self.optuna.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(accuracy, step)

    def _steps(self, each: Tried) -> dict[int, float]:
        """The accuracies that a point's rows have: of several seeds by the place of each, of one by epoch."""
        seeds, rows = self.search.seeds, each.rows
        if len(self.search.table.objectives) > 1:
            return {}
        if len(seeds) == 1:
            return next((self.search.curves.get(row["trial_id"], {}) for row in rows.values() if "trial_id" in row), {})
        known = [(place, rows[seed]) for place, seed in enumerate(seeds) if seed in rows]
        return {place: row["val_acc"] for place, row in known if row.get("val_acc") is not None}

    def _close_if_ended(self, each: Tried) -> None:
        """Tell Optuna how a point has ended, once all its trials have."""
        seeds, status = self.search.seeds, each.status(self.search.seeds)
        if status is None or not each.ended(seeds):
            return
        trial, values = self.trials.pop(each.number), each.values(seeds, self.search.table.objectives)
        if values is not None:
            self.optuna.tell(trial, values)
        else:
            self.optuna.tell(trial, state=_STATES[status])

    def _new_study(self, p_threshold: float | None) -> optuna.Study:
        table, study = self.search.table, self.search.study
        # A sequence goes on where it was; other samplers would repeat their first draws.
        known = 0 if self.sampler.sequence else len(self.points)
        seed = int(digest([table.seed, study.id, known]), 16) % 2**32
        self.random = random.Random(seed)
        conditional = any(dim.when for dim in self.space.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = self.sampler.make(Setting(seed, self.search.budget, conditional))
            pruner: BasePruner = NopPruner() if p_threshold is None else WilcoxonPruner(p_threshold=p_threshold)
        directions = [OBJECTIVES[name][1] for name in table.objectives]
        return optuna.create_study(directions=directions, sampler=sampler, pruner=pruner)

    def _sampled(self) -> tuple[Trial, Point]:
        if self.search.table.sampler == "grid":
            return self._drawn(next(filter(self.search.can_run, self._not_tried())))
        for _ in range(1 + self.sampler.retries + (len(self.points) if self.sampler.sequence else 0)):
            trial = self.optuna.ask()
            point = self._suggested(trial)
            if self._may_try(point):
                return trial, point
            if (excess := self.search.excess(point)) and self.sampler.limits:
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
        if self.sampler.notes:
            _ = trial.relative_params  # with which the sampler counts the point in
        return trial

    def _suggested(self, trial: Trial) -> Point:
        point: Point = {}
        for name, dim in self.space.items():
            if space.exists(dim, point):
                point[name] = _decoded(dim, _suggest(trial, name, _distribution(dim)))
        return point

    def _key(self, point: Point) -> str:
        """What is equal for equal points, however their numbers are written."""
        return canonical(space.spelled(self.space, point))

    def _may_try(self, point: Point) -> bool:
        """Whether a point was not tried, and its student is within the limits."""
        return self._is_untried(point) and self.search.can_run(point)

    def _is_untried(self, point: Point) -> bool:
        return self._key(point) not in self.seen and not self.search.excess(point)

    def _not_tried(self) -> Iterator[Point]:
        """The points of a space that has an end, without those tried and those beyond the limits."""
        return filter(self._is_untried, space.points(self.space) or ())

    def _random_point(self) -> Point:
        """A point that was not tried, any one alike."""
        if not space.has_more_than(self.space, MANY):
            left = list(self._not_tried())
            self.random.shuffle(left)
            return next(filter(self.search.can_run, left))
        digits = space.DIGITS
        while not self._may_try(point := space.draw(self.space, self.random, digits)):
            digits += self._key(point) in self.seen  # few digits may give fewer values than there are points to try
        return point


def _distribution(dim: Dimension) -> BaseDistribution:
    """Of the number that stands for a value: itself in a range, its place among choices."""
    if dim.choices is not None:
        last = len(dim.choices) - 1
        return IntDistribution(0, last) if dim.ordered else CategoricalDistribution(tuple(range(last + 1)))
    assert dim.low is not None
    assert dim.high is not None
    high = dim.high if dim.values is None else dim.values[-1]  # which may lie below, where there is a step
    if dim.whole:
        return IntDistribution(round(dim.low), round(high), log=dim.log, step=round(dim.step or 1))
    return FloatDistribution(dim.low, high, log=dim.log, step=dim.step)


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
