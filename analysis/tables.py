"""Groups of trials -> tables: computed once as plain data, then rendered."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from analysis.columns import Column
from analysis.configuration import Settings
from analysis.confirmed import Point, Study, group_studies
from analysis.groups import PLACE, TEACHER, Group, group_students, group_teachers, student_trials
from analysis.load import Sweep, records
from analysis.metrics import Metric
from analysis.names import ONTO, method_name
from analysis.published import Published, published
from analysis.stats import mean, sample_std
from sweeps.schema import IDENTITY, SEARCH


class Mark(StrEnum):
    """The place of a cell among the competing cells of its column."""

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
    n_missing: int = 0  # seeds that other cells of the sweep have, of planned trials or of confirmed points
    mark: Mark = Mark.NONE
    published: tuple[Published, ...] = ()
    point: Point | None = None  # that a search chose; None of planned trials

    @property
    def n_wanted(self) -> int:
        """How many trials a complete cell would have."""
        return self.n + self.n_failed + self.n_diverged + self.n_stopped + self.n_missing

    @property
    def complete(self) -> bool:
        """Whether every trial that is wanted has a value."""
        return self.mean is not None and self.n == self.n_wanted

    @property
    def competes(self) -> bool:
        """Whether the cell is complete and, of a searched method, shows the point that did best in the search.

        If all confirmed points competed, a method would be chosen by the test set, the more so the more it confirms.
        """
        return self.complete and (self.point is None or self.point.place == 1)


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

    @property
    def base_name(self) -> str:
        """The display name without the place of a point."""
        return row_name(self.method, tuple(setting for setting in self.settings if setting[0] != PLACE))

    @property
    def searched(self) -> bool:
        """Whether a search chose what is shown."""
        return any(cell.point for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The confirmed points of one study in a table, and where they stand."""

    name: str  # of the method
    columns: tuple[Column, ...]
    points: tuple[Point, ...]  # by place


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
    studies: tuple[Study, ...] = ()  # the searches on the data set, confirmed or not
    replayed: int = 0  # trials of the sweep that replayed stored epochs

    @property
    def fractions(self) -> tuple[float, ...]:
        """The distinct fractions of the columns."""
        return tuple(sorted({column.fraction for column in self.columns}))

    @property
    def unsearched(self) -> tuple[str, ...]:
        """The methods without a search, or with nothing to search; teachers apart."""
        planned = [row.method for row in self.rows if row.method != TEACHER and not row.searched]
        fixed = [study.method for study in self.studies if not study.searches]
        return tuple(dict.fromkeys([*planned, *fixed]))

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """What the searches chose, by row and column."""
        found: dict[tuple[str, Point], list[Column]] = {}
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                if cell.point is not None:
                    found.setdefault((row.base_name, cell.point), []).append(column)
        studies: dict[tuple[str, str, tuple[Column, ...]], list[Point]] = {}
        for (name, point), columns in found.items():
            studies.setdefault((name, point.study.id, tuple(columns)), []).append(point)
        return tuple(
            Chosen(name=name, columns=columns, points=tuple(sorted(points, key=lambda point: point.place)))
            for (name, _, columns), points in studies.items()
        )


def row_name(method: str, settings: Settings) -> str:
    """The display name of a method with the settings that set it apart."""
    keys = ", ".join(f"{key}={value}" for key, value in settings)
    return f"{method_name(method)} ({keys})" if keys else method_name(method)


def equal_budgets(studies: Iterable[Study]) -> bool:
    """Whether all studies that search anything have tried as many points, in as many trials."""
    return len({(study.points, study.trials) for study in studies if study.searches}) < 2


def needed(metric: Metric) -> list[str]:
    """The columns of the trials that `build_tables` looks at."""
    names = [field.name for field in (*IDENTITY, *SEARCH)]
    return list(dict.fromkeys([*names, "status", "val_acc", "test_top1", metric.key, "ended_at", "replayed"]))


def build_tables(sweep: Sweep, metric: Metric) -> list[Table]:
    """A table for each data set of the sweep; one without a data set if no student has ended."""
    students = group_students(sweep)
    groups = [*group_teachers(sweep, students), *students]
    if not groups:
        return [Table(sweep=sweep.name, metric=metric, status=sweep.status(), replayed=sweep.replayed)]
    datasets = dict.fromkeys(group.dataset for group in groups)
    return [_table(sweep, metric, [group for group in groups if group.dataset == name]) for name in datasets]


def build_cell(group: Group, metric: Metric, seeds: set[int]) -> Cell:
    """The cell of a group; `seeds` are those that a complete cell would have."""
    values = group.values(metric.key)
    ended = Counter(group.entries("status"))
    return Cell(
        mean=mean(values),
        std=sample_std(values),
        n=len(values),
        n_failed=ended["failed"],
        n_diverged=ended["diverged"],
        n_stopped=ended["stopped"],
        n_missing=len(seeds - set(group.entries("seed"))),
        point=group.point,
    )


def rank(cells: Sequence[Cell], metric: Metric) -> list[int | None]:
    """The rank of each competing cell from 1; equal as printed is equal in rank, None is not ranked."""
    sign = 1 if metric.lower_is_better else -1
    scores = [sign * round(cell.mean, metric.decimals) if cell.mean is not None else 0.0 for cell in cells]
    ranked = sorted(score for score, cell in zip(scores, cells, strict=True) if cell.competes)
    return [
        1 + bisect_left(ranked, score) if cell.competes else None for score, cell in zip(scores, cells, strict=True)
    ]


def marks(cells: Sequence[Cell], metric: Metric) -> list[Mark]:
    """Best and second of these cells; none where fewer than two compete."""
    ranks = rank(cells, metric)
    if sum(place is not None for place in ranks) < 2:
        return [Mark.NONE] * len(cells)
    names = {1: Mark.BEST, 2: Mark.SECOND}
    return [names.get(place or 0, Mark.NONE) for place in ranks]


def sweep_seeds(sweep: Sweep) -> dict[bool, set[int]]:
    """The seeds that any confirmed point of the sweep has (True), and any planned student (False).

    Teachers, and so their probes, have one of their own.
    """
    trials = student_trials(sweep)
    confirmed = trials["study"].notna()
    return {which: set(trials["seed"][confirmed == which]) for which in (True, False)}


def _table(sweep: Sweep, metric: Metric, groups: list[Group]) -> Table:
    teachers = {str(row["trial_id"]): row for row in records(sweep.teachers)}
    columns = sorted(dict.fromkeys(group.column for group in groups), key=Column.order)
    seeds = sweep_seeds(sweep)
    cells: dict[tuple[str, Settings], dict[Column, Cell]] = {}
    empty: dict[tuple[str, Settings], Cell] = {}
    for group in groups:
        key = group.method, group.settings
        wanted = set() if group.method == TEACHER else seeds[group.point is not None]
        cell = build_cell(group, metric, wanted)
        printed = published(group, metric, teachers)
        cells.setdefault(key, {})[group.column] = replace(cell, published=printed) if printed else cell
        empty[key] = Cell(n_missing=len(wanted))
    rows = [
        TableRow(method=key[0], settings=key[1], cells=tuple(row.get(column, empty[key]) for column in columns))
        for key, row in cells.items()
    ]
    rows = _marked(rows, metric)
    dataset = groups[0].dataset
    return Table(
        sweep=sweep.name,
        dataset=dataset,
        metric=metric,
        status=sweep.status(),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=_notes(cell for row in rows for cell in row.cells),
        studies=tuple(study for study in group_studies(sweep) if study.dataset == dataset.split(ONTO)[0]),
        replayed=sweep.replayed,
    )


def _marked(rows: list[TableRow], metric: Metric) -> list[TableRow]:
    """The rows with best and second marked in each column; teachers do not compete."""
    competing = [row for row in rows if row.method != TEACHER]
    by_column = [marks(cells, metric) for cells in zip(*(row.cells for row in competing), strict=True)]
    by_row = iter(zip(*by_column, strict=True))
    return [row if row.method == TEACHER else _with_marks(row, next(by_row)) for row in rows]


def _with_marks(row: TableRow, places: Iterable[Mark]) -> TableRow:
    marked = zip(row.cells, places, strict=True)
    return replace(row, cells=tuple(replace(cell, mark=mark) if mark else cell for cell, mark in marked))


def _notes(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(number.note for cell in cells for number in cell.published if number.note))
