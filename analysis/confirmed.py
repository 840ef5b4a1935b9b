"""Rows of searches -> studies with what they spent, and the places that the search gives to their confirmed points."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.columns import Column, is_paired
from analysis.configuration import Settings, settings_of
from analysis.load import Row, Sweep, records
from analysis.names import method_order, natural_order
from sweeps.points import best, tried
from sweeps.schema import SEARCHED

_COLUMNS = (
    "study", "phase", "dataset", "method", "teacher", "self_taught", "student", "fraction", "space", "point", "number",
    "origin", "seeds", "seed", "status", "val_acc", "ended_at",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Study:
    """The search of one cell of the grid, and what it has spent."""

    id: str
    dataset: str
    method: str
    column: Column  # its student is SEARCHED where the points have several
    searches: bool  # whether there is anything to search
    points: int
    trials: int  # that have ended, in whatever way; a point has one for each seed of its score
    confirmed: int  # points

    def order(self) -> tuple[Any, ...]:
        """Sort key."""
        return (natural_order(self.dataset), method_order(self.method), self.column.order(), self.id)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point that a search chose, and that was trained again on all training images, with fresh seeds."""

    study: Study
    json: str  # {name: value}
    score: float | None  # mean validation accuracy over its seeds in the search, percent; None unless all completed
    place: int  # from 1: by that score among all points of the study with this student, then by age

    @property
    def values(self) -> Settings:
        """(name, value) as printed."""
        return settings_of(self.json)


def group_studies(sweep: Sweep) -> list[Study]:
    """The searches of a sweep."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in (*_of_studies(sweep.searched), *_of_studies(sweep.trials)):
        rows[row["study"]].append(row)
    return sorted((_study(key, same) for key, same in rows.items()), key=Study.order)


def confirmed_points(sweep: Sweep) -> dict[tuple[str, str], Point]:
    """The confirmed points by study and JSON. Nobody has place 1 while the best point of the search has no row."""
    studies = {study.id: study for study in group_studies(sweep)}
    searched, found = _by_student(sweep.searched), {}
    newest = {row["study"]: row for row in sorted(_of_studies(sweep.searched), key=lambda row: row["ended_at"])}
    for (study, student), rows in _by_student(sweep.trials).items():
        scores = _scores(searched[study, student], newest[study]["seeds"]) if study in newest else {}
        confirmed = dict.fromkeys(row["point"] for row in sorted(rows, key=lambda row: row["number"]))
        places = [*scores, *(point for point in confirmed if point not in scores)]
        for point in confirmed:
            place = 1 + places.index(point)
            found[study, point] = Point(study=studies[study], json=point, score=scores.get(point), place=place)
    return found


def _study(key: str, rows: list[Row]) -> Study:
    searched = [row for row in rows if row["phase"] == "search"]
    first, students = rows[0], {row["student"] for row in rows}
    return Study(
        id=key,
        dataset=first["dataset"],
        method=first["method"],
        column=Column(
            teacher=first["teacher"] if is_paired(first) else None,
            student=first["student"] if len(students) == 1 else SEARCHED,
            fraction=first["fraction"],
        ),
        searches=first["space"] != "{}",
        points=len({row["point"] for row in searched}),
        trials=len(searched),
        confirmed=len({row["point"] for row in rows if row["phase"] != "search"}),
    )


def _by_student(trials: pd.DataFrame) -> dict[tuple[str, str], list[Row]]:
    """The rows by study and student: points of other students stand in other columns."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in _of_studies(trials):
        found[row["study"], row["student"]].append(row)
    return found


def _of_studies(trials: pd.DataFrame) -> list[Row]:
    """The rows of searches and their confirmations: what is looked at here of them."""
    return records(trials.loc[trials["study"].notna(), list(_COLUMNS)])


def _scores(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, float]:
    """The scores of the completed points (JSON) of one student, the best first. Other objectives are the student's."""
    found = {}
    for each in best(tried(rows), seeds, ["val_acc"], len(rows)):
        values = each.values(seeds, ["val_acc"])
        assert values is not None, "best leaves out what has none"
        found[each.rows[seeds[0]]["point"]] = values[0]
    return found
