"""What two trials must share to be repetitions of each other: all that can change a result but their seeds."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from analysis.load import Row
from sweeps.schema import IDENTITY, PUBLISHED

Settings = tuple[tuple[str, str], ...]  # (key, value), as printed
Config = dict[str, str]  # key -> canonical JSON
PARAMS = "params."
TEACHERS = "teacher."
SEARCHES = "search."
STUDY = "study"
_CHOSEN = json.dumps("searched")  # stands for the values of a point, which differ from study to study
UNKNOWN = json.dumps("unknown")  # how weights from elsewhere were trained; differs from nothing
_SOURCES = "source."
_PROBES = "probe."
# What places a trial in a table, or repeats it. Every other identity column is configuration; assistants follow from
# the rest of it and from the teacher.
_PLACE = {"trial_id", "role", "dataset", "fraction", "teacher", "teacher_id", "student", "method", "params", "probe"}
_REPEATS = {"seed", "view_seed", "self_taught", "assistant_ids", "source_id", "source_dataset"}
_CONFIG = tuple(field.name for field in IDENTITY if field.name not in _PLACE | _REPEATS)


class Networks:
    """What was trained, or brought, before the trials: its rows by id, and their configurations, made once each."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {str(row["trial_id"]): row for row in rows}
        self.teacher = cache(self._teacher)
        self.source = cache(self._source)

    def row(self, key: str) -> Row:
        """The row of a network; KeyError if it has none."""
        return self._rows[key]

    def _teacher(self, key: str | None) -> Config:
        """Teachers that differ in their seed alone are repetitions too; of an unknown one, only its id is known."""
        if key is None:
            return {}
        if key not in self._rows:
            return {f"{TEACHERS}id": json.dumps(key)}
        return _prefixed(TEACHERS, _whole(self._rows[key]))

    def _source(self, key: str | None) -> Config:
        """How the student of a probe was trained beside what its own row tells; of an unknown one, only its id."""
        if key is None:
            return {}
        if key not in self._rows:
            return {f"{_SOURCES}id": json.dumps(key)}
        source = self._rows[key]
        own = {name: value for name, value in _own(source).items() if name != "method_version"}
        return _prefixed(_SOURCES, {"fraction": json.dumps(source["fraction"]), **own})


def params_of(row: Row) -> Settings:
    """The full parameters of a trial's method."""
    return settings_of(row["params"])


def settings_of(table: str) -> Settings:
    """A table in JSON as (key, value), one for each value."""
    return tuple((key, short(json.dumps(value))) for key, value in flat(json.loads(table)).items())


def student_config(row: Row, networks: Networks) -> Config:
    """The configuration of a student and of its teacher; of a student's probe, also of the student.

    Of a point that a search found, it says what was searched and where instead of the values.
    """
    own = {"student": json.dumps(row["student"]), **_own(row), **_params(row)}
    config = own | networks.teacher(row["teacher_id"]) | networks.source(row["source_id"])
    return config | _searched(row, config)


def teacher_config(row: Row, networks: Networks) -> Config:
    """The configuration of a teacher, whose method and data are not those of its column; of its probe, of both."""
    if row["source_id"] is None:
        return _whole(row)
    return _own(row) | _prefixed(_SOURCES, _whole(networks.row(row["source_id"])))


def printed(values: set[str | None]) -> dict[str | None, str]:
    """JSON value -> text, numbers with four digits unless that makes two values equal."""
    texts = {value: short(value) for value in values}
    if len(set(texts.values())) == len(texts):
        return texts
    return {value: "none" if value is None else value for value in values}


def short(value: str | None) -> str:
    """A JSON value as text, numbers with four digits."""
    data = None if value is None else json.loads(value)
    if data is None:
        return "none"
    if isinstance(data, list):
        return "[" + ", ".join(str(part) for part in data) + "]"
    if isinstance(data, float):
        return f"{data:.4g}"
    return data if isinstance(data, str) else json.dumps(data)


def _own(row: Row) -> Config:
    """Recipe and images."""
    if row["method"] == PUBLISHED:
        # The path may hold another file later, so the id belongs to the name.
        weights = f"{PurePosixPath(json.loads(row['params'])['source']).name} {row['trial_id'][:8]}"
        return {"weights": json.dumps(weights), **dict.fromkeys(_CONFIG, UNKNOWN)}
    own = _as_json(_CONFIG, tuple(row[name] for name in _CONFIG))
    if row["probe"] is not None:
        probe = {key: json.dumps(value) for key, value in flat(json.loads(row["probe"]), _PROBES).items()}
        # The rate is a result: the best of probe.lrs, seed by seed.
        return {**{key: value for key, value in own.items() if key != "lr"}, **probe}
    return own


@cache
def _as_json(keys: tuple[str, ...], values: tuple[Any, ...]) -> Config:
    return dict(zip(keys, map(json.dumps, values), strict=True))


def _params(row: Row) -> Config:
    return {} if row["method"] == PUBLISHED else _params_as_json(row["params"])


@cache
def _params_as_json(params: str) -> Config:
    return {key: json.dumps(value) for key, value in flat(json.loads(params), PARAMS).items()}


def _searched(row: Row, config: Config) -> Config:
    """The searched keys of a configuration, and the search itself."""
    if row["study"] is None:
        return {}
    space = json.loads(row["space"] or "{}")
    search = {**flat(space), "objectives": row["objectives"], "seeds": row["seeds"]}
    keys = [key for name in {**space, **json.loads(row["point"])} for key in _searched_keys(name, row, config)]
    found = {key: json.dumps(value) for key, value in search.items()}
    return {**dict.fromkeys(keys, _CHOSEN), **_prefixed(SEARCHES, found), STUDY: json.dumps(row["study"])}


def _searched_keys(name: str, row: Row, config: Config) -> list[str]:
    """The keys of a configuration that a searched name decides; names of no parameter are about the architecture."""
    head, _, tail = name.partition(".")
    if head == "train":  # a teacher of the student's own architecture has its recipe
        return [tail, f"{TEACHERS}{tail}"] if row["self_taught"] else [tail]
    params = [key for key in config if f"{key}.".startswith(f"{PARAMS}{name}.")]
    return params or ["student"]


def _whole(row: Row) -> Config:
    own = {name: json.dumps(row[name]) for name in ("method", "dataset", "fraction")}
    return {"method": own["method"], **_own(row), **_params(row), **own}


def _prefixed(prefix: str, config: Config) -> Config:
    return {f"{prefix}{key}": value for key, value in config.items()}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
