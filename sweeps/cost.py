"""How long trials take, from the rows of earlier ones."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from kdtrain.config import TrialConfig
from sweeps.job import Job

Row = Mapping[str, Any]


class Cost:
    """Seconds of training for a trial on one slot, from completed rows of the same data set, networks and method.

    They are counted by epoch of the recipe, so that a stage before those epochs is included.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._same: dict[tuple[Any, ...], list[float]] = defaultdict(list)  # seconds an epoch, fraction alike
        self._scaled: dict[tuple[Any, ...], list[float]] = defaultdict(list)  # seconds an epoch at fraction 1
        for row in rows:
            if row["train_seconds"]:  # null unless completed
                seconds = row["train_seconds"] / row["epochs"]
                key = (row["dataset"], row["student"], row["teacher"], row["method"], row["precision"], row["cpus"])
                self._same[*key, row["fraction"]].append(seconds)
                self._scaled[key].append(seconds / row["fraction"])

    def seconds(self, trial: TrialConfig, cpus: int) -> float | None:
        """The median of like trials, else scaled from other fractions; None without any."""
        key = (trial.data.dataset, trial.student, trial.teacher and trial.teacher.model, trial.method.name,
               trial.train.precision, cpus)  # fmt: skip
        fraction, epochs = trial.data.fraction, trial.train.epochs
        if same := self._same.get((*key, fraction)):
            return median(same) * epochs
        if scaled := self._scaled.get(key):
            return median(scaled) * fraction * epochs
        return None

    def weights(self, jobs: Sequence[Job]) -> dict[str, float]:
        """Numbers proportional to the jobs' times, by id: seconds if all are known, else images times epochs."""
        known = {job.id: self.seconds(job.trial, job.where.cpus) for job in jobs}
        seconds = {key: value for key, value in known.items() if value is not None}
        if len(seconds) == len(known):
            return seconds
        return {job.id: job.trial.data.fraction * job.trial.train.epochs for job in jobs}

    def total(self, trials: Iterable[TrialConfig], cpus: int) -> tuple[float, int]:
        """The seconds of all trials for which they are known, and the number of those for which they are not."""
        known = [self.seconds(trial, cpus) for trial in trials]
        return sum(seconds for seconds in known if seconds is not None), known.count(None)
