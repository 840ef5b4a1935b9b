"""Trials -> groups of repetitions: trials that differ in their seeds alone, and may be averaged."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.load import Row, Sweep, records
from analysis.names import ONTO, method_order, natural_order
from sweeps.schema import IDENTITY

TEACHER = "teacher"  # the method name of the rows that show the teachers themselves
# What places a trial in a table, or repeats it. Every other identity column is configuration; assistants follow from
# the rest of it and from the teacher.
_PLACE = {"trial_id", "role", "dataset", "fraction", "teacher", "teacher_id", "student", "method", "params"}
_REPEATS = {"seed", "view_seed", "self_taught", "assistant_ids", "source_id", "source_dataset"}
_CONFIG = tuple(field.name for field in IDENTITY if field.name not in _PLACE | _REPEATS)
_PARAMS = "params."
_TEACHERS = "teacher."
_SOURCES = "source."
Settings = tuple[tuple[str, str], ...]  # (key, value), as printed


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


def group_students(sweep: Sweep) -> list[Group]:
    """The groups of a sweep's students, and of the probes of its networks.

    Trials without a teacher, and those whose teacher is not the pair's, belong to every pair of their student.
    """
    rows = records(sweep.trials)
    teachers = {str(row["trial_id"]): row for row in records(sweep.teachers)}
    networks = teachers | {str(row["trial_id"]): row for row in rows}
    paired: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if _is_paired(row):
            paired[_shown(row), row["student"]].add(row["teacher"])
    items = []
    for row in rows:
        pairs = paired[_shown(row), row["student"]]
        names: list[str | None] = [row["teacher"]] if _is_paired(row) else [*sorted(pairs)] or [None]
        columns = tuple(Column(teacher=name, student=row["student"], fraction=row["fraction"]) for name in names)
        config = _config(row) | _teacher_config(row["teacher_id"], teachers) | _source_config(row, networks)
        items.append(_Item(row=row, dataset=_shown(row), method=row["method"], columns=columns, config=config))
    return _group(items)


def _shown(row: Row) -> str:
    """What a trial's table is of: its data set; of a probe also that on which its student was trained."""
    return row["dataset"] if row["source_id"] is None else f"{row['source_dataset']}{ONTO}{row['dataset']}"


def group_teachers(sweep: Sweep, students: Iterable[Group]) -> list[Group]:
    """The groups of the teachers of the pairs of these students, in their students' columns."""
    teachers = {str(row["trial_id"]): row for row in records(sweep.teachers)}
    places: dict[tuple[str, str], dict[Column, None]] = defaultdict(dict)
    for group in students:
        for row in records(group.trials):
            if _is_paired(row) and row["teacher_id"] in teachers:
                places[row["teacher_id"], group.dataset][group.column] = None
    items = []
    for (teacher_id, dataset), columns in places.items():
        row = teachers[teacher_id]
        items.append(_Item(row=row, dataset=dataset, method=TEACHER, columns=tuple(columns), config=_whole_config(row)))
    return _group(items)


def params_of(row: Row) -> Settings:
    """The full parameters of a trial's method."""
    return tuple((key, _short(json.dumps(value))) for key, value in _flat(json.loads(row["params"]), "").items())


def _is_paired(row: Row) -> bool:
    """Whether a trial's teacher is that of a pair."""
    return row["teacher"] is not None and not row["self_taught"]


def _config(row: Row) -> dict[str, str]:
    params = _flat(json.loads(row["params"]), _PARAMS)
    return {key: json.dumps(value) for key, value in ({name: row[name] for name in _CONFIG} | params).items()}


def _whole_config(row: Row) -> dict[str, str]:
    # A teacher's method and data are not those of its column.
    own = {name: json.dumps(row[name]) for name in ("method", "dataset", "fraction")}
    return {"method": own["method"], **_config(row), **own}


def _teacher_config(teacher_id: str | None, teachers: Mapping[str, Row]) -> dict[str, str]:
    """Teachers that differ in their seed alone are repetitions too; of an unknown one, only its id is known."""
    if teacher_id is None:
        return {}
    if teacher_id not in teachers:
        return {f"{_TEACHERS}id": json.dumps(teacher_id)}
    return {f"{_TEACHERS}{key}": value for key, value in _whole_config(teachers[teacher_id]).items()}


def _source_config(row: Row, networks: Mapping[str, Row]) -> dict[str, str]:
    """How the student of a probe was trained; of one without a row nothing is known."""
    source = networks.get(row["source_id"]) if row["source_id"] is not None else None
    if source is None:
        return {}
    own = {name: json.dumps(source[name]) for name in ("fraction", *_CONFIG)}
    return {f"{_SOURCES}{key}": value for key, value in own.items()}


def _flat(params: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _group(items: list[_Item]) -> list[Group]:
    methods: dict[tuple[str, str], list[_Item]] = defaultdict(list)
    for item in items:
        methods[item.dataset, item.method].append(item)
    groups = [group for same in methods.values() for group in _group_method(same)]
    return sorted(groups, key=Group.order)


def _group_method(items: list[_Item]) -> list[Group]:
    """The groups of the items of one method on one data set."""
    keys = _varying(items)
    shown = {key: _printed({item.config.get(key) for item in items}) for key in keys}
    buckets: dict[tuple[Settings, Column], list[Row]] = defaultdict(list)
    for item in items:
        settings = tuple((key.replace(_PARAMS, ""), shown[key][item.config.get(key)]) for key in keys)
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
        column: [config for config in configs if any(key.startswith(_TEACHERS) for key in config)]
        for column, configs in cells.items()
    }

    def varies(key: str) -> bool:
        compared = taught if key.startswith(_TEACHERS) else cells
        return any(len({config.get(key) for config in configs}) > 1 for configs in compared.values())

    return [key for key in dict.fromkeys(key for item in items for key in item.config) if varies(key)]


def _printed(values: set[str | None]) -> dict[str | None, str]:
    """JSON value -> text, numbers with four digits unless that makes two values equal."""
    short = {value: _short(value) for value in values}
    if len(set(short.values())) == len(short):
        return short
    return {value: "none" if value is None else value for value in values}


def _short(value: str | None) -> str:
    data = None if value is None else json.loads(value)
    if data is None:
        return "none"
    if isinstance(data, list):
        return "[" + ", ".join(str(part) for part in data) + "]"
    if isinstance(data, float):
        return f"{data:.4g}"
    return data if isinstance(data, str) else json.dumps(data)
