"""The words of a table that all renderers share. Nothing is escaped here."""

from collections.abc import Sequence
from itertools import groupby

from analysis.columns import Column
from analysis.confirmed import Point, Study
from analysis.metrics import Metric
from analysis.names import ONTO, dataset_name, fraction_name, method_name, model_name, ordinal
from analysis.published import Published
from analysis.tables import Cell, Chosen, Table, equal_budgets
from sweeps.schema import SEARCHED

_RULE = (
    "A searched method is shown by the point with the best mean validation accuracy in its search, trained again on "
    "all training images with fresh seeds."
)
_OF_STUDENT = "Where the student is searched, too, that is of the points with the column's student."
_OTHERS = "Points that were 2nd best there or worse do not compete."
_UNCONFIRMED = "best point not confirmed yet"
NOTHING = "–"


def value(cell: Cell, metric: Metric) -> str:
    """E.g. `74.10 ± 0.20`, `74.10` for one trial, a dash for none."""
    if cell.mean is None:
        return NOTHING
    text = f"{cell.mean:.{metric.decimals}f}"
    return text if cell.std is None else f"{text} ± {cell.std:.{metric.decimals}f}"


def count(cell: Cell) -> str:
    """E.g. `(3)`, or `(2/3)` where one is missing; empty if no trial has ended."""
    if cell.n_missing == cell.n_wanted:
        return ""
    return f"({cell.n})" if cell.n == cell.n_wanted else f"({cell.n}/{cell.n_wanted})"


def problems(cell: Cell) -> str:
    """E.g. `1 failed, 2 diverged`; empty if all is well."""
    counts = {"failed": cell.n_failed, "diverged": cell.n_diverged, "stopped": cell.n_stopped}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def details(cell: Cell) -> str:
    """What stands after the value: count and problems, e.g. `(2/3), 1 failed`."""
    return ", ".join(part for part in (count(cell), problems(cell)) if part)


def printed(number: Published) -> str:
    """E.g. `paper 76.55 ± 0.19 (CID Table 2)`."""
    return f"paper {number.text} ({number.source})"


def letter(table: Table, note: str) -> str:
    """The letter of a footnote: a, b, ..., z, aa, ab, ..."""
    index = table.notes.index(note)
    return (chr(ord("a") + index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def pair(column: Column) -> str:
    """E.g. `ResNet-56 → ResNet-20`."""
    student = "searched student" if column.student == SEARCHED else model_name(column.student)
    return f"{model_name(column.teacher)} → {student}" if column.teacher else student


def fraction(table: Table, column: Column) -> str:
    """The fraction of the column; empty in a table where all students saw all images."""
    return "" if table.fractions == (1.0,) else fraction_name(column.fraction)


def data(dataset: str) -> str:
    """E.g. `CIFAR-100`, `CIFAR-100 → STL-10 (linear probes)`."""
    return dataset_name(dataset) + (" (linear probes)" if ONTO in dataset else "")


def caption(table: Table) -> str:
    """What the table shows, of which sweep, and how far that is."""
    if table.dataset is None:
        return f"Sweep {table.sweep}: {table.status}."
    shown = f"{data(table.dataset)}: {table.metric.name}, mean ± sample standard deviation (number of trials)."
    return f"{shown} Sweep {table.sweep}: {table.status}. {search(table)}".rstrip()


def search(table: Table) -> str:
    """What the searches spent on each method, and whether that is the same; empty if there are none."""
    if not table.studies:
        return ""
    searching = [study for study in table.studies if study.searches]
    alike = len({study.column.fraction for study in searching}) == 1  # which need not be told then
    methods = [_spent(name, list(same), alike) for name, same in groupby(searching, lambda study: study.method)]
    same = "; the same budget for each" if len(searching) > 1 else ""
    title, end = ("Search", same) if equal_budgets(searching) else ("Unequal search budgets", "")
    told = f"{title}: {', '.join(methods)}{end}. " if methods else ""
    names = ", ".join(method_name(method) for method in table.unsearched)
    return (told + (f"Not searched: {names}." if names else "")).rstrip()


def budget(study: Study) -> str:
    """E.g. `24 points (48 trials)`."""
    trials = _several(study.trials, "trial") + ("" if study.confirmed else ", none confirmed")
    return f"{_several(study.points, 'point')} ({trials})"


def values(point: Point) -> str:
    """E.g. `alpha 12.3, beta 0.41`."""
    return ", ".join(f"{name} {value}" for name, value in point.values) or "nothing to search"


def chosen(table: Table) -> list[str]:
    """The points that searches chose, a line for each study, after the rule by which they are shown; else nothing."""
    points = [point for entry in table.chosen for point in entry.points]
    if not points:
        return []
    rule = [_RULE]
    if any(point.study.column.student == SEARCHED for point in points):
        rule.append(_OF_STUDENT)
    if any(point.place > 1 for point in points):
        rule.append(_OTHERS)
    return [" ".join(rule), *(_chosen(table, entry) for entry in table.chosen)]


def _chosen(table: Table, entry: Chosen) -> str:
    fractions = [fraction(table, column) for column in entry.columns]
    places = zip(map(pair, entry.columns), fractions, strict=True)
    where = " and ".join(", ".join(part for part in place if part) for place in places)
    waiting = [_UNCONFIRMED] if entry.points[0].place > 1 else []
    return f"{entry.name}, {where}: {'; '.join([*waiting, *map(_point, entry.points)])}."


def _point(point: Point) -> str:
    place = "" if point.place == 1 else f"{ordinal(point.place)} best "
    return f"{place}{values(point)} (validation {NOTHING if point.score is None else f'{point.score:.2f} %'})"


def _spent(method: str, studies: Sequence[Study], alike: bool) -> str:
    """E.g. `CID 24 points (24 trials) in each of 2 studies`; where they differ, each with its place."""
    name, budgets = method_name(method), [budget(study) for study in studies]
    if len(studies) == 1:
        return f"{name} {budgets[0]}"
    if len(set(budgets)) == 1:
        return f"{name} {budgets[0]} in each of {len(studies)} studies"
    places = [pair(study.column) for study in studies]
    if not alike:
        places = [
            f"{place} at {fraction_name(study.column.fraction)}" for place, study in zip(places, studies, strict=True)
        ]
    return f"{name} {', '.join(f'{own} for {place}' for own, place in zip(budgets, places, strict=True))}"


def _several(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
