"""Which trials of a search are stopped early: one of Ray Tune's schedulers for each study."""

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


class StudySchedulers(FIFOScheduler):
    """Gives each trial of a search to the scheduler of its study, and lets all others run.

    Trials of different methods or pairs are never compared. A trial is seen from the first epoch on after which its
    accuracy means something. `jobs`: Tune's trial ids to jobs; `blind`: how many epochs do not count, by study.
    """

    def __init__(self, table: SchedulerTable, jobs: Mapping[str, Job], blind: Mapping[str, int]) -> None:
        super().__init__()
        self.table, self.jobs, self.blind = table, jobs, blind
        self.studies: dict[str, TrialScheduler] = {}
        self.seen: set[str] = set()  # Tune's ids of trials that a study's scheduler knows

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its schedulers into a file that nobody reads."""
        return {}

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
