"""Searches on a stored grid without Ray: a clock that counts epochs, and the code of `kd-sweep run` for all else.

Real are the studies (`Asking`), Ray's scheduler in `StudySchedulers` and `Replay`, which returns the stored epochs. The
calls come in the order in which Ray Tune makes them. Each of the workers trains one epoch of its trial in one tick.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from ray.tune.schedulers import TrialScheduler

from benchmarks.search_grid import Grid
from kdtrain.record import DivergedError
from sweeps.ask import Asking
from sweeps.job import Job, Maker
from sweeps.points import Tried
from sweeps.replay import Replay
from sweeps.scheduler import StudySchedulers
from sweeps.schema import Status
from sweeps.tables import SchedulerTable

WORKERS = 2
ROUNDING = 1e-9  # accuracies are multiples of 0.05 and their differences are not quite


@dataclass(frozen=True)
class Strategy:
    """How a search draws and stops points."""

    name: str
    sampler: str
    scheduler: SchedulerTable | None = None
    until: float = 1.0  # share of the grid's epochs after which it is given up


class Ended(NamedTuple):
    """A point of a search that has ended."""

    epochs: int  # trained until then by the whole search
    status: str
    accuracy: float | None  # the last one on held-out images


@dataclass
class _Running:
    """A trial at work."""

    each: Tried
    job: Job
    replay: Replay
    tune: Any  # what Tune calls a trial: something with an id


class Simulation:
    """One search on a grid."""

    def __init__(self, grid: Grid, strategy: Strategy, seed: int, trials: int | None, study: str | None) -> None:
        self.grid, self.strategy = grid, strategy
        self.asking = Asking(grid.search(strategy.sampler, seed, trials, study))
        self.make: Maker = grid.maker()
        self.jobs: dict[str, Job] = {}  # as `SweepSearch.jobs`
        search = self.asking.search
        table, blind = strategy.scheduler, {search.study.id: search.blind}
        self.schedulers = None if table is None else StudySchedulers(table, self.jobs, blind)
        self.epochs = 0

    def run(self) -> Iterator[Ended]:
        """The points in the order of their ends."""
        workers: list[_Running | None] = [self._begin() for _ in range(WORKERS)]
        limit = self.strategy.until * self.grid.epochs if self.strategy.until < 1 else math.inf
        while any(workers) and self.epochs < limit:
            for i, running in enumerate(workers):
                if running is not None and (ended := self._epoch(running)) is not None:
                    yield ended
                    workers[i] = self._begin()

    def _begin(self) -> _Running | None:
        if not self.asking.left:
            return None
        each, search = self.asking.ask(), self.asking.search
        (seed,) = search.seeds
        trial, _ = search.study.cell.trial(each.point, seed)
        job = self.make("student", trial, search.columns(each))
        replay = Replay(trial, self.grid.results, self.grid.sweep)
        assert replay.row["trial_id"] == job.id, "the grid has every point of its space"
        tune = SimpleNamespace(trial_id=f"{each.number}")
        self.jobs[tune.trial_id] = job
        return _Running(each, job, replay, tune)

    def _epoch(self, running: _Running) -> Ended | None:
        """An epoch of a trial, told to the scheduler and to the study as Tune does."""
        replay, number = running.replay, running.each.number
        try:
            replay.run_epoch()
        except DivergedError:
            return self._end(running, Status.DIVERGED, {})
        self.epochs += 1
        last = replay.records[-1]
        trained = sum(record.stage == "train" for record in replay.records)
        result = {"epoch": len(replay.records), "trained": trained, "acc": last.val_acc}
        if replay.done:  # the scheduler is not asked
            return self._end(running, Status.COMPLETED, result)
        stopped = False
        if self.schedulers is not None:
            decision = self.schedulers.on_trial_result(None, running.tune, result)
            stopped = decision == TrialScheduler.STOP
        if last.val_acc is not None:
            self.asking.report(number, trained, last.val_acc)
        return self._end(running, Status.STOPPED, result) if stopped else None

    def _end(self, running: _Running, status: Status, result: dict[str, Any]) -> Ended:
        if self.schedulers is not None and status != Status.STOPPED:
            self.schedulers.on_trial_complete(None, running.tune, result)
        row = {"status": status, "val_acc": result.get("acc"), "epochs_done": result.get("epoch", 0)}
        self.asking.tell(running.each.number, running.job.trial.seed, row)
        return Ended(self.epochs, str(status), result.get("acc"))


def simulate(
    grid: Grid, strategy: Strategy, seed: int, trials: int | None = None, study: str | None = None
) -> list[Ended]:
    """All points of a search with this seed in the order of their ends; trials: its budget, by default the grid."""
    return list(Simulation(grid, strategy, seed, trials, study).run())


def regret(ended: Iterable[Ended], best: float, epochs: float) -> float:
    """The best accuracy of the grid minus that of the points completed within `epochs`; infinite if none is."""
    found = (each.accuracy for each in ended if each.status == Status.COMPLETED and each.epochs <= epochs)
    return best - max((accuracy for accuracy in found if accuracy is not None), default=-math.inf)


def reached(ended: Sequence[Ended], best: float, within: float) -> float:
    """After how many epochs the regret is at most `within`; infinite if it never is."""
    good = (
        each.epochs
        for each in ended
        if each.status == Status.COMPLETED and each.accuracy is not None and best - each.accuracy <= within + ROUNDING
    )
    return min(good, default=math.inf)
