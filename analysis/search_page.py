"""Searches -> one HTML file that opens without a network, as the report does."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.names import images_name
from analysis.page import page
from analysis.render.cells import pair
from analysis.search import HEADINGS, Searched, ShownStudy, accuracy, caption, counts, lines, told
from analysis.search_curves import EXPLANATION, best_of_n
from analysis.search_figures import Panel, panels


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of one sweep."""

    searched: Searched
    caption: str
    lines: list[tuple[str, ...]]
    curves: list[Panel]
    studies: list[tuple[str, str, list[Panel]]]  # heading, sentence, panels


def render(found: Sequence[Searched]) -> str:
    """The page of these sweeps' searches."""
    return page(
        "search",
        title=found[0].sweep if len(found) == 1 else f"{len(found)} sweeps",
        sections=[_section(searched) for searched in found],
        headings=HEADINGS,
        explanation=EXPLANATION,
    )


def _section(searched: Searched) -> Section:
    return Section(
        searched=searched,
        caption=caption(searched),
        lines=lines(searched),
        curves=best_of_n(searched),
        studies=[(_heading(study), _sentence(study), panels(study)) for study in searched.studies],
    )


def _heading(study: ShownStudy) -> str:
    return f"{study.name}, {pair(study.column)}, {images_name(study.dataset, study.column.fraction)}"


def _sentence(study: ShownStudy) -> str:
    if study.best is None:
        return f"Study {study.search.id}. No point has completed: {counts(study)}."
    weighed = ", ".join(study.search.objectives)
    values = told(study.best.values)
    best = f"Best: {accuracy(study.best)} % with {values}" if values else f"Nothing to search: {accuracy(study.best)} %"
    return f"Study {study.search.id}, by {weighed}. {best}."
