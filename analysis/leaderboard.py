"""Groups of trials -> a leaderboard: one entry for each data set, pair, fraction and method."""

from collections import defaultdict
from dataclasses import dataclass, replace

from analysis.columns import Column
from analysis.groups import Group, group_students
from analysis.load import Sweep
from analysis.metrics import METRICS
from analysis.stats import half_width, mean
from analysis.tables import Cell, build_cell, marks, rank, row_name, sweep_seeds

MAIN = METRICS["test_top1"]
OTHERS = tuple(METRICS[key] for key in ("test_top5", "test_nll", "test_ece"))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration of one method. Accuracies in percent; None where no trial has a number."""

    rank: int | None  # among the competing cells of its data set, pair and fraction
    dataset: str
    column: Column
    name: str
    cell: Cell  # of the test top-1 accuracy
    half_width: float | None  # of its 95 % confidence interval
    best: float | None  # mean over the trials' best epochs
    best_splits: str  # what chose those epochs: "val" or "test"
    others: tuple[float | None, ...]  # means of OTHERS
    seconds: float | None  # mean a trial
    params: int | None  # of the student


def build_leaderboard(sweep: Sweep) -> list[Entry]:
    """The entries by data set, pair and fraction, then by rank; those that do not compete come last."""
    seeds = sweep_seeds(sweep)
    places: dict[tuple[str, Column], list[Group]] = defaultdict(list)
    for group in group_students(sweep):
        places[group.dataset, group.column].append(group)
    entries = []
    for _, groups in sorted(places.items(), key=lambda item: (item[0][0], item[0][1].order())):
        cells = [build_cell(group, MAIN, seeds[group.point is not None]) for group in groups]
        cells = [replace(cell, mark=mark) for cell, mark in zip(cells, marks(cells, MAIN), strict=True)]
        ranked = zip(groups, cells, rank(cells, MAIN), strict=True)
        entries += sorted((_entry(group, cell, place) for group, cell, place in ranked), key=_order)
    return entries


def _entry(group: Group, cell: Cell, place: int | None) -> Entry:
    splits = {split for split in group.entries("best_split") if split is not None}
    params = group.values("student_params")
    return Entry(
        rank=place,
        dataset=group.dataset,
        column=group.column,
        name=row_name(group.method, group.settings),
        cell=cell,
        half_width=half_width(group.values(MAIN.key)),
        best=mean(group.values("best_acc")),
        best_splits=" and ".join(sorted(splits)),
        others=tuple(mean(group.values(metric.key)) for metric in OTHERS),
        seconds=mean(group.values("train_seconds")),
        params=int(params[0]) if params else None,
    )


def _order(entry: Entry) -> tuple[bool, int, bool, float]:
    mean_value = entry.cell.mean
    return (entry.rank is None, entry.rank or 0, mean_value is None, -(mean_value or 0.0))
