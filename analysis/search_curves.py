"""Studies of one pair -> the best that n of their points are expected to hold: methods at equal budgets."""

import html
from collections import defaultdict
from collections.abc import Sequence

from analysis.best_of_n import RESAMPLES, curve
from analysis.columns import Column
from analysis.figures import BAND_OPACITY, DARK, DASHES, LIGHT
from analysis.figures import layout as empty_plot
from analysis.names import images_name
from analysis.render.cells import pair
from analysis.search import Searched, ShownStudy
from analysis.search_figures import Panel

EXPLANATION = (
    "The best validation accuracy to expect of n points that are drawn, in any order and without replacement, from the "
    f"N of a study that have ended; with 95 % bootstrap bands ({RESAMPLES:,} resamples of the points). A point that "
    "was stopped, diverged or failed costs its budget and has no value. Where a sampler learns, its better points come "
    "late, so the left of a curve is not what a shorter search would find. Near n = N the bands are too narrow, as no "
    "resample holds a better point than the best."
)


def best_of_n(searched: Searched) -> list[Panel]:
    """A panel for each data set, pair and fraction."""
    places: dict[tuple[str, Column], list[ShownStudy]] = defaultdict(list)
    for study in searched.studies:
        for column in study.pairs:
            places[study.dataset, column].append(study)
    names = dict.fromkeys(study.name for study in searched.studies)
    styles = {name: place for place, name in enumerate(names)}
    return [
        _panel(searched.sweep, *place, same, styles)
        for place, same in places.items()
        if any(study.best for study in same)
    ]


def _panel(sweep: str, dataset: str, column: Column, studies: Sequence[ShownStudy], styles: dict[str, int]) -> Panel:
    without = [f"{study.name} has no completed point." for study in studies if not study.best]
    studies = [study for study in studies if study.best]
    values = [[point.accuracy for point in study.ended] for study in studies]
    floor = min(value for each in values for value in each if value is not None)
    plot = empty_plot("Points drawn, n")
    plot.update_layout(
        yaxis={"title": {"text": "Expected best validation accuracy (%)"}},
        # Else a short axis has marks between whole numbers, and says them twice.
        xaxis={"tickformat": "d", "dtick": 1 if max(map(len, values)) <= 12 else None},
    )
    for study, own in zip(studies, values, strict=True):
        found, place = curve(own, floor), styles[study.name]
        x, colour = list(range(1, len(own) + 1)), (LIGHT[place % len(LIGHT)], DARK[place % len(DARK)])
        common = {"legendgroup": html.escape(study.name), "meta": {"colours": {"line.color": colour}}}
        area = {"x": x + x[::-1], "y": found.high + found.low[::-1], "fill": "toself", "mode": "none"}
        shade = {"fillcolor": tuple(f"{each}{round(255 * BAND_OPACITY):02x}" for each in colour)}
        plot.add_scatter(**{**common, **area, "meta": {"colours": shade}}, showlegend=False, hoverinfo="skip")
        none = sum(value is None for value in own)
        plot.add_scatter(
            **common,
            name=html.escape(f"{study.name} (N={len(own)}" + f", {none} without a value" * (none > 0) + ")"),
            x=x,
            y=found.best,
            mode="lines" if len(x) > 1 else "markers",
            line={"width": 2, "dash": DASHES[place // len(LIGHT) % len(DASHES)]},
        )
    where = f"{pair(column)}, {images_name(dataset, column.fraction)}"
    text = f"A point without a value counts as the lowest that any of these studies completed, {floor:.2f} %."
    return Panel(title=where, caption=" ".join([text, *without, f"Sweep {sweep}."]), plots=(plot,))
