"""The searches of a sweep as text: what is planned, and how far they are."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from kdtrain.build import trial_id
from kdtrain.config import TrialConfig
from sweeps import cost, searched
from sweeps.cells import Axes
from sweeps.job import Job
from sweeps.points import Tried, best
from sweeps.schema import FAMILY, Status
from sweeps.searches import Search
from sweeps.space import Space, told
from sweeps.tables import Spec
from sweeps.words import count


def table(found: Iterable[Search]) -> Table:
    """One line a study: how many of its points and confirmations are done."""
    shown = Table(box=None, pad_edge=False)
    for header in ("method", "pair", "fraction", "points", "confirmed"):
        shown.add_column(header, overflow="fold")  # where there is no terminal, rich takes 80 columns
    for search in found:
        axes = search.study.axes
        ended = sum(each.ended(search.seeds) for each in search.tried)
        most = min(search.top, search.budget) * len(search.fresh)
        confirmations = len(search.winners(search.tried)) if search.over else most
        confirmed = f"{confirmations - search.confirmations_left}/{confirmations}" if confirmations else "-"
        shown.add_row(method(axes), axes["pair"], f"{axes['fraction']:g}", f"{ended}/{search.budget}", confirmed)
    return shown


def spaces(found: Iterable[Search]) -> Iterator[str]:
    """What is searched of each method and of students, a line each."""
    lines = {}
    for search in found:
        whole = search.study.space
        network = {name: dim for name, dim in whole.items() if FAMILY in (name, *dim.when)}
        own = {name: dim for name, dim in whole.items() if name not in network}
        lines[f"space of {method(search.study.axes)}"] = _dimensions(own) or "nothing to search"
        if not search.study.starts and search.study.misfit and not network:
            cell = f"{method(search.study.axes)} {search.study.axes['pair']}"
            lines[f"{cell} starts with a point of the sampler"] = search.study.misfit
        if network:
            without = {name: dim.model_copy(update={"when": {}}) for name, dim in network.items()}
            lines[f"students of {search.study.axes['pair']}"] = _dimensions(without)
        if searched.own_teachers(search.study.example.method):
            lines[f"teachers of {method(search.study.axes)}"] = (
                "its own, trained as points need them and not counted here"
            )
    return (f"{name}: {line}" for name, line in lines.items())


def _dimensions(space: Space) -> str:
    return ", ".join(f"{name} {told(dim)}" for name, dim in space.items())


def method(axes: Axes) -> str:
    """The method of a study with what the grid gives it."""
    shown = ("method", "pair", "fraction", "seed")
    return " ".join([axes["method"], *(f"{key}={value}" for key, value in axes.items() if key not in shown)])


def how(spec: Spec) -> str:
    """How the points of a spec's searches are chosen, judged, stopped and confirmed, in a sentence."""
    search, scheduler, confirm = spec.search, spec.scheduler, spec.confirm
    assert search is not None
    parts = [f"Points are chosen by {search.sampler} for {', '.join(search.objectives)}"]
    if len(spec.grid.seed) > 1:
        parts.append(f"mean over the seeds {' '.join(map(str, spec.grid.seed))}")
    if search.limits:
        parts.append("within " + ", ".join(f"{name} <= {limit:g}" for name, limit in search.limits.items()))
    if search.prior:
        parts.append(f"after the best of {search.prior}")
    if scheduler is not None:
        parts.append(f"stopped early by {scheduler.name}")
    if confirm is not None:
        seeds = " ".join(map(str, confirm.seed))
        parts.append(f"and the best {confirm.top} trained again on all images with the seeds {seeds}")
    if spec.run.replay:
        parts.append(f"replayed from {spec.run.replay}: nothing is trained")
    return ", ".join(parts) + "."


def multiply_adds(found: Iterable[Search]) -> float | None:
    """Those of all that the searches train, done or not, as `cost.multiply_adds`; searched students in equal parts."""
    total = 0.0
    for search in found:
        names = list(search.costs) or [search.study.example.student]
        confirmations = min(search.top, search.budget) * len(search.fresh)
        kinds = ((search.study.example, search.budget * len(search.seeds)), (search.study.confirmation, confirmations))
        for trial, n in kinds:
            own = [] if trial is None else [trial.model_copy(update={"student": name}) for name in names]
            if (one := cost.multiply_adds(own)) is None:
                return None
            total += one * n / len(names)
    return total


def progress(found: Iterable[Search]) -> Iterator[str]:
    """How far each search is, a line a study."""
    for search in found:
        axes = search.study.axes
        ended = [each for each in search.tried if each.ended(search.seeds)]
        states = [each.status(search.seeds) for each in ended]
        told_states = [f"{states.count(status)} {status}" for status in Status if status in states]
        told_states += [f"{len(search.tried) - len(ended)} under way"] if len(ended) < len(search.tried) else []
        line = f"{method(axes)} {axes['pair']} fraction {axes['fraction']:g}: {len(ended)}/{search.budget} points"
        line += f" ({', '.join(told_states)})" if told_states else ""
        if leader := best(search.tried, search.seeds, search.table.objectives, 1):
            line += f", best {_score(leader[0], search)}"
        if search.over and search.top:
            line += f", {_confirmed(search)}"
        yield f"{line}."


def _confirmed(search: Search) -> str:
    """How far the confirmations of a study are whose points have all ended."""
    if left := search.confirmations_left:
        return f"{count(left, 'confirmation')} left"
    states = [search.confirmation(each, seed) for each, seed in search.winners(search.tried)]
    if not states:
        return "nothing to confirm"
    bad = len(states) - states.count(Status.COMPLETED)
    return f"confirmed, {bad} of {len(states)} did not complete" if bad else "confirmed"


def _score(each: Tried, search: Search) -> str:
    values: Any = each.values(search.seeds, search.table.objectives)
    scores = ", ".join(f"{name} {value:.6g}" for name, value in zip(search.table.objectives, values, strict=True))
    point = " ".join(f"{name}={value}" for name, value in each.point.items())
    return f"{scores} at {point}" if point else scores


def under_way(found: Sequence[Search], asked: Iterable[Job]) -> dict[str, TrialConfig]:
    """The trials of searches that may have begun and have not ended, by id."""
    known = {(search.study.id, each.number) for search in found for each in search.open}
    trials = {job.id: job.trial for job in asked if (job.searched["study"], job.searched["number"]) in known}
    for search in found:
        for each, seed in search.missing(search.tried) if search.over else ():
            trial, _ = search.study.cell.confirmation(each.point, seed)
            trials[trial_id(trial)] = trial
    return trials
