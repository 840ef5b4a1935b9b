"""Sweeps -> the report, one HTML file that opens without a network."""

from dataclasses import dataclass
from itertools import groupby

from analysis.figures import Figure, epoch_figures, fraction_figures
from analysis.groups import group_students
from analysis.leaderboard import MAIN, OTHERS, Entry, build_leaderboard
from analysis.load import Sweep, load, load_epochs
from analysis.names import dataset_name, fraction_name
from analysis.page import page
from analysis.provenance import Provenance, build_provenance
from analysis.render import cells
from analysis.tables import Table, build_tables


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the report shows of one sweep."""

    sweep: Sweep
    leaderboard: list[Entry]
    tables: list[Table]  # none if no student has ended
    searches: list[str]  # what the searches spent, a sentence or two for each data set
    epoch_figures: list[Figure]
    fraction_figures: list[Figure]
    provenance: Provenance


def render(results: str, names: list[str]) -> str:
    """The report of these sweeps of a results folder. StoreError names a file that cannot be read."""
    sections = [_section(results, name) for name in names]
    return page(
        "report",
        title=names[0] if len(names) == 1 else f"{len(names)} sweeps",
        sections=sections,
        has_figures=any(section.epoch_figures or section.fraction_figures for section in sections),
        cells=cells,
        dataset_name=dataset_name,
        fraction_name=fraction_name,
        metrics=(MAIN, *OTHERS),
        pair_spans=_pair_spans,
    )


def _section(results: str, name: str) -> Section:
    sweep = load(results, name)
    groups = group_students(sweep)
    completed = sweep.trials[sweep.trials["status"] == "completed"]
    epochs = load_epochs(results, name, completed["trial_id"])
    tables = [table for table in build_tables(sweep, MAIN) if table.rows]
    return Section(
        sweep=sweep,
        leaderboard=build_leaderboard(sweep),
        tables=tables,
        searches=[text for text in map(cells.search, tables) if text],
        epoch_figures=epoch_figures(groups, epochs, name),
        fraction_figures=fraction_figures(groups, name),
        provenance=build_provenance(sweep),
    )


def _pair_spans(table: Table) -> list[tuple[str, int]]:
    """The pairs of a table's columns and how many columns each has."""
    return [(pair, len(list(same))) for pair, same in groupby(table.columns, cells.pair)]
