"""Groups of trials -> plotly figures, with the caption that each needs.

Colours come in two palettes, for light and for dark pages. A trace's `meta` holds both; the report's
script applies one.
"""

import html
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis.columns import Column
from analysis.groups import Group
from analysis.names import ONTO, dataset_name, images_name
from analysis.render import cells
from analysis.stats import mean, sample_std
from analysis.tables import row_name

LIGHT = ["#2f6fde", "#c93c50", "#1d8a5f", "#b7791f", "#7b4fc9", "#0e8fa8", "#c2418f", "#6b7280", "#8a5a2b", "#5b8c00"]
DARK = ["#7aa7ff", "#ff8a97", "#5fd3a2", "#f2bd5c", "#bb9bff", "#5fd0e6", "#f291cc", "#a9b2c0", "#cfa37a", "#b3dd5a"]
DASHES = ("solid", "dash", "dot", "dashdot")
BAND_OPACITY = 0.16
Styles = Mapping[str, int]  # display name of a method -> its place in the palette


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plotly figure and its caption."""

    plot: go.Figure
    caption: str


def epoch_figures(groups: list[Group], epochs: pd.DataFrame, sweep: str) -> list[Figure]:
    """Accuracy over epochs, one figure for each data set, pair and fraction.

    epochs: trial_id, epoch, val_acc, test_acc of the groups' completed trials, in percent.
    """
    styles = _styles(groups)
    places: dict[tuple[str, Column], list[Group]] = defaultdict(list)
    for group in groups:
        places[group.dataset, group.column].append(group)
    figures = []
    for (dataset, column), members in places.items():
        plot = layout("Epoch")
        for group in members:
            _add_curve(plot, group, epochs, styles)
        if plot.data:
            _leave_out_start(plot)
            where = f"{cells.pair(column)}, {images_name(dataset, column.fraction)}"
            text = f"{where}: top-1 accuracy after each epoch, mean over n trials, bands from minimum to maximum."
            start = (
                "The axis leaves out the first eighth of the epochs where that lies lower; a double click shows all."
            )
            figures.append(Figure(plot=plot, caption=f"{text} {start} Sweep {sweep}."))
    return figures


def fraction_figures(groups: list[Group], sweep: str) -> list[Figure]:
    """Final accuracy over the fraction of the data, one figure for each pair that has two fractions or more."""
    styles = _styles(groups)
    places: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        if group.values("test_top1"):
            places[group.dataset, cells.pair(group.column)].append(group)
    figures = []
    for (dataset, name), members in places.items():
        fractions = sorted({group.column.fraction for group in members})
        if len(fractions) < 2:
            continue
        plot = layout(f"Training images of {dataset_name(dataset.split(ONTO)[-1])} (%)")
        plot.update_xaxes(tickvals=[100 * fraction for fraction in fractions])
        rows: dict[str, list[Group]] = defaultdict(list)
        for group in members:
            rows[row_name(group.method, group.settings)].append(group)
        for row, same in rows.items():
            _add_fractions(plot, row, same, styles[row])
        where = f"{name}, {cells.data(dataset)}"
        text = f"{where}: test top-1 accuracy after the last epoch, mean ± sample standard deviation over n trials"
        figures.append(Figure(plot=plot, caption=f"{text}. Sweep {sweep}."))
    return figures


def _styles(groups: list[Group]) -> Styles:
    names = dict.fromkeys(row_name(group.method, group.settings) for group in groups)
    return {name: place for place, name in enumerate(names)}


def _add_curve(plot: go.Figure, group: Group, epochs: pd.DataFrame, styles: Styles) -> None:
    """The mean of one group's trials, and its band if there are two or more."""
    rows = epochs[epochs["trial_id"].isin(group.completed("trial_id"))]
    # With a validation split, only the last epoch is tested.
    split = "test_acc" if rows["test_acc"].notna().all() else "val_acc"
    curve = rows.groupby("epoch")[split].agg(["mean", "min", "max"]).dropna().round(3)
    if curve.empty:
        return
    name = row_name(group.method, group.settings)
    n = rows["trial_id"].nunique()
    x = [int(epoch) for epoch in curve.index]
    means, low, high = (curve[key].tolist() for key in ("mean", "min", "max"))
    if n > 1:
        area = {"fill": "toself", "mode": "none", "showlegend": False, "hoverinfo": "skip"}
        _add(plot, name, styles[name], {"x": x + x[::-1], "y": high + low[::-1], **area})
    label = f"{name} ({'validation, ' if split == 'val_acc' else ''}n={n})"
    # A line through a single point would be invisible.
    mode = "lines" if len(x) > 1 else "markers"
    _add(plot, name, styles[name], {"name": html.escape(label), "x": x, "y": means, "mode": mode})


def _leave_out_start(plot: go.Figure) -> None:
    """Fit the axis to all but the first eighth of the epochs: methods differ by a few points, and late."""
    last = max(max(trace.x) for trace in plot.data)
    late = [y for trace in plot.data for x, y in zip(trace.x, trace.y, strict=True) if x > last / 8]
    low, high = min(late), max(y for trace in plot.data for y in trace.y)
    margin = 0.05 * (high - low) or 1.0
    plot.update_yaxes(range=[low - margin, high + margin])


def _add_fractions(plot: go.Figure, name: str, groups: list[Group], place: int) -> None:
    """One method's points, the standard deviation as error bars."""
    groups = sorted(groups, key=lambda group: group.column.fraction)
    values = [group.values("test_top1") for group in groups]
    counts = sorted({len(each) for each in values})
    n = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]}–{counts[-1]}"
    deviations = [sample_std(each) or 0.0 for each in values]
    trace = {
        "name": html.escape(f"{name} ({n})"),
        "x": [100 * group.column.fraction for group in groups],
        "y": [mean(each) for each in values],
        "error_y": {"type": "data", "array": deviations, "thickness": 1.2, "width": 4},
        "mode": "lines+markers",
    }
    _add(plot, name, place, trace)


def _add(plot: go.Figure, name: str, place: int, trace: Mapping[str, Any]) -> None:
    """Add a trace in the colours of `place`. Names come from data and are escaped: plotly reads tags in them."""
    light, dark = LIGHT[place % len(LIGHT)], DARK[place % len(DARK)]
    red, green, blue = (int(light[i : i + 2], 16) for i in (1, 3, 5))
    plot.add_scatter(
        legendgroup=html.escape(name),
        line={"color": light, "width": 2, "dash": DASHES[place // len(LIGHT) % len(DASHES)]},
        fillcolor=f"rgba({red},{green},{blue},{BAND_OPACITY})",
        meta={"light": light, "dark": dark},
        **trace,
    )


def layout(x_title: str) -> go.Figure:
    """An empty figure on a transparent background; the report's script sets the colours of text and lines."""
    axis = {"showline": True, "ticks": "outside", "ticklen": 4, "zeroline": False}
    return go.Figure(
        layout={
            "template": "none",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "height": 420,
            "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "hovermode": "closest",
            # Above the plot: there the margin grows with the lines that the legend needs on a narrow screen.
            "legend": {"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0, "xanchor": "left"},
            "xaxis": axis | {"title": {"text": html.escape(x_title), "standoff": 8}, "showgrid": False},
            "yaxis": axis | {"title": {"text": "Top-1 accuracy (%)", "standoff": 8}},
        }
    )
