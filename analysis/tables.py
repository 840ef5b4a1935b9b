"""Groups of trials -> tables: computed once as plain data, then rendered."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from analysis.configuration import Settings
from analysis.groups import TEACHER, Column, Group, group_students, group_teachers, student_rows
from analysis.load import Sweep, records
from analysis.metrics import Metric
from analysis.names import method_name
from analysis.published import Published, published
from analysis.stats import mean, sample_std


class Mark(StrEnum):
    """The place of a cell among the complete cells of its column."""

    NONE = ""
    BEST = "best"
    SECOND = "second"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method for one pair and fraction. Mean and std are in the metric's unit."""

    mean: float | None = None
    std: float | None = None  # of the sample; None for n < 2
    n: int = 0  # completed trials
    n_failed: int = 0
    n_diverged: int = 0
    n_stopped: int = 0
    n_missing: int = 0  # seeds that other cells of the sweep have
    mark: Mark = Mark.NONE
    published: tuple[Published, ...] = ()

    @property
    def n_wanted(self) -> int:
        """How many trials a complete cell would have."""
        return self.n + self.n_failed + self.n_diverged + self.n_stopped + self.n_missing

    @property
    def complete(self) -> bool:
        """Whether every trial that is wanted has a value."""
        return self.mean is not None and self.n == self.n_wanted


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A method, or one of its configurations."""

    method: str
    settings: Settings
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """The display name, e.g. `KD (lr=0.1)`."""
        return row_name(self.method, self.settings)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One data set of one sweep: rows are methods, columns are pairs and fractions."""

    sweep: str
    dataset: str | None = None  # None where no student has ended; there are no columns and rows then
    metric: Metric
    status: str  # how far the sweep is
    columns: tuple[Column, ...] = ()
    rows: tuple[TableRow, ...] = ()
    notes: tuple[str, ...] = ()  # of the published numbers, in order of appearance

    @property
    def fractions(self) -> tuple[float, ...]:
        """The distinct fractions of the columns."""
        return tuple(sorted({column.fraction for column in self.columns}))


def row_name(method: str, settings: Settings) -> str:
    """The display name of a method with the settings that set it apart."""
    keys = ", ".join(f"{key}={value}" for key, value in settings)
    return f"{method_name(method)} ({keys})" if keys else method_name(method)


def build_tables(sweep: Sweep, metric: Metric) -> list[Table]:
    """A table for each data set of the sweep; one without a data set if no student has ended."""
    students = group_students(sweep)
    groups = [*group_teachers(sweep, students), *students]
    if not groups:
        return [Table(sweep=sweep.name, metric=metric, status=sweep.status())]
    datasets = dict.fromkeys(group.dataset for group in groups)
    return [_table(sweep, metric, [group for group in groups if group.dataset == name]) for name in datasets]


def build_cell(group: Group, metric: Metric, seeds: set[int]) -> Cell:
    """The cell of a group; `seeds` are those that a complete cell would have."""
    values = group.values(metric.key)
    ended = Counter(group.trials["status"])
    return Cell(
        mean=mean(values),
        std=sample_std(values),
        n=len(values),
        n_failed=ended["failed"],
        n_diverged=ended["diverged"],
        n_stopped=ended["stopped"],
        n_missing=len(seeds - set(group.trials["seed"])),
    )


def rank(cells: Sequence[Cell], metric: Metric) -> list[int | None]:
    """The rank of each complete cell from 1; equal as printed is equal in rank, None is not ranked."""
    sign = 1 if metric.lower_is_better else -1
    scores = [sign * round(cell.mean, metric.decimals) if cell.mean is not None else 0.0 for cell in cells]
    ranked = [score for score, cell in zip(scores, cells, strict=True) if cell.complete]
    return [
        1 + sum(other < score for other in ranked) if cell.complete else None
        for score, cell in zip(scores, cells, strict=True)
    ]


def marks(cells: Sequence[Cell], metric: Metric) -> list[Mark]:
    """Best and second of competing cells; none where fewer than two are complete."""
    ranks = rank(cells, metric)
    if sum(place is not None for place in ranks) < 2:
        return [Mark.NONE] * len(cells)
    names = {1: Mark.BEST, 2: Mark.SECOND}
    return [names.get(place or 0, Mark.NONE) for place in ranks]


def sweep_seeds(sweep: Sweep) -> set[int]:
    """The seeds that any student of the sweep has. Teachers, and so their probes, have one of their own."""
    return {row["seed"] for row in student_rows(sweep)}


def _table(sweep: Sweep, metric: Metric, groups: list[Group]) -> Table:
    teachers = {str(row["trial_id"]): row for row in records(sweep.teachers)}
    columns = sorted(dict.fromkeys(group.column for group in groups), key=Column.order)
    cells: dict[tuple[str, Settings], dict[Column, Cell]] = {}
    for group in groups:
        seeds = set() if group.method == TEACHER else sweep_seeds(sweep)
        cell = build_cell(group, metric, seeds)
        row = cells.setdefault((group.method, group.settings), {})
        row[group.column] = replace(cell, published=published(group, metric, teachers))
    rows = []
    for (method, settings), row in cells.items():
        empty = Cell(n_missing=0 if method == TEACHER else len(sweep_seeds(sweep)))
        rows.append(TableRow(method=method, settings=settings, cells=tuple(row.get(key, empty) for key in columns)))
    rows = _marked(rows, metric)
    return Table(
        sweep=sweep.name,
        dataset=groups[0].dataset,
        metric=metric,
        status=sweep.status(),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=_notes(cell for row in rows for cell in row.cells),
    )


def _marked(rows: list[TableRow], metric: Metric) -> list[TableRow]:
    """The rows with best and second marked in each column; teachers do not compete."""
    competing = [row for row in rows if row.method != TEACHER]
    by_column = [marks(cells, metric) for cells in zip(*(row.cells for row in competing), strict=True)]
    by_row = iter(zip(*by_column, strict=True))
    return [row if row.method == TEACHER else _with_marks(row, next(by_row)) for row in rows]


def _with_marks(row: TableRow, places: Iterable[Mark]) -> TableRow:
    return replace(row, cells=tuple(replace(cell, mark=mark) for cell, mark in zip(row.cells, places, strict=True)))


def _notes(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(number.note for cell in cells for number in cell.published if number.note))
