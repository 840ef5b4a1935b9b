"""What a search costs beside the training: 1,000 replayed trials of 20 cells through Ray Tune; single suggestions."""

import dataclasses
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest.mock import patch

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

import sweeps.ask
from benchmarks.search_grid import Grid
from sweeps import rows
from sweeps.ask import Asking
from sweeps.cost import Cost
from sweeps.job import missing
from sweeps.plan import expand
from sweeps.points import Tried
from sweeps.run import run
from sweeps.schema import EPOCHS, TRIALS, Status
from sweeps.search import SweepSearch
from sweeps.searches import Search, searches
from sweeps.spec import parse_text
from sweeps.store import Store

CELLS, POINTS, KNOWN = 20, 50, 1000
EPOCHS_EACH = 16
ASKED = 20  # suggestions timed of a study with KNOWN points
FRACTIONS = [round((i + 1) / CELLS, 2) for i in range(CELLS)]
# The grid's sweep in 20 fractions, without the weights that diverge. The search is over its method's default space: of
# each point it gets the nearest that is stored.
SPEC = """
[sweep]
name = "{name}"
[data]
dataset = "fashion_mini"
val_size = 2000
[train]
epochs = {epochs}
batch_size = 32
precision = "bf16"
[teacher]
epochs = 6
batch_size = 64
[grid]
pair = ["resnet14/resnet8"]
method = ["cid"]
fraction = {fractions}
seed = [1]
"""
STORED = "[grid.cid]\nalpha = [1.0, 6.3, 16.0]\nbeta = [0.25, 1.6, 10.0]\ntau = [2.0, 7.0, 20.0]\n"
SEARCHED = '[search]\nsampler = "{sampler}"\ntrials = {points}\n[run]\nresults = "{results}"\nreplay = "stored"\n'


@dataclass
class Clock:
    """Seconds of calls: of each suggestion of a trial, and within it of the study and of Optuna."""

    suggest: list[float] = field(default_factory=list)
    ask: list[float] = field(default_factory=list)
    of_optuna: float = 0.0


@dataclass(frozen=True)
class Overhead:
    """What a run of replayed trials took."""

    trials: int
    workers: int
    wall: float  # seconds of `sweeps.run.run`, with the start of Ray
    steady: float  # from the first to the last end of a trial
    load: float  # average of the machine before
    clock: Clock


@dataclass(frozen=True)
class Suggestions:
    """What a study with many known points took."""

    sampler: str
    load: float
    rebuild: float  # seconds
    ask: list[float]
    optuna: list[float]  # of each, within Optuna


def through_ray(grid: Grid, cells: int = CELLS, points: int = POINTS) -> Overhead:
    """Run a search of cells x points trials; no epoch is trained."""
    with tempfile.TemporaryDirectory() as results:
        store_cells(grid, results, FRACTIONS[:cells])
        text = _text("searched", FRACTIONS[:cells]) + SEARCHED.format(sampler="tpe", points=points, results=results)
        spec = parse_text(text)
        plan = expand(spec)
        todo = missing(spec, text, plan, False, searches(spec, plan, Store(results, "searched"), []))
        clock, load = Clock(), os.getloadavg()[0]
        start = time.perf_counter()
        with timed(clock):
            run(todo, spec.run, spec.scheduler, Cost([]), Console(file=io.StringIO()))
        wall = time.perf_counter() - start
        table = Store(results, "searched").read_trials()
    assert table["status"].to_pylist() == [Status.COMPLETED] * cells * points
    ended = sorted(table["ended_at"].to_pylist())
    return Overhead(len(table), os.cpu_count() or 1, wall, (ended[-1] - ended[0]).total_seconds(), load, clock)


def store_cells(grid: Grid, results: str, fractions: list[float]) -> None:
    """Store a sweep that has the grid's rows once for each of these fractions, as if it had trained them."""
    source = Store(grid.results, grid.sweep)
    old = {row["params"]: row for row in source.read_trials().to_pylist()}
    epochs: dict[str, list[dict[str, Any]]] = {}
    for row in source.read_epochs().to_pylist():
        epochs.setdefault(row["trial_id"], []).append(row)
    trials, records = [], []
    for key, trial in expand(parse_text(_text("stored", fractions) + STORED)).trials.items():
        own = rows.identity(trial, "student")
        row = old[own["params"]]
        trials.append({**row, **own})
        records += [{**record, "trial_id": key} for record in epochs[row["trial_id"]]]
    target = Store(results, "stored")
    for kind, found, schema in (("trials", trials, TRIALS), ("epochs", records, EPOCHS)):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(found, schema=schema), buffer)
        target.write_bytes(buffer.getvalue(), kind, "stored.parquet")


def at_known(grid: Grid, sampler: str, known: int = KNOWN, asked: int = ASKED) -> Suggestions:
    """One study of the default space with many known points, whose accuracies are those of the nearest of the grid."""
    search, load = _with_known(grid, sampler, known, asked), os.getloadavg()[0]
    start = time.perf_counter()
    asking = Asking(search)
    rebuild = time.perf_counter() - start
    clock, inner = Clock(), []
    with timed(clock):
        for _ in range(asked):
            before = clock.of_optuna
            each = asking.ask()
            inner.append(clock.of_optuna - before)
            asking.tell(each.number, 1, {"status": Status.COMPLETED, "val_acc": 78.0, "epochs_done": EPOCHS_EACH})
    return Suggestions(sampler, load, rebuild, clock.ask, inner)


def _with_known(grid: Grid, sampler: str, known: int, asked: int) -> Search:
    text = _text("one", [0.2]) + SEARCHED.format(sampler="random", points=known + asked, results=grid.results)
    spec = parse_text(text)
    (empty,) = searches(spec, expand(spec), Store(grid.results, "none"), [])
    drawing, accuracies = Asking(empty), list(grid.accuracies.values())
    points = [drawing.ask() for _ in range(known)]
    tried = [
        Tried(each.number, each.point, each.origin, {1: _row(accuracies[i % len(accuracies)])})
        for i, each in enumerate(points)
    ]
    table = empty.table.model_copy(update={"sampler": sampler})
    return dataclasses.replace(empty, table=table, tried=tried, next_number=known)


def _row(accuracy: float) -> dict[str, Any]:
    return {"status": Status.COMPLETED, "val_acc": accuracy, "epochs_done": EPOCHS_EACH}


def _text(name: str, fractions: list[float]) -> str:
    return SPEC.format(name=name, epochs=EPOCHS_EACH, fractions=fractions)


@contextmanager
def timed(clock: Clock) -> Iterator[None]:
    """Time the searcher's suggestions, the studies' and, within these, the calls of Optuna."""

    def suggest(self: SweepSearch, trial_id: str) -> Any:
        start = time.perf_counter()
        given = plain(self, trial_id)
        if isinstance(given, dict) and "job" in given:
            clock.suggest.append(time.perf_counter() - start)
        return given

    def ask(self: Asking) -> Tried:
        start = time.perf_counter()
        each = plain_ask(self)
        clock.ask.append(time.perf_counter() - start)
        return each

    plain, plain_ask = SweepSearch.suggest, Asking.ask
    study = optuna.Study
    with ExitStack() as stack:
        stack.enter_context(patch.object(SweepSearch, "suggest", suggest))
        stack.enter_context(patch.object(Asking, "ask", ask))
        for owner, name in ((study, "ask"), (study, "tell"), (study, "enqueue_trial"), (sweeps.ask, "_suggest")):
            stack.enter_context(patch.object(owner, name, _inside(clock, getattr(owner, name))))
        yield


def _inside(clock: Clock, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, whose time counts as Optuna's."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            clock.of_optuna += time.perf_counter() - start

    return counted


def quantile(seconds: list[float], share: float) -> float:
    """The value below which a share of the sorted times lies."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def median_ms(seconds: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    return f"{1000 * median(seconds):.1f} ({1000 * quantile(seconds, 0.95):.1f})"
