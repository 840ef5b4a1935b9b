"""Studies -> plotly figures: Optuna's own where it has them, and ours.

A trace's `meta` holds colours by the path of what they colour, each as (on a light page, on a dark one) or as the name
of a variable of report.css; search.js applies them. Optuna's layouts and colours are left out.
"""

import html
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from analysis.figures import layout as empty_plot
from analysis.search import ShownStudy, counts
from sweeps.schema import Status

ENOUGH = 20  # completed points, below which an importance would be noise
_SHARE = 0.25  # of the completed points that PED-ANOVA compares with all; Optuna advises five or more
_HEIGHT = 340
_ACCURACY = "Validation accuracy (%)"
_AXES = {"val_acc": _ACCURACY, "params": "Parameters", "macs": "Multiply-adds an image", "latency_ms": "Latency (ms)"}
ACCENT, WARM, RED = ("#2f6fde", "#7aa7ff"), ("#b7791f", "#f2bd5c"), ("#c93c50", "#ff8a97")
MUTED, TEXT, PAGE = "--muted", "--text", "--page"
# From what recedes into the page to what stands out.
_SCALE = (
    [[0, "#e3ecfc"], [0.5, "#6f9fe8"], [1, "#0b3a8f"]],
    [[0, "#1c2a44"], [0.5, "#4d7fd1"], [1, "#cfe0ff"]],
)
_SYMBOLS = {
    Status.STOPPED: ("square-open", WARM),
    Status.DIVERGED: ("x", RED),
    Status.FAILED: ("triangle-up-open", MUTED),
}
Colours = Mapping[str, Any]
_EVALUATOR = PedAnovaImportanceEvaluator(target_quantile=_SHARE)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Plots that share a caption; none, if the caption says why there is nothing to see."""

    title: str
    caption: str
    plots: tuple[go.Figure, ...] = ()


def panels(study: ShownStudy) -> list[Panel]:
    """All that is shown of one study; nothing where nothing is searched."""
    if not study.search.distributions:
        return []
    weights = importances(study)
    plane = plane_of(study, weights)
    if not study.best:
        return [_divergence(study, plane)] if study.ended else []
    found = [
        _history(study),
        _importance(study, weights),
        _contour(study, plane),
        _divergence(study, plane),
        *_fronts(study),
        _slices(study),
    ]
    return sorted(found, key=lambda panel: not panel.plots)  # what is not shown last


def importances(study: ShownStudy) -> dict[str, float] | None:
    """The importance of each parameter for val_acc by PED-ANOVA, the most important first; None of too few points."""
    n = study.count(Status.COMPLETED)
    if n < ENOUGH or len(study.search.distributions) < 2:
        return None
    with warnings.catch_warnings():  # that a target must be lower where better, and that some conditions are rare
        warnings.simplefilter("ignore", UserWarning)
        return optuna.importance.get_param_importances(study.optuna, evaluator=_EVALUATOR, target=_loss(study))


def plane_of(study: ShownStudy, weights: Mapping[str, float] | None) -> list[str]:
    """Two numeric parameters (or as many as there are): alpha and beta, else the most important, else the first."""
    numeric = [name for name, dist in study.search.distributions.items() if _is_numeric(dist)]
    named = [[name for name in numeric if name.rpartition(".")[2] == greek] for greek in ("alpha", "beta")]
    if all(len(names) == 1 for names in named):
        return sorted(name for names in named for name in names)
    if weights is not None:
        numeric.sort(key=lambda name: -weights.get(name, 0.0))
    return sorted(numeric[:2])  # Optuna's order of axes


def _history(study: ShownStudy) -> Panel:
    target, name = _accuracy(study), _ACCURACY
    made = optuna.visualization.plot_optimization_history(study.optuna, target=target, target_name=name)
    points, *best = [trace for trace in made.data if len(trace.x)]
    plot = _plot("Point, in the order of asking", _ACCURACY)
    for line in best:
        _add(plot, line, {"line.color": WARM}, name="best so far", line={"shape": "hv", "width": 2})
    _add(plot, points, {"marker.color": ACCENT}, name="completed", marker={"size": 7})
    return _panel(study, "Optimisation history", f"{counts(study)}.", plot)


def _importance(study: ShownStudy, weights: Mapping[str, float] | None) -> Panel:
    title, n = "Parameter importance", study.count(Status.COMPLETED)
    if weights is None:
        why = (
            "needs two searched parameters or more"
            if len(study.search.distributions) < 2
            else f"needs {ENOUGH} completed points or more, and there are {n}"
        )
        return _panel(study, title, f"Not shown: it {why}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = optuna.visualization.plot_param_importances(
            study.optuna, evaluator=_EVALUATOR, target=_loss(study), target_name=_ACCURACY
        )
    plot = _plot("Importance, as shares of 1", "")
    for trace in made.data:
        _add(plot, trace, {"marker.color": ACCENT}, hovertemplate="%{y}: %{x:.3f}<extra></extra>", showlegend=False)
    plot.update_layout(yaxis={"automargin": True}, xaxis={"range": [0, 1.12 * max(weights.values())]})
    text = f"A rough guide: how far the values of the best quarter of {n} completed points differ from those of all"
    return _panel(study, title, f"{text} (PED-ANOVA).", plot)


def _contour(study: ShownStudy, plane: Sequence[str]) -> Panel:
    title = f"Contour of {' and '.join(plane)}" if len(plane) == 2 else "Contour"
    both = [trial for trial in _completed(study) if all(name in trial.params for name in plane)]
    if len(plane) < 2 or any(len({trial.params[name] for trial in both}) < 2 for name in plane):
        return _panel(study, title, "Not shown: it needs two numeric parameters with two completed values or more.")
    made = optuna.visualization.plot_contour(
        study.optuna, params=list(plane), target=_accuracy(study), target_name=_ACCURACY
    )
    plot = _plot(plane[0], plane[1], made.layout)
    area, points, _ = made.data
    _add(plot, area, {"colorscale": _SCALE}, reversescale=False, line={"width": 0}, colorbar=_colourbar())
    marker = {"size": 6, "line": {"width": 1}}
    _add(plot, points, {"marker.color": PAGE, "marker.line.color": TEXT}, marker=marker, hoverinfo="x+y")
    return _panel(study, title, f"{_ACCURACY}, interpolated between {len(both)} completed points (dots).", plot)


def _divergence(study: ShownStudy, plane: Sequence[str]) -> Panel:
    """Where points diverged, were stopped or failed, in the plane; against the points' numbers if it has one axis."""
    ended, title = study.ended, "Divergence map"
    if not plane:
        return _panel(study, title, "Not shown: no parameter is numeric.")
    x, y = plane[0], plane[1] if len(plane) > 1 else None
    shown = [point for point in ended if all(name in point.values for name in plane)]
    plot = _plot(x, y or "Point, in the order of asking")
    for name, key in (("xaxis", x), ("yaxis", y)):
        dist = study.search.distributions.get(key) if key else None
        if isinstance(dist, FloatDistribution | IntDistribution) and dist.log:
            plot.update_layout({name: {"type": "log"}})
    for status in Status:
        same = [point for point in shown if point.status is status]
        trace = go.Scatter(
            x=[point.values[x] for point in same],
            y=[point.values[y] if y else point.number for point in same],
            mode="markers",
            name=f"{status} ({len(same)})",
            text=[f"point {point.number}" + _percent(point.accuracy) for point in same],
            marker={"size": 10, "symbol": "circle" if status is Status.COMPLETED else _SYMBOLS[status][0]},
        )
        if not same:
            continue
        hover = "%{text}<br>%{x}, %{y}<extra></extra>"
        if status is Status.COMPLETED:
            marker = {"color": [point.accuracy for point in same], "colorbar": _colourbar(), "line": {"width": 1}}
            colours = {"marker.colorscale": _SCALE, "marker.line.color": MUTED}
            _add(plot, trace, colours, marker=marker, hovertemplate=hover)
        else:
            _add(plot, trace, {"marker.color": _SYMBOLS[status][1]}, hovertemplate=hover)
    diverged = study.count(Status.DIVERGED)
    rate = f"{diverged} of {len(ended)} ended points diverged ({100 * diverged / len(ended):.1f} %)"
    left = f"; {len(ended) - len(shown)} points without these parameters are not shown" * (len(shown) < len(ended))
    colour = f" Completed points by their {_ACCURACY.lower()}." if study.best else ""
    return _panel(study, title, f"{rate}{left}.{colour}", plot.update_layout(showlegend=True))


def _fronts(study: ShownStudy) -> list[Panel]:
    """The Pareto front: the first objective against each of the others."""
    names = study.search.objectives
    plots = [_front(study, i) for i in range(1, len(names))]
    if not plots:
        return []
    front = f"{len(study.optuna.best_trials)} of {study.count(Status.COMPLETED)} completed points"
    text = f"The front has {front}: no other one is as good in all of {', '.join(names)} and better in one."
    return [_panel(study, "Pareto front", text, *plots)]


def _front(study: ShownStudy, i: int) -> go.Figure:
    names = study.search.objectives
    made = optuna.visualization.plot_pareto_front(
        study.optuna, target_names=[names[i], names[0]], targets=lambda trial: [trial.values[i], trial.values[0]]
    )
    plot = _plot(_AXES[names[i]], _AXES[names[0]])
    kinds = (("dominated", MUTED, "circle-open", 7), ("Pareto front", ACCENT, "circle", 10))
    for trace, (name, colour, symbol, size) in zip(made.data, kinds, strict=True):
        plain = go.Scatter(x=trace.x, y=trace.y, mode="markers")
        _add(plot, plain, {"marker.color": colour}, name=name, marker={"symbol": symbol, "size": size})
    return plot


def _slices(study: ShownStudy) -> Panel:
    seen = {name for trial in _completed(study) for name in trial.params}
    plots = [_slice(study, name) for name in study.search.distributions if name in seen]
    text = f"{_ACCURACY} of {study.count(Status.COMPLETED)} completed points over each parameter; the darker, the later"
    return _panel(study, "Slices", f"{text} (on a dark page the brighter).", *plots)


def _slice(study: ShownStudy, name: str) -> go.Figure:
    made = optuna.visualization.plot_slice(study.optuna, params=[name], target=_accuracy(study), target_name=_ACCURACY)
    plot = _plot(name, _ACCURACY, made.layout)
    marker = {"size": 8, "line": {"width": 1}, "showscale": False}
    colours = {"marker.colorscale": _SCALE, "marker.line.color": MUTED}
    _add(plot, made.data[0], colours, marker=marker, showlegend=False)
    dist = study.search.distributions[name]
    if isinstance(dist, CategoricalDistribution):
        plot.update_layout(xaxis={"range": [-0.5, len(dist.choices) - 0.5]})
    return plot.update_layout(height=280)


def _is_numeric(dist: BaseDistribution) -> bool:
    """Whether values have places on an axis, choices among numbers too."""
    choices = dist.choices if isinstance(dist, CategoricalDistribution) else ()
    return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)


def _completed(study: ShownStudy) -> list[FrozenTrial]:
    return study.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _accuracy(study: ShownStudy) -> Any:
    """Optuna's `target`: none where the accuracy is all that is weighed, as then it knows the direction."""
    place, several = study.search.objectives.index("val_acc"), len(study.search.objectives) > 1
    return (lambda trial: trial.values[place]) if several else None


def _loss(study: ShownStudy) -> Any:
    """The target of an evaluator that takes lower values for better."""
    target = _accuracy(study)
    return (lambda trial: -target(trial)) if target else None


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f": {accuracy:.2f} %"


def _panel(study: ShownStudy, title: str, text: str, *plots: go.Figure) -> Panel:
    where = f"{study.name}, n={len(study.search.points)} points. Sweep {study.sweep}."
    return Panel(title=title, caption=f"{text} {where}", plots=plots)


def _colourbar() -> dict[str, Any]:
    return {"thickness": 10, "outlinewidth": 0, "title": {"text": "%"}, "xpad": 4}


def _plot(x: str, y: str, layout: Any = None) -> go.Figure:
    """An empty plot; of Optuna's layout it has the kind and the range of the axes."""
    plot = empty_plot(x)
    plot.update_layout(height=_HEIGHT, yaxis={"title": {"text": html.escape(y)}})
    for name in ("xaxis", "yaxis") if layout is not None else ():
        axis = _escaped(layout[name].to_plotly_json())
        plot.update_layout({name: {key: value for key, value in axis.items() if key != "title"}})
    return plot


def _add(plot: go.Figure, trace: Any, colours: Colours, **changes: Any) -> None:
    """Add a trace in these colours. All strings that it has come from data, and plotly reads tags in them."""
    plain = type(trace)(_escaped(trace.to_plotly_json()))
    plot.add_trace(plain.update(changes).update(meta={"colours": dict(colours)}))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        return [_escaped(each) for each in value]
    return value
