"""How long trials take, from the rows of earlier ones."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from kdtrain import methods
from kdtrain.config import TrialConfig
from kdtrain.data import info_of, title
from kdtrain.models.cost import cost
from sweeps.job import Job

Row = Mapping[str, Any]


def multiply_adds(trials: Iterable[TrialConfig]) -> float | None:
    """The multiply-adds of training these trials: images x epochs x networks, as a measure for any machine.

    An image costs the student's forward pass three times (the backward pass is counted as two), and that of its teacher
    and of each assistant once. Stages before the epochs, losses, evaluation and probes are not counted. None if the
    number of images of a data set is known only when it is read.
    """
    total = 0.0
    for trial in trials:
        info = info_of(trial.data)
        if trial.probe is not None:
            continue
        if info.train_images is None:
            return None
        image = (info.num_classes, info.image_size, info.in_channels)
        forward = [cost(name, *image).multiply_adds for name in _networks(trial)]
        views = 4 if methods.rotated(trial.method) else 1
        images = trial.data.fraction * (info.train_images - trial.data.val_size)
        per_image = views * (3 * forward[0] + sum(forward[1:])) + methods.partners(trial.method) * forward[0]
        total += trial.train.epochs * images * per_image
    return total


def _networks(trial: TrialConfig) -> list[str]:
    """The student, its teacher and its assistants."""
    refs = [*([trial.teacher] if trial.teacher else []), *(trial.assistants or ())]
    return [trial.student, *(ref.model for ref in refs)]


class Cost:
    """Seconds of training for a trial on one slot, from completed rows of the same data set, networks and method.

    They are counted by epoch of the recipe, so that a stage before those epochs is included.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._same: dict[tuple[Any, ...], list[float]] = defaultdict(list)  # seconds an epoch, fraction alike
        self._scaled: dict[tuple[Any, ...], list[float]] = defaultdict(list)  # seconds an epoch at fraction 1
        for row in rows:
            if row["train_seconds"] and row["source_id"] is None:  # null unless completed; probes take next to nothing
                seconds = row["train_seconds"] / row["epochs"]
                key = (row["dataset"], row["image_size"], row["student"], row["teacher"], row["method"],
                       row["precision"], row["cpus"])  # fmt: skip
                self._same[*key, row["fraction"]].append(seconds)
                self._scaled[key].append(seconds / row["fraction"])

    def seconds(self, trial: TrialConfig, cpus: int) -> float | None:
        """The median of like trials, else scaled from other fractions; None without any. Probes take no time."""
        if trial.probe is not None:
            return 0.0
        key = (title(trial.data.dataset), trial.data.image_size, trial.student,
               trial.teacher and trial.teacher.model, trial.method.name, trial.train.precision, cpus)  # fmt: skip
        fraction, epochs = trial.data.fraction, trial.train.epochs
        if same := self._same.get((*key, fraction)):
            return median(same) * epochs
        if scaled := self._scaled.get(key):
            return median(scaled) * fraction * epochs
        return None

    def weights(self, jobs: Sequence[Job]) -> dict[str, float]:
        """Numbers proportional to the jobs' times, by key: seconds if all are known, else images times epochs."""
        known = {job.key: self.seconds(job.trial, job.where.cpus) for job in jobs}
        seconds = {key: value for key, value in known.items() if value is not None}
        if len(seconds) == len(known):
            return seconds
        return {job.key: 0.0 if job.trial.probe else job.trial.data.fraction * job.trial.train.epochs for job in jobs}

    def total(self, trials: Iterable[TrialConfig], cpus: int) -> tuple[float, int]:
        """The seconds of all trials for which they are known, and the number of those for which they are not."""
        known = [self.seconds(trial, cpus) for trial in trials if trial.probe is None]
        return sum(seconds for seconds in known if seconds is not None), known.count(None)
