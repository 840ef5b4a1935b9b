"""How long trials take, learned from the rows of earlier ones."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from kdtrain import methods
from kdtrain.catalogue import measured
from kdtrain.config import ConfigError, DataConfig, MethodRef, TrialConfig
from kdtrain.data import info_of, title
from kdtrain.device import device_name, device_of
from kdtrain.models.cost import cost
from sweeps.schema import Status
from sweeps.spec import where
from sweeps.store import TEACHERS, Store, sweeps
from sweeps.tables import Spec

Row = Mapping[str, Any]
COLUMNS = [  # of TRIALS, from which costs are learned
    "dataset", "fraction", "val_size", "image_size", "student", "teacher", "method", "precision", "cpus", "device",
    "n_train", "epochs", "train_seconds", "teacher_seconds", "shared_seconds", "teacher_epochs", "assistant_ids",
    "source_id", "replayed", "status",
]  # fmt: skip


class Key(NamedTuple):
    """What trials of like cost have in common, beside the number of images."""

    dataset: str
    image_size: int | None
    student: str
    teacher: str | None
    method: str
    precision: str
    cpus: int


class Estimate(NamedTuple):
    """Seconds on one slot, and whether trials of the same kind took them; else they are from multiply-adds."""

    seconds: float
    like: bool


def learned(spec: Spec) -> "Cost":
    """The costs on this machine's device, from the rows of a sweep and of teachers; before any, of all other sweeps."""
    results, name = spec.run.results, spec.sweep.name
    rows = _rows(results, name)
    others = () if rows else (other for other in sweeps(results) if other != name)
    every = [*rows, *(row for other in (TEACHERS, *others) for row in _rows(results, other))]
    return Cost(every, device_name(device_of(where(spec))))


def _rows(results: str, name: str) -> list[Row]:
    found: list[Row] = Store(results, name).read_trials(columns=COLUMNS).to_pylist()
    return found


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
    """Seconds of training on one slot, from the completed rows of one device.

    `device`: the one that is asked about; that of most rows where none is of it, see `device`. What a teacher costs
    whose outputs are computed for whole epochs, which trials may share, is apart from what the trial itself costs.
    Times are counted by epoch of the recipe, so that a stage before those epochs is included.
    """

    def __init__(self, rows: Iterable[Row], device: str = "cpu") -> None:
        told = [row for row in rows if _tells(row)]
        devices = [row["device"] for row in told]
        self.measured, self.is_of_asked_device = bool(told), device in devices
        self.device = device if device in devices or not devices else max(sorted(set(devices)), key=devices.count)
        self._totals: dict[str, tuple[int, int]] = {}  # images trained on, all training images: of data sets
        self._own: dict[Key, list[tuple[int, float]]] = defaultdict(list)  # images, seconds an epoch
        self._teachers: dict[Key, list[float]] = defaultdict(list)  # seconds an image of computing outputs
        self._reading: dict[Key, list[float]] = defaultdict(list)  # seconds an image of reading those of others
        self._epochs: dict[tuple[Key, int | None], Estimate | None] = {}  # what is known of an epoch
        for row in told:
            if row["device"] == self.device:
                self._learn(row)

    def _learn(self, row: Row) -> None:
        key, images, epochs = Key(*(row[name] for name in Key._fields)), row["n_train"], row["epochs"]
        total = images, round(images / row["fraction"]) + row["val_size"]
        self._totals[key.dataset] = max(total, self._totals.get(key.dataset, total))  # the least rounded
        teacher, shared = row["teacher_seconds"] or 0.0, row["shared_seconds"] or 0.0
        self._own[key].append((images, (row["train_seconds"] - teacher - shared) / epochs))
        if not row["assistant_ids"]:
            of_teacher = key._replace(student="", method="")
            if row["teacher_epochs"]:
                self._teachers[of_teacher].append(teacher / row["teacher_epochs"] / images)
            elif shared:
                self._reading[of_teacher].append(shared / epochs / images)

    def estimate(self, trial: TrialConfig, cpus: int) -> Estimate | None:
        """What the trial itself costs. None where no row says anything of it.

        The median of trials of as many images; else their times are taken as linear in the images; else, of another
        kind, as proportional to multiply-adds and to what the method's step costs.
        """
        if trial.probe is not None:
            return Estimate(0.0, True)
        kind = _key(trial, cpus), self.images(trial)
        if kind not in self._epochs:  # of long plans many trials are of a kind
            self._epochs[kind] = self._epoch(*kind)
        found = self._epochs[kind]
        return None if found is None else found._replace(seconds=found.seconds * trial.train.epochs)

    def _epoch(self, key: Key, images: int | None) -> Estimate | None:
        if images is not None and (known := self._own.get(key)):
            return Estimate(_at(known, images), True)
        rate, work = self._rate(key), _work(key)
        if images is None or rate is None or work is None:
            return None
        return Estimate(rate * work * images, False)

    def seconds(self, trial: TrialConfig, cpus: int) -> float | None:
        """The seconds of `estimate`."""
        found = self.estimate(trial, cpus)
        return None if found is None else found.seconds

    def teacher_seconds(self, trial: TrialConfig, cpus: int) -> float | None:
        """What the outputs of the trial's teacher for all images of an epoch cost; None where no row says it."""
        return self._per_epoch(self._teachers, trial, cpus)

    def reading_seconds(self, trial: TrialConfig, cpus: int) -> float | None:
        """What it costs to read them where another trial has computed them; None where no row says it."""
        return self._per_epoch(self._reading, trial, cpus)

    def images(self, trial: TrialConfig) -> int | None:
        """How many images the trial trains on, to within one for each class; None where no row of a folder says it."""
        _, total = self._totals.get(title(trial.data.dataset), (0, None))
        every = info_of(trial.data).train_images or total
        return None if every is None else max(1, round(trial.data.fraction * (every - trial.data.val_size)))

    def _per_epoch(self, known: Mapping[Key, list[float]], trial: TrialConfig, cpus: int) -> float | None:
        images = self.images(trial)
        found = known.get(_key(trial, cpus)._replace(student="", method=""))
        return None if images is None or not found else median(found) * images

    def _rate(self, wanted: Key) -> float | None:
        """Seconds for a unit of `_work`: the median of rows of the same student, else of all that compare at all."""
        alike: dict[bool, list[float]] = {True: [], False: []}
        for key, known in self._own.items():
            if (key.precision, key.cpus) == (wanted.precision, wanted.cpus) and (work := _work(key)):
                rates = [seconds / images / work for images, seconds in known]
                alike[key.student == wanted.student].append(median(rates))
        found = alike[True] or alike[False]
        return median(found) if found else None


NOTHING_KNOWN = Cost(())


def _tells(row: Row) -> bool:
    """Whether a row says what training takes: not of a replay, which trains nothing, nor of a probe."""
    trained = row["status"] == Status.COMPLETED and row["replayed"] is None and row["source_id"] is None
    return trained and bool(row["train_seconds"] and row["n_train"])


def _key(trial: TrialConfig, cpus: int) -> Key:
    teacher = None if trial.teacher is None else trial.teacher.model
    return Key(
        title(trial.data.dataset), trial.data.image_size, trial.student, teacher, trial.method.name,
        trial.train.precision, cpus,
    )  # fmt: skip


def _at(known: list[tuple[int, float]], images: int) -> float:
    """Seconds an epoch for so many images, from (images, seconds) of others."""
    by_size: dict[int, list[float]] = defaultdict(list)
    for n, seconds in known:
        by_size[n].append(seconds)
    near = min(by_size, key=lambda n: abs(n - images))
    if abs(near - images) <= 0.01 * images:
        return median(by_size[near])
    per_image = median(seconds / n for n, seconds in known)
    if len(by_size) == 1:
        return per_image * images
    sizes = sorted(by_size)
    slope, constant = np.polyfit(sizes, [median(by_size[n]) for n in sizes], 1)  # evaluation costs the same for all
    return float(slope * images + constant) if slope > 0 and constant >= 0 else per_image * images


@cache
def _work(key: Key) -> float | None:
    """What an image costs in multiply-adds, as far as it can be known; None for the images of a folder.

    Three forward passes of the student, by the cost of the method's step beside the plain one, and one of a teacher
    that is asked in each step.
    """
    try:
        info = info_of(DataConfig(dataset=key.dataset, image_size=key.image_size))
        image = info.num_classes, info.image_size, info.in_channels
        own = 3 * cost(key.student, *image).multiply_adds * _step(key.method)
        if key.teacher is None or methods.why_live(MethodRef(name=key.method)) is None:
            return own
        return own + cost(key.teacher, *image).multiply_adds
    except ConfigError:
        return None


def _step(method: str) -> float:
    """The cost of a step without the teacher beside the plain student's, as measured; 1 of methods that were not."""
    costs = next(iter(measured()["pairs"].values()))
    own = [float(costs[part]["without_teacher"][1]) for part in method.split("+") if part in costs]
    return 1 + sum(ratio - 1 for ratio in own)
