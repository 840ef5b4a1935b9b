"""Rows of a sweep's searches -> studies as they are shown, and their table for a terminal."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from analysis.columns import Column
from analysis.configuration import PARAMS, SEARCHES, STUDY, Networks, Settings, printed, short, student_config
from analysis.errors import ReportError
from analysis.load import Sweep, load, records
from analysis.names import dataset_name, fraction_name, method_order, natural_order
from analysis.provenance import core_hours
from analysis.render.cells import NOTHING, pair
from analysis.stats import mean, sample_std
from analysis.tables import row_name
from sweeps import optuna_studies
from sweeps.optuna_studies import Point, Search
from sweeps.schema import OBJECTIVES, Status
from sweeps.store import Store

_GAP = "  "
HEADINGS = (
    ("Method", False),
    ("Pair", False),
    ("Fraction", False),
    ("Points", True),
    ("Completed", True),
    ("Stopped", True),
    ("Diverged", True),
    ("Failed", True),
    ("Best val. % (n)", True),
    ("Trials", True),
    ("Core-h", True),
    ("Best point", False),
)  # and whether the column is of numbers


@dataclass(frozen=True, kw_only=True)
class ShownStudy:
    """One search of a sweep."""

    sweep: str
    search: Search
    optuna: optuna.Study  # the points that have ended
    dataset: str
    column: Column  # its student is SEARCHED where it is searched
    pairs: tuple[Column, ...]  # those it is compared in: of a method that looks at no teacher, all of its student
    name: str  # the method, with the settings that tell studies of one method and pair apart

    @property
    def ended(self) -> list[Point]:
        """The points of which it is known what became of them."""
        return [point for point in self.search.points if point.status is not None]

    @property
    def best(self) -> Point | None:
        """The first of the most accurate completed points; of those alike, the one that costs less."""
        signs = [1 if OBJECTIVES[name][1] == "maximize" else -1 for name in self.search.objectives]
        scored = [(point, point.scores) for point in self.search.points if point.scores and point.accuracy is not None]

        def worth(item: tuple[Point, tuple[float, ...]]) -> tuple[float, ...]:
            own = (sign * score for sign, score in zip(signs, item[1], strict=True))
            return (item[0].accuracy or 0.0, *own)

        return max(scored, key=worth, default=(None, ()))[0]

    def count(self, status: Status) -> int:
        """How many points ended so."""
        return sum(point.status is status for point in self.search.points)


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The searches of one sweep, in the order of their table."""

    sweep: str
    studies: list[ShownStudy]

    def summary(self) -> str:
        """E.g. `2 studies, 24 points in 24 trials, 1.50 core-hours`."""
        points = sum(len(study.search.points) for study in self.studies)
        trials = [row for study in self.studies for row in study.search.rows]
        counts = (
            (len(self.studies), "study", "studies"),
            (points, "point", "points"),
            (len(trials), "trial", "trials"),
        )
        studies, asked, run = (f"{n:,} {one if n == 1 else many}" for n, one, many in counts)
        return f"{studies}, {asked} in {run}, {core_hours(map(dict, trials)):,.2f} core-hours"


def load_searches(results: str, names: Iterable[str]) -> list[Searched]:
    """The sweeps of these that have searches. ReportError if none has."""
    names = list(names)
    found = [Searched(sweep=name, studies=studies) for name in names if (studies := _studies(results, name))]
    if not found:
        raise ReportError(
            f"kd-report search needs trials of a [search], but none has ended in {results}: {', '.join(names)}."
        )
    return found


def lines(searched: Searched) -> list[tuple[str, ...]]:
    """A row for each study, in the columns of HEADINGS."""
    return [_line(study) for study in searched.studies]


def render(found: Sequence[Searched]) -> str:
    """The table of each sweep's studies as plain text."""
    return "\n".join(_render(searched) for searched in found)


def caption(searched: Searched) -> str:
    """What the table shows."""
    datasets = ", ".join(dict.fromkeys(dataset_name(study.dataset) for study in searched.studies))
    return (
        f"{datasets}: accuracy on held-out training images of each study's best point, mean ± sample standard "
        "deviation over its n seeds. It was chosen as the best, so it is optimistic: fresh seeds tell. "
        f"Sweep {searched.sweep}: {searched.summary()}."
    )


def told(values: Mapping[str, Any]) -> str:
    """The values of a point, e.g. `alpha=10, sr=false`."""
    return ", ".join(f"{name}={short(json.dumps(value))}" for name, value in values.items())


def _studies(results: str, name: str) -> list[ShownStudy]:
    sweep = load(results, name)
    found = optuna_studies.searches(records(sweep.searched))
    stopped = [row["trial_id"] for search in found for row in search.rows if row["status"] == Status.STOPPED]
    epochs = Store(results, name).read_epochs(stopped).to_pylist() if stopped else []
    columns = {search.id: _column(search) for search in found}
    paired = defaultdict(set)
    for column in columns.values():
        if column.teacher is not None:
            paired[column.student].add(column)
    studies = [
        ShownStudy(
            sweep=name,
            search=search,
            optuna=optuna_studies.study(search, epochs),
            dataset=search.newest["dataset"],
            column=column,
            pairs=(column,) if column.teacher is not None else _pairs(column, paired[column.student]),
            name=search.newest["method"],
        )
        for search in found
        if (column := columns[search.id])
    ]
    return sorted(_named(studies, sweep), key=_order)


def _column(search: Search) -> Column:
    row = search.newest
    teacher = None if row["self_taught"] else row["teacher"]
    return Column(teacher=teacher, student=search.student, fraction=row["fraction"])


def _pairs(column: Column, others: Iterable[Column]) -> tuple[Column, ...]:
    same = sorted((other for other in others if other.fraction == column.fraction), key=Column.order)
    return tuple(same) or (column,)


def _named(studies: list[ShownStudy], sweep: Sweep) -> list[ShownStudy]:
    """The studies with names that hold the fixed settings in which those of one method and column differ."""
    networks = Networks(records(sweep.teachers))
    fixed = {study.search.id: _fixed(study.search, networks) for study in studies}
    places: dict[tuple[str, str, Column], list[ShownStudy]] = defaultdict(list)
    for study in studies:
        places[study.dataset, study.name, study.column].append(study)
    named = []
    for same in places.values():
        configs = [fixed[study.search.id] for study in same]
        keys = [key for key in configs[0] if all(key in config for config in configs)]
        keys = [key for key in keys if len({config[key] for config in configs}) > 1]
        shown = {key: printed({config[key] for config in configs}) for key in keys}
        for study, config in zip(same, configs, strict=True):
            settings: Settings = tuple((key.removeprefix(PARAMS), shown[key][config[key]]) for key in keys)
            if sum(other == config for other in configs) > 1:  # they differ in their seeds alone
                settings += (("study", study.search.id),)
            named.append(replace(study, name=row_name(study.name, settings)))
    return named


def _fixed(search: Search, networks: Networks) -> dict[str, str]:
    """The configuration that all trials of a search share, `searched` where that is so."""
    configs = [student_config(dict(row), networks) for row in search.rows]
    return {
        key: value
        for key, value in configs[0].items()
        if key != STUDY and not key.startswith(SEARCHES) and all(config.get(key) == value for config in configs)
    }


def _order(study: ShownStudy) -> tuple[Any, ...]:
    method = study.search.newest["method"]
    return (natural_order(study.dataset), study.column.order(), method_order(method), study.name, study.search.id)


def _line(study: ShownStudy) -> tuple[str, ...]:
    rows, best = study.search.rows, study.best
    return (
        study.name,
        pair(study.column),
        fraction_name(study.column.fraction),
        str(len(study.search.points)),
        *(str(study.count(status)) for status in (Status.COMPLETED, Status.STOPPED, Status.DIVERGED, Status.FAILED)),
        NOTHING if best is None else accuracy(best),
        str(len(rows)),
        f"{core_hours(map(dict, rows)):,.2f}",
        NOTHING if best is None else told(best.values),
    )


def accuracy(point: Point) -> str:
    """E.g. `87.30 ± 0.21 (3)` over three seeds, `87.30 (1)` of one."""
    values = [row["val_acc"] for row in point.rows]
    std = sample_std(values)
    spread = "" if std is None else f" ± {std:.2f}"
    return f"{mean(values):.2f}{spread} ({len(values)})"


def _render(searched: Searched) -> str:
    table = [tuple(name for name, _ in HEADINGS), *lines(searched)]
    table = [tuple(_clean(cell) for cell in line) for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[-1] = len(HEADINGS[-1][0])  # the last column may be as wide as it likes
    rule = tuple("─" * width for width in widths)
    out = [_clean(caption(searched)), ""]
    for line in (table[0], rule, *table[1:]):
        cells = zip(line, widths, HEADINGS, strict=True)
        out.append(_GAP.join(cell.rjust(width) if right else cell.ljust(width) for cell, width, (_, right) in cells))
    return "\n".join(line.rstrip() for line in out) + "\n"


def _clean(text: str) -> str:
    """Data may not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def counts(study: ShownStudy) -> str:
    """How the points ended, e.g. `8 completed, 3 stopped, 1 diverged`."""
    found = Counter(point.status for point in study.search.points)
    parts = [f"{found[status]} {status}" for status in Status if found[status]]
    return ", ".join([*parts, f"{found[None]} under way"] if found[None] else parts)
