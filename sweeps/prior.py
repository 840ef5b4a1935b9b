"""Starting points from another sweep: the best of the same method, of the nearest pairs first."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, zip_longest
from statistics import fmean
from typing import Any

from kdtrain.config import ConfigError, canonical
from kdtrain.data import info_of, title
from kdtrain.models.cost import parameters
from sweeps import space
from sweeps.plan import Study
from sweeps.schema import SEARCHED, Status
from sweeps.searched import TRAIN, architectures, flat
from sweeps.space import Point
from sweeps.store import Store
from sweeps.store import sweeps as sweeps_in
from sweeps.tables import Spec

SHARE = 4  # one in so many points of a study may come from the prior, and one in any case
Row = Mapping[str, Any]


def first_points(spec: Spec, prior: str) -> Callable[[Study], list[Point]]:
    """A function from a study to the points that the sweep `prior` suggests for it; ConfigError if it has none."""
    store = Store(spec.run.results, prior)
    rows = [
        row
        for row in store.read_trials().to_pylist()
        if row["role"] == "student" and row["phase"] != "confirm" and row["status"] == Status.COMPLETED
    ]
    rows = [row for row in rows if row["val_acc"] is not None]
    if not rows:
        known = ", ".join(sweeps_in(spec.run.results)) or "none"
        raise ConfigError(f"search.prior must name a sweep with trials that have a val_acc, but got {prior!r}. "
                          f"Sweeps in {spec.run.results}: {known}.")  # fmt: skip
    return lambda study: _points(study, rows, spec.search.trials if spec.search else None)


def _points(study: Study, rows: Iterable[Row], trials: int | None) -> list[Point]:
    """The best point of each cell, nearest cells first, then the second best of each: a SHARE of the budget, or one."""
    cells: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["method"] == study.example.method.name:
            cells[row["dataset"], row["teacher"], row["student"], row["fraction"]].append(row)
    near = sorted(cells.values(), key=lambda same: _distance(study, same[0]))
    ranked = (_best_first(study, same) for same in near)
    turns = chain.from_iterable(zip_longest(*ranked))
    unique = {canonical(point): point for point in turns if point is not None}
    return list(unique.values())[: max(1, (trials or 0) // SHARE)]


def _best_first(study: Study, rows: Iterable[Row]) -> list[Point]:
    """The points of a cell that are of the study's space, by the mean of their accuracies."""
    scores: dict[str, list[float]] = defaultdict(list)
    students = architectures(study.space)
    for row in rows:
        values = {**flat(json.loads(row["params"])), **{f"{TRAIN}.{key}": value for key, value in row.items()}}
        values |= students.get(row["student"], {})
        point = {name: values[name] for name in study.space if name in values}
        if space.misfit(study.space, point) is None:
            scores[canonical(space.spelled(study.space, point))].append(row["val_acc"])
    return [json.loads(text) for text in sorted(scores, key=lambda text: -fmean(scores[text]))]


def _distance(study: Study, row: Row) -> tuple[float, float, bool]:
    """Of a cell from the study's: by the logarithms of the networks' sizes, then by the fraction, then the data set."""
    trial, info = study.example, info_of(study.example.data)

    def size(name: str) -> float:
        return math.log(parameters(name, info.num_classes, info.in_channels))

    teacher, student = trial.teacher.model if trial.teacher else None, study.axes["pair"].rpartition("/")[2]
    apart = 0.0 if student == SEARCHED else abs(size(student) - size(row["student"]))
    if teacher is not None and row["teacher"] is not None:
        apart += abs(size(teacher) - size(row["teacher"]))
    elif teacher != row["teacher"]:
        apart = math.inf
    other = title(trial.data.dataset) != row["dataset"]
    return apart, abs(math.log(trial.data.fraction / row["fraction"])), other
