"""Which trials begin next, and which of a search are stopped early: one of Ray Tune's schedulers for each study."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from sweeps.job import Job
from sweeps.searches import Search
from sweeps.tables import SchedulerTable

METRIC, TIME = "acc", "trained"  # keys of results: accuracy on held-out images, epochs of the recipe done
BRACKETS = 3  # of hyperband: different grace periods side by side


def _asha(table: SchedulerTable, grace: int, epochs: int) -> TrialScheduler:
    return _hyperband(table, grace, epochs, brackets=1)


def _hyperband(table: SchedulerTable, grace: int, epochs: int, brackets: int = BRACKETS) -> TrialScheduler:
    return AsyncHyperBandScheduler(
        time_attr=TIME, metric=METRIC, mode="max", max_t=epochs, grace_period=min(grace, epochs),
        reduction_factor=table.reduction_factor, brackets=brackets, stop_last_trials=False,
    )  # fmt: skip


def _median(table: SchedulerTable, grace: int, epochs: int) -> TrialScheduler:
    return MedianStoppingRule(
        time_attr=TIME, metric=METRIC, mode="max", grace_period=min(grace, epochs), min_samples_required=3,
        min_time_slice=math.inf,  # type: ignore[arg-type]  # else trials are paused while there are few samples
    )  # fmt: skip


SCHEDULERS: dict[str, Callable[[SchedulerTable, int, int], TrialScheduler]] = {
    "asha": _asha,
    "hyperband": _hyperband,  # asynchronous: nothing is paused
    "median": _median,
}


@dataclass(frozen=True)
class Ended:
    """A trial of an earlier run, of which a scheduler wants the id."""

    trial_id: str


class InOrder(FIFOScheduler):
    """Begins trials in the order in which they were added, and lets all run.

    Tune's own looks at all trials of a run, also at those that have ended, each time that anything happens; and it
    gives the worker of a trial that has ended to the first that waits, though a worker may be starting for that one,
    which is then ended: while trials are shorter than the start of a worker, no second one would ever be up.

    places: for how many trials there is room for certain; more may wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places = 0
        self._open: list[Trial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its schedulers into a file that nobody reads."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial waits for a worker."""
        self._open.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first that waits; None where each has a place, for then Tune leaves each its worker. None is paused."""
        self._open = [trial for trial in self._open if not trial.is_finished()]
        if len(self._open) <= self.places:
            return None
        return next((trial for trial in self._open if trial.status == Trial.PENDING), None)


class StudySchedulers(InOrder):
    """Gives each trial of a search to the scheduler of its study, and lets all others run.

    Trials of different methods or pairs are never compared. A trial is seen from the first epoch on after which its
    accuracy means something. `jobs`: Tune's trial ids to jobs; `blind`: how many epochs do not count, by study.
    """

    def __init__(self, table: SchedulerTable, jobs: Mapping[str, Job], blind: Mapping[str, int]) -> None:
        super().__init__()
        self.table, self.jobs, self.blind = table, jobs, blind
        self.studies: dict[str, TrialScheduler] = {}
        self.seen: set[str] = set()  # Tune's ids of trials that a study's scheduler knows

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP or CONTINUE."""
        study = self._study(trial, result)
        if study is None:
            return str(TrialScheduler.CONTINUE)
        if trial.trial_id not in self.seen:
            self.seen.add(trial.trial_id)
            study.on_trial_add(tune_controller, trial)
        return str(study.on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """The last accuracy of a trial that ran to its end counts for others."""
        study = self._study(trial, result)
        if study is not None and trial.trial_id in self.seen:
            study.on_trial_complete(tune_controller, trial, result)

    def remember(self, search: Search) -> None:
        """Show a study's scheduler the trials of earlier runs, that later ones may be compared with them."""
        study: Any = self._of(search.study.id, search.study.example.train.epochs)  # Ray's need no controller for it
        for key, curve in search.curves.items():
            results = [{METRIC: acc, TIME: epoch} for epoch, acc in sorted(curve.items()) if epoch > search.blind]
            if results:
                trial = Ended(key)
                study.on_trial_add(None, trial)
                for result in results:
                    study.on_trial_result(None, trial, result)
                study.on_trial_complete(None, trial, results[-1])

    def _study(self, trial: Trial, result: Mapping[str, Any]) -> TrialScheduler | None:
        """The scheduler that should see a result; None if none should."""
        job = self.jobs.get(trial.trial_id)
        if job is None or job.searched.get("phase") != "search" or result.get(METRIC) is None:
            return None
        key = str(job.searched["study"])
        return self._of(key, job.trial.train.epochs) if result.get(TIME, 0) > self.blind[key] else None

    def _of(self, study: str, epochs: int) -> TrialScheduler:
        if study not in self.studies:
            self.studies[study] = SCHEDULERS[self.table.name](self.table, self.table.grace + self.blind[study], epochs)
        return self.studies[study]
