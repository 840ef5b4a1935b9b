"""Rows of searches -> Optuna studies with their values, for Optuna's plots and for optuna-dashboard.

This file does not know specs, samplers, budgets or schedulers, nor which points are still to come: it tells what rows
of ended trials say. It asks no sampler anything, and writes no result file.
"""

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweeps.points import Tried, tried
from sweeps.schema import FAMILY, OBJECTIVES, SEARCHED, Status

Row = Mapping[str, Any]
STUDY = "kdsweep_study"  # attribute of an Optuna study: the id of the search that it shows
TRIAL_IDS = "trial_ids"  # attribute of an Optuna trial: the trials of its point


@dataclass(frozen=True, kw_only=True)
class Point:
    """The values that a study tried, and what became of their trials."""

    number: int
    values: dict[str, Any]
    rows: tuple[Row, ...]  # of its trials, in the order of the seeds
    status: Status | None  # the worst of its trials'; None while trials are missing and the others completed
    scores: tuple[float, ...] | None  # means over the seeds, by objective; None unless completed and weighed
    accuracy: float | None  # mean val_acc over the seeds, percent; None unless completed

    @property
    def trial_ids(self) -> list[str]:
        """The ids of its trials."""
        return [row["trial_id"] for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class Search:
    """The points of one study, in the order of asking."""

    id: str
    newest: Row  # the row that ended last: what was searched may have changed
    points: tuple[Point, ...]
    distributions: dict[str, BaseDistribution]  # of all rows' spaces together, those of the newest first

    @property
    def objectives(self) -> list[str]:
        """What is weighed, names of schema.OBJECTIVES."""
        return list(self.newest["objectives"])

    @property
    def student(self) -> str:
        """The student of all points, or SEARCHED."""
        return SEARCHED if FAMILY in self.distributions else str(self.newest["student"])

    @property
    def pair(self) -> str:
        """As in a spec: teacher/student, or the student alone where it has no teacher other than itself."""
        return _pair(None if self.newest["self_taught"] else self.newest["teacher"], self.student)

    @property
    def rows(self) -> list[Row]:
        """The rows of all its trials."""
        return [row for point in self.points for row in point.rows]


def searches(rows: Iterable[Row]) -> list[Search]:
    """The searches that the rows (the columns of TRIALS) belong to, by id. Rows of other phases are left out."""
    studies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["phase"] == "search":
            studies[row["study"]].append(row)
    return [_search(key, studies[key]) for key in sorted(studies)]


def trials(search: Search, epochs: Iterable[Row]) -> list[FrozenTrial]:
    """A trial for each point that has ended: COMPLETE with its scores, PRUNED if stopped, else FAIL.

    FAIL is also what completed before all the objectives were weighed: Optuna has no trial without a value of one.

    epochs: rows (the columns of EPOCHS) of the search's stopped trials; others are not looked at.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for row in epochs:
        if row["stage"] == "train" and _is_finite(row["val_acc"]):
            curves[row["trial_id"]][row["epoch"]] = row["val_acc"]
    return [_trial(search, point, curves) for point in search.points if point.status is not None]


def study(search: Search, epochs: Iterable[Row], name: str | None = None) -> optuna.Study:
    """The search as a study in memory. Its trials are numbered without the points that have not ended."""
    with quiet():
        made = optuna.create_study(study_name=name or search.id, directions=directions(search))
        describe(made, search)
    made.add_trials(trials(search, epochs))
    return made


def directions(search: Search) -> list[StudyDirection]:
    """Optuna's direction of each objective."""
    return [StudyDirection[OBJECTIVES[name][1].upper()] for name in search.objectives]


def describe(made: optuna.Study, search: Search) -> None:
    """Say in a study whose it is and what its values are."""
    made.set_user_attr(STUDY, search.id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # since 3.2; without it values have no names
        made.set_metric_names(search.objectives)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's message for each study that it creates."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def distribution(dims: Sequence[Mapping[str, Any]], values: Sequence[Any] = ()) -> BaseDistribution:
    """The one distribution that holds all of these dimensions, as of a space's JSON, and values.

    Optuna wants the same choices in all trials of a study, also where a spec was changed. The first dimension says the
    kind: all choices that there ever were, or the widest range; logarithmic and stepped only if that holds all values.
    """
    ranges = [dim for dim in dims if dim.get("choices") is None]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not dims or dims[0].get("choices") is not None or not numeric:
        choices = [choice for dim in dims for choice in dim.get("choices") or ()]
        return CategoricalDistribution(_each_once([*map(plain, choices), *map(plain, values)]))
    low = min([dim["low"] for dim in ranges] + list(values))
    high = max([dim["high"] for dim in ranges] + list(values))
    log, step = bool(ranges[0].get("log")) and low > 0, ranges[0].get("step")
    if log or any(abs(k - round(k)) > 1e-8 for k in [(value - low) / (step or 1) for value in values]):
        step = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the last step may end below high
        if all(dim.get("int") for dim in ranges) and all(float(value).is_integer() for value in values):
            return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
        return FloatDistribution(low, high, log=log, step=step)


def plain(value: Any) -> Any:
    """A value as Optuna can store it: lists and tables as their JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)


def _search(key: str, rows: list[Row]) -> Search:
    rows = sorted(rows, key=lambda row: row["ended_at"], reverse=True)
    made = tuple(_point(each, rows[0]["objectives"]) for each in tried(rows))
    spaces = [json.loads(text) for text in dict.fromkeys(row["space"] for row in rows)]
    names = dict.fromkeys(name for table in [*spaces, *(point.values for point in made)] for name in table)
    return Search(
        id=key,
        newest=rows[0],
        points=made,
        distributions={
            name: distribution(
                [table[name] for table in spaces if name in table],
                [point.values[name] for point in made if name in point.values],
            )
            for name in names
        },
    )


def _point(each: Tried, objectives: Sequence[str]) -> Point:
    first = next(iter(each.rows.values()))
    seeds = first["seeds"] or [first["seed"]]
    accuracy, scores = each.values(seeds, ["val_acc"]), each.values(seeds, objectives)
    return Point(
        number=each.number,
        values=each.point,
        rows=tuple(each.rows[seed] for seed in seeds if seed in each.rows),
        status=each.status(seeds),
        scores=None if scores is None else tuple(scores),
        accuracy=None if accuracy is None else accuracy[0],
    )


def _trial(search: Search, point: Point, curves: Mapping[str, Mapping[int, float]]) -> FrozenTrial:
    assert point.status is not None
    first, unscored = point.rows[0], TrialState.PRUNED if point.status is Status.STOPPED else TrialState.FAIL
    trial = optuna.create_trial(
        state=unscored if point.scores is None else TrialState.COMPLETE,
        values=point.scores,
        params={name: _cast(search.distributions[name], value) for name, value in point.values.items()},
        distributions={name: search.distributions[name] for name in point.values},
        intermediate_values=_intermediate(point, curves) if point.status is Status.STOPPED else None,
        user_attrs={
            TRIAL_IDS: point.trial_ids,
            "number": point.number,
            "origin": first["origin"],
            "status": point.status.value,
            "method": first["method"],
            "pair": _pair(first["teacher"], first["student"]),
        },
    )
    trial.datetime_start = _local(min(row["started_at"] for row in point.rows))
    trial.datetime_complete = _local(max(row["ended_at"] for row in point.rows))
    return trial


def _intermediate(point: Point, curves: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """Of a stopped point with one seed val_acc by epoch; with several, by the seed's place among them.

    Of several objectives nothing, as Optuna has no intermediate values for them.
    """
    if len(point.rows[0]["objectives"]) > 1:
        return {}
    seeds = list(point.rows[0]["seeds"] or [point.rows[0]["seed"]])
    if len(seeds) == 1:
        return dict(curves.get(point.rows[0]["trial_id"], {}))
    return {seeds.index(row["seed"]): row["val_acc"] for row in point.rows if _is_finite(row["val_acc"])}


def _cast(dist: BaseDistribution, value: Any) -> Any:
    if isinstance(dist, CategoricalDistribution):
        return plain(value)
    return int(value) if isinstance(dist, IntDistribution) else float(value)


def _each_once(values: Iterable[Any]) -> list[Any]:
    return list({(isinstance(value, bool), value): value for value in values}.values())


def _pair(teacher: str | None, student: str) -> str:
    return f"{teacher}/{student}" if teacher else student


def _local(moment: datetime) -> datetime:
    """As Optuna stores times: local, without a zone."""
    return moment.astimezone().replace(tzinfo=None)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
