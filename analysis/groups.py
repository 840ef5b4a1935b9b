"""Trials -> groups of repetitions: trials that differ in their seeds alone, and may be averaged."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.configuration import PARAMS, TEACHERS, UNKNOWN, Settings, printed, student_config, teacher_config
from analysis.load import Row, Sweep, records
from analysis.names import ONTO, method_order, natural_order

TEACHER = "teacher"  # the method name of the rows that show the teachers themselves, or their probes


@dataclass(frozen=True, kw_only=True)
class Column:
    """A pair and the fraction of the training images that the student saw."""

    teacher: str | None
    student: str
    fraction: float

    def order(self) -> tuple[Any, ...]:
        """Sort key."""
        return (natural_order(self.teacher or ""), natural_order(self.student), self.fraction)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials of one configuration, with different seeds."""

    dataset: str
    column: Column
    method: str
    settings: Settings  # the keys in which rows of this method differ within a cell
    trials: pd.DataFrame

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
    config: Mapping[str, str]  # key -> canonical JSON


def student_rows(sweep: Sweep) -> list[Row]:
    """The trials of a sweep but for the probes of its teachers."""
    teachers = set(sweep.teachers["trial_id"]) - set(sweep.trials["trial_id"])
    return [row for row in records(sweep.trials) if row["source_id"] not in teachers]


def shown(row: Row) -> str:
    """What a trial's table is of: its data set; of a probe also that on which its network was trained."""
    return row["dataset"] if row["source_id"] is None else f"{row['source_dataset']}{ONTO}{row['dataset']}"


def group_students(sweep: Sweep) -> list[Group]:
    """The groups of a sweep's students, and of their probes.

    Trials without a teacher, and those whose teacher is not the pair's, belong to every pair of their student.
    """
    rows, networks = student_rows(sweep), _networks(sweep)
    paired: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if _is_paired(row):
            paired[shown(row), row["student"]].add(row["teacher"])
    items = []
    for row in rows:
        pairs = paired[shown(row), row["student"]]
        names: list[str | None] = [row["teacher"]] if _is_paired(row) else [*sorted(pairs)] or [None]
        columns = tuple(Column(teacher=name, student=row["student"], fraction=row["fraction"]) for name in names)
        config = student_config(row, networks)
        items.append(_Item(row=row, dataset=shown(row), method=row["method"], columns=columns, config=config))
    return _group(items)


def group_teachers(sweep: Sweep, students: Iterable[Group]) -> list[Group]:
    """The groups of the teachers of the pairs of these students, and of all probes of teachers.

    They stand in their students' columns; a probe without students there has a column of its own.
    """
    networks, teachers = _networks(sweep), _by_id(sweep.teachers)
    places: dict[tuple[str, str, bool], dict[Column, None]] = defaultdict(dict)
    for group in students:
        for row in records(group.trials):
            if _is_paired(row) and row["teacher_id"] in teachers:
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


def _is_paired(row: Row) -> bool:
    """Whether a trial's teacher is that of a pair."""
    return row["teacher"] is not None and not row["self_taught"]


def _group(items: list[_Item]) -> list[Group]:
    methods: dict[tuple[str, str], list[_Item]] = defaultdict(list)
    for item in items:
        methods[item.dataset, item.method].append(item)
    groups = [group for same in methods.values() for group in _group_method(same)]
    return sorted(groups, key=Group.order)


def _group_method(items: list[_Item]) -> list[Group]:
    """The groups of the items of one method on one data set."""
    keys = _varying(items)
    shown = {key: printed({item.config.get(key) for item in items}) for key in keys}
    buckets: dict[tuple[Settings, Column], list[Row]] = defaultdict(list)
    for item in items:
        settings = tuple((key.replace(PARAMS, ""), shown[key][item.config.get(key)]) for key in keys)
        for column in item.columns:
            buckets[settings, column].append(item.row)
    return [
        Group(
            dataset=items[0].dataset,
            column=column,
            method=items[0].method,
            settings=settings,
            trials=pd.DataFrame(rows, dtype=object),
        )
        for (settings, column), rows in buckets.items()
    ]


def _varying(items: list[_Item]) -> list[str]:
    """The configuration keys of which some cell has more than one value.

    A teacher's are compared among trials that have one: whether there is one follows from the method's parameters.
    """
    cells: dict[Column, list[Mapping[str, str]]] = defaultdict(list)
    for item in items:
        for column in item.columns:
            cells[column].append(item.config)
    taught = {
        column: [config for config in configs if any(key.startswith(TEACHERS) for key in config)]
        for column, configs in cells.items()
    }

    def varies(key: str) -> bool:
        compared = taught if key.startswith(TEACHERS) else cells
        return any(len({config.get(key) for config in configs} - {UNKNOWN}) > 1 for configs in compared.values())

    return [key for key in dict.fromkeys(key for item in items for key in item.config) if varies(key)]
