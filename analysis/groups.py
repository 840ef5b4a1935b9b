"""Trials -> groups of repetitions: trials that differ in their seeds alone, and may be averaged."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import Column, is_paired, shown
from analysis.configuration import (
    PARAMS,
    SEARCHES,
    STUDY,
    TEACHERS,
    UNKNOWN,
    Config,
    Networks,
    Settings,
    printed,
    student_config,
    teacher_config,
)
from analysis.confirmed import Point, confirmed_points
from analysis.load import Row, Sweep, records
from analysis.names import method_order, natural_order, ordinal
from sweeps.schema import IDENTITY, SEARCH

PLACE = "point"  # the setting that tells the place of a point that is not the best of its study
_REPEATS = {"trial_id", "seed", "view_seed", "assistant_ids"}  # assistants follow from the teacher
_COMMON = [field.name for field in (*IDENTITY, *SEARCH) if field.name not in _REPEATS]
Trials = Mapping[str, np.ndarray]  # column -> its values
TEACHER = "teacher"  # the method name of the rows that show the teachers themselves, or their probes


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials of one configuration, with different seeds."""

    dataset: str
    column: Column
    method: str
    settings: Settings  # the keys in which rows of this method differ within a cell
    rows: tuple[Row, ...]  # what its trials are: without their seeds and results, in which those of one row differ
    trials: Trials
    places: tuple[int, ...]  # of its own among these trials
    point: Point | None = None  # None of trials that no search chose

    def entries(self, key: str) -> list[Any]:
        """What its trials have in a column."""
        values = self.trials[key]
        return [values[place] for place in self.places]

    def completed(self, key: str) -> list[Any]:
        """What its completed trials have in a column, those that have anything."""
        pairs = zip(self.entries(key), self.entries("status"), strict=True)
        return [value for value, status in pairs if status == "completed" and value is not None]

    def values(self, key: str) -> list[float]:
        """A metric of the completed trials that have it."""
        return [float(value) for value in self.completed(key)]

    def order(self) -> tuple[Any, ...]:
        """Sort key: data set, then as the rows of a table."""
        settings = [(key, natural_order(value)) for key, value in self.settings]
        return (natural_order(self.dataset), method_order(self.method), settings, self.column.order())


@dataclass(frozen=True, kw_only=True)
class _Item:
    """Trials that differ in their seeds alone, the columns they belong to, and their configuration."""

    row: Row
    trials: Trials
    places: list[int]
    dataset: str
    method: str
    columns: tuple[Column, ...]
    config: Config
    point: Point | None = None


def student_trials(sweep: Sweep) -> pd.DataFrame:
    """The trials of a sweep but for the probes of its teachers."""
    teachers = set(sweep.teachers["trial_id"]) - set(sweep.trials["trial_id"])
    return sweep.trials[~sweep.trials["source_id"].isin(teachers)]


def group_students(sweep: Sweep) -> list[Group]:
    """The groups of a sweep's students, and of their probes.

    Trials without a teacher, and those whose teacher is not the pair's, belong to every pair of their student.
    The confirmed points of a study are groups of their own. The search, not the test set, places them: the settings of
    all but its best tell their place.
    """
    trials = _columns(student_trials(sweep))
    rows, networks, points = _alike(trials), _networks(sweep), confirmed_points(sweep)
    paired: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row, _ in rows:
        if is_paired(row):
            paired[shown(row), row["student"]].add(row["teacher"])
    items = []
    for row, places in rows:
        pairs = paired[shown(row), row["student"]]
        names: list[str | None] = [row["teacher"]] if is_paired(row) else [*sorted(pairs)] or [None]
        item = _Item(
            row=row,
            trials=trials,
            places=places,
            dataset=shown(row),
            method=row["method"],
            columns=tuple(Column(teacher=name, student=row["student"], fraction=row["fraction"]) for name in names),
            config=student_config(row, networks),
            point=points.get((row["study"], row["point"])),
        )
        items.append(item)
    return _group(items)


def group_teachers(sweep: Sweep, students: Iterable[Group]) -> list[Group]:
    """The groups of the teachers of the pairs of these students, and of all probes of teachers.

    They stand in their students' columns; a probe without students there has a column of its own.
    """
    networks = _networks(sweep)
    teachers = {row["trial_id"]: (place, row) for place, row in enumerate(records(sweep.teachers))}
    places: dict[tuple[str, str, bool], dict[Column, None]] = defaultdict(dict)
    for group in students:
        for row in group.rows:
            if is_paired(row) and row["teacher_id"] in teachers:
                places[row["teacher_id"], group.dataset, row["source_id"] is not None][group.column] = None
    trained, probes = _columns(sweep.teachers), sweep.trials[sweep.trials["source_id"].isin(teachers)]
    found = [
        (trained, *teachers[key], name, tuple(columns)) for (key, name, probed), columns in places.items() if not probed
    ]
    probed_columns = _columns(probes)
    for place, row in enumerate(records(probes)):
        alone = Column(teacher=None, student=row["student"], fraction=row["fraction"])
        beside = places.get((row["source_id"], shown(row), True), ())
        same = tuple(column for column in beside if column.fraction == row["fraction"])
        found.append((probed_columns, place, row, shown(row), same or (alone,)))
    return _group(
        [
            _Item(
                row=row,
                trials=trials,
                places=[place],
                dataset=name,
                method=TEACHER,
                columns=columns,
                config=teacher_config(row, networks),
            )
            for trials, place, row, name, columns in found
        ]
    )


def _columns(trials: pd.DataFrame) -> Trials:
    return {str(name): trials[name].to_numpy() for name in trials.columns}


def _alike(trials: Trials) -> list[tuple[Row, list[int]]]:
    """The distinct rows of trials without what repetitions differ in, and the places of the trials of each."""
    n = len(trials["trial_id"])
    varying = [name for name in _COMMON if len(set(trials[name])) > 1]
    found: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, key in enumerate(zip(*(trials[name] for name in varying), strict=True) if varying else [()] * n):
        found[key].append(place)
    fixed = {name: trials[name][0] for name in _COMMON if n}
    return [({**fixed, **dict(zip(varying, key, strict=True))}, places) for key, places in found.items()]


def _networks(sweep: Sweep) -> Networks:
    """What trials of the sweep learned from, or probe."""
    ids = {*sweep.trials["teacher_id"], *sweep.trials["source_id"]}
    return Networks(
        row for trials in (sweep.trials, sweep.teachers) for row in records(trials[trials["trial_id"].isin(ids)])
    )


def _group(items: list[_Item]) -> list[Group]:
    methods: dict[tuple[str, str], list[_Item]] = defaultdict(list)
    for item in items:
        methods[item.dataset, item.method].append(item)
    groups = [group for same in methods.values() for group in _group_method(same)]
    return sorted(groups, key=Group.order)


def _group_method(items: list[_Item]) -> list[Group]:
    """The groups of the items of one method on one data set."""
    keys = _varying(items)
    if _merge_studies(items, keys):
        keys.append(STUDY)
    shown = {key: printed({item.config.get(key) for item in items}) for key in keys}
    buckets: dict[tuple[Settings, Column, Point | None], list[_Item]] = defaultdict(list)
    for item in items:
        settings = tuple((key.replace(PARAMS, ""), shown[key][item.config.get(key)]) for key in keys)
        if item.point is not None and item.point.place > 1:
            settings += ((PLACE, f"{ordinal(item.point.place)} best"),)
        for column in item.columns:
            buckets[settings, column, item.point].append(item)
    return [
        Group(
            dataset=items[0].dataset,
            column=column,
            method=items[0].method,
            settings=settings,
            rows=tuple(item.row for item in same),
            trials=same[0].trials,
            places=tuple(sorted(place for item in same for place in item.places)),
            point=point,
        )
        for (settings, column, point), same in buckets.items()
    ]


def _merge_studies(items: list[_Item], keys: list[str]) -> bool:
    """Whether some cell has several studies, or a study and planned trials, that these keys do not tell apart."""
    cells: dict[tuple[Any, ...], set[str | None]] = defaultdict(set)
    for item in items:
        for column in item.columns:
            cells[column, *(item.config.get(key) for key in keys)].add(item.config.get(STUDY))
    return any(len(studies) > 1 for studies in cells.values())


def _varying(items: list[_Item]) -> list[str]:
    """The configuration keys of which some cell has more than one value.

    Those of a teacher or a search are compared among trials that have one: whether there is one follows from others.
    """
    cells: dict[Column, list[Config]] = defaultdict(list)
    for item in items:
        for column in item.columns:
            cells[column].append(item.config)
    keys = dict.fromkeys(key for item in items for key in item.config if key != STUDY)
    having: dict[str, list[list[Config]]] = {}
    for prefix in (TEACHERS, SEARCHES):
        some = {key for key in keys if key.startswith(prefix)}
        having[prefix] = [[one for one in configs if not some.isdisjoint(one)] for configs in cells.values()]

    def varies(key: str) -> bool:
        compared = next((having[prefix] for prefix in having if key.startswith(prefix)), cells.values())
        return any(len({config.get(key) for config in configs} - {UNKNOWN}) > 1 for configs in compared)

    return [key for key in keys if varies(key)]
