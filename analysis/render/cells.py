"""The words of a table that all renderers share. Nothing is escaped here."""

from analysis.groups import Column
from analysis.metrics import Metric
from analysis.names import ONTO, dataset_name, fraction_name, model_name
from analysis.published import Published
from analysis.tables import Cell, Table

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
    student = model_name(column.student)
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
    return (
        f"{data(table.dataset)}: {table.metric.name}, mean ± sample standard deviation "
        f"(number of trials). Sweep {table.sweep}: {table.status}."
    )
