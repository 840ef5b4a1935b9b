"""Trials -> groups of repetitions: trials that differ in their seeds alone, and may be averaged."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.columns import Column, is_paired, shown
from analysis.configuration import (
    PARAMS,
    SEARCHES,
    STUDY,
    TEACHERS,
    UNKNOWN,
    Config,
    Settings,
    printed,
    student_config,
    teacher_config,
)
from analysis.confirmed import Point, confirmed_points
from analysis.load import Row, Sweep, records
from analysis.names import method_order, natural_order, ordinal

PLACE = "point"  # the setting that tells the place of a point that is not the best of its study
TEACHER = "teacher"  # the method name of the rows that show the teachers themselves, or their probes


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials of one configuration, with different seeds."""

    dataset: str
    column: Column
    method: str
    settings: Settings  # the keys in which rows of this method differ within a cell
    trials: pd.DataFrame
    point: Point | None = None  # None of trials that no search chose

    def values(self, key: str) -> list[float]:
        """A metric of the completed trials that have it."""
        completed = self.trials[self.trials["status"] == "completed"]
        return [float(value) for value in completed[key].dropna()]

    def order(self) -> tuple[Any, ...]:
        """Sort key: data set, then as the rows of a table."""
        settings = [(key, natural_order(value)) for key, value in self.settings]
        return (natural_order(self.dataset), method_order(self.method), settings, self.column.order())


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A trial, the columns it belongs to, and its configuration."""

    row: Row
    dataset: str
    method: str
    columns: tuple[Column, ...]
    config: Config
    point: Point | None = None


def student_rows(sweep: Sweep) -> list[Row]:
    """The trials of a sweep but for the probes of its teachers."""
    teachers = set(sweep.teachers["trial_id"]) - set(sweep.trials["trial_id"])
    return [row for row in records(sweep.trials) if row["source_id"] not in teachers]


def group_students(sweep: Sweep) -> list[Group]:
    """The groups of a sweep's students, and of their probes.

    Trials without a teacher, and those whose teacher is not the pair's, belong to every pair of their student.
    The confirmed points of a study are groups of their own. The search, not the test set, places them: the settings of
    all but its best tell their place.
    """
    rows, networks, points = student_rows(sweep), _networks(sweep), confirmed_points(sweep)
    paired: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if is_paired(row):
            paired[shown(row), row["student"]].add(row["teacher"])
    items = []
    for row in rows:
        pairs = paired[shown(row), row["student"]]
        names: list[str | None] = [row["teacher"]] if is_paired(row) else [*sorted(pairs)] or [None]
        columns = tuple(Column(teacher=name, student=row["student"], fraction=row["fraction"]) for name in names)
        config = student_config(row, networks)
        point = points.get((row["study"], row["point"]))
        item = _Item(row=row, dataset=shown(row), method=row["method"], columns=columns, config=config, point=point)
        items.append(item)
    return _group(items)


def group_teachers(sweep: Sweep, students: Iterable[Group]) -> list[Group]:
    """The groups of the teachers of the pairs of these students, and of all probes of teachers.

    They stand in their students' columns; a probe without students there has a column of its own.
    """
    networks, teachers = _networks(sweep), _by_id(sweep.teachers)
    places: dict[tuple[str, str, bool], dict[Column, None]] = defaultdict(dict)
    for group in students:
        for row in records(group.trials):
            if is_paired(row) and row["teacher_id"] in teachers:
                places[row["teacher_id"], group.dataset, row["source_id"] is not None][group.column] = None
    found = [(teachers[key], name, tuple(columns)) for (key, name, probed), columns in places.items() if not probed]
    for row in records(sweep.trials):
        if row["source_id"] in teachers:
            alone = Column(teacher=None, student=row["student"], fraction=row["fraction"])
            beside = places.get((row["source_id"], shown(row), True), ())
            same = tuple(column for column in beside if column.fraction == row["fraction"])
            found.append((row, shown(row), same or (alone,)))
    return _group(
        [
            _Item(row=row, dataset=name, method=TEACHER, columns=columns, config=teacher_config(row, networks))
            for row, name, columns in found
        ]
    )


def _networks(sweep: Sweep) -> dict[str, Row]:
    return _by_id(sweep.trials) | _by_id(sweep.teachers)


def _by_id(trials: pd.DataFrame) -> dict[str, Row]:
    return {str(row["trial_id"]): row for row in records(trials)}


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
    buckets: dict[tuple[Settings, Column, Point | None], list[Row]] = defaultdict(list)
    for item in items:
        settings = tuple((key.replace(PARAMS, ""), shown[key][item.config.get(key)]) for key in keys)
        if item.point is not None and item.point.place > 1:
            settings += ((PLACE, f"{ordinal(item.point.place)} best"),)
        for column in item.columns:
            buckets[settings, column, item.point].append(item.row)
    return [
        Group(
            dataset=items[0].dataset,
            column=column,
            method=items[0].method,
            settings=settings,
            trials=pd.DataFrame(rows, dtype=object),
            point=point,
        )
        for (settings, column, point), rows in buckets.items()
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
    having = {prefix: [_with(prefix, configs) for configs in cells.values()] for prefix in (TEACHERS, SEARCHES)}

    def varies(key: str) -> bool:
        compared = next((having[prefix] for prefix in having if key.startswith(prefix)), cells.values())
        return any(len({config.get(key) for config in configs} - {UNKNOWN}) > 1 for configs in compared)

    keys = dict.fromkeys(key for item in items for key in item.config if key != STUDY)
    return [key for key in keys if varies(key)]


def _with(prefix: str, configs: list[Config]) -> list[Config]:
    return [config for config in configs if any(key.startswith(prefix) for key in config)]
