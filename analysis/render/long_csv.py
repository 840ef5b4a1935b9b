"""Table -> CSV, one line a cell, with the identifiers of the store and unrounded numbers."""

import csv
import io

from analysis.columns import Column
from analysis.published import PAPERS, Published
from analysis.tables import Cell, Table, TableRow

_COUNTS = ("n", "n_failed", "n_diverged", "n_stopped", "n_missing")
_PLACE = ("sweep", "dataset", "pair", "fraction", "method", "settings", "metric")
_PAPERS = tuple(name for paper in PAPERS for name in (paper, f"{paper}_std", f"{paper}_table", f"{paper}_note"))
_SEARCH = ("study", "point", "search_place", "search_score", "search_points", "search_trials")
FIELDS = (*_PLACE, "mean", "std", *_COUNTS, "mark", *_PAPERS, *_SEARCH, "replayed")


def render(tables: list[Table]) -> str:
    """One CSV text with a header line; an empty field where there is no number."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                own = {**_numbers(cell), **_searched(cell), "replayed": table.replayed}
                writer.writerow(_place(table, column, row) | own)
    return buffer.getvalue()


def _place(table: Table, column: Column, row: TableRow) -> dict[str, object]:
    return {
        "sweep": table.sweep,
        "dataset": table.dataset,
        "pair": f"{column.teacher}/{column.student}" if column.teacher else column.student,
        "fraction": column.fraction,
        "method": row.method,
        "settings": "; ".join(f"{key}={value}" for key, value in row.settings),
        "metric": table.metric.key,
    }


def _numbers(cell: Cell) -> dict[str, object]:
    printed = [field for number in cell.published for field in _printed(number).items()]
    return {
        "mean": cell.mean,
        "std": cell.std,
        **{name: getattr(cell, name) for name in _COUNTS},
        "mark": cell.mark.value,
        **dict(printed),
    }


def _searched(cell: Cell) -> dict[str, object]:
    point = cell.point
    if point is None:
        return {}
    study = point.study
    values = (study.id, point.json, point.place, point.score, study.points, study.trials)
    return dict(zip(_SEARCH, values, strict=True))


def _printed(number: Published) -> dict[str, object]:
    paper = number.paper
    return {
        paper: number.value,
        f"{paper}_std": number.std,
        f"{paper}_table": number.table,
        f"{paper}_note": number.note,
    }
