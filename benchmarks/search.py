"""python -m benchmarks search: how good, fair and fast searches are, on the grid stored in tests/assets/cid_grid.

Simulations that are done are kept in build/search, so it can be stopped and goes on where it was. A change of the grid,
of the code that is simulated or of Optuna or Ray makes them void.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import machine, search_grid, search_overhead, search_ties
from benchmarks.page import DOCS, write
from benchmarks.search_simulate import Ended, Strategy, simulate
from benchmarks.search_tables import known_table, overhead_tables, reading_of, regret_tables, ties_table
from sweeps.tables import SchedulerTable

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "search"
COMMAND = "make bench-search    # python -m benchmarks search"
REPETITIONS = 50
Task = tuple[str, int]  # a strategy, in full, or a measurement; the number of the repetition
PROCESSES = 2


def _asha(grace: int, factor: float) -> SchedulerTable:
    return SchedulerTable(name="asha", grace=grace, reduction_factor=factor)


# Grace 2: CID's first epoch is blind and not counted, then one to leave its start and one to be judged by.
STRATEGIES = (
    Strategy("random", "random"),
    Strategy("random + asha (grace 2, factor 3)", "random", _asha(2, 3)),
    Strategy("tpe", "tpe", until=0.5),
    Strategy("tpe + asha (grace 2, factor 3)", "tpe", _asha(2, 3), until=0.3),
    Strategy("tpe + asha (grace 2, factor 4)", "tpe", _asha(2, 4), until=0.2),
    Strategy("tpe + asha (grace 1, factor 3)", "tpe", _asha(1, 3), until=0.2),
    Strategy("gp", "gp", until=0.3),
)
TIED = [each for each in STRATEGIES if each.name in ("random", "tpe", "tpe + asha (grace 2, factor 3)")]
KNOWN = {"random": (1000, 50), "tpe": (1000, 50), "gp": (1000, 3), "gp, smaller": (100, 20)}  # points, suggestions
_SOURCES = [
    *(ROOT / "sweeps" / f"{name}.py" for name in ("ask", "points", "replay", "samplers")),
    *(ROOT / "sweeps" / f"{name}.py" for name in ("scheduler", "searches", "space")),
    *(ROOT / "benchmarks" / f"{name}.py" for name in ("search_grid", "search_simulate", "search_ties")),
]


def measure() -> Iterable[Table]:
    """All tables; they are also written to docs/search.md."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the simulations' processes
    grid, about = search_grid.load(), machine.facts()
    folder = CACHE / _state(grid)
    runs = _regrets(folder)
    tables = [reading_of(grid), *regret_tables(grid, runs)]
    tables.append(ties_table(_ties(folder)))
    tables += [*overhead_tables(_overhead(folder)), known_table(_known(folder))]
    write(DOCS / "search.md", COMMAND, f"{about.splitlines()[0]}, optuna {version('optuna')}", tables)
    for table in tables:
        yield table.rich()


def _regrets(folder: Path) -> dict[str, list[list[Ended]]]:
    """The simulated searches of each strategy, by seed."""
    found = _cached(folder / "regret.jsonl", _simulated, _tasks(STRATEGIES, REPETITIONS))
    return {
        each.name: [[Ended(*point) for point in found[repr(each), seed]] for seed in range(REPETITIONS)]
        for each in STRATEGIES
    }


def _ties(folder: Path) -> dict[str, list[tuple[search_ties.Values, search_ties.Values]]]:
    found = _cached(folder / "ties.jsonl", _tied, _tasks(TIED, search_ties.SEARCHES))
    return {each.name: [tuple(found[repr(each), i]) for i in range(search_ties.SEARCHES)] for each in TIED}


def _tasks(strategies: Iterable[Strategy], n: int) -> list[Task]:
    return [(repr(each), number) for each in strategies for number in range(n)]


def _strategy(task: Task) -> Strategy:
    return next(each for each in STRATEGIES if repr(each) == task[0])


def _overhead(folder: Path) -> dict[str, Any]:
    """A run through Ray; nothing else of this benchmark runs beside it."""
    return _cached(folder / "overhead.jsonl", _through_ray, [("ray", 0)], processes=0)["ray", 0]


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    found = _cached(folder / "known.jsonl", _asked, [(name, 0) for name in KNOWN], processes=0)
    return {name: found[name, 0] for name in KNOWN}


def _cached(
    path: Path, work: Callable[[Task], Any], tasks: Sequence[Task], processes: int = PROCESSES
) -> dict[Task, Any]:
    """The result of each task; those that are not in the file yet are worked on and added to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {(name, number): result for name, number, result in map(json.loads, lines)}
    todo = [task for task in tasks if task not in found]
    with path.open("a", encoding="utf-8") as stream:
        for task, result in _worked(work, todo, processes):
            found[task] = json.loads(json.dumps(result))
            stream.write(json.dumps([*task, result]) + "\n")
            stream.flush()
    return found


def _worked(work: Callable[[Task], Any], todo: Sequence[Task], processes: int) -> Iterable[tuple[Task, Any]]:
    """The tasks with their results, in the order of their ends; without processes, in this one."""
    if not processes:
        yield from ((task, work(task)) for task in todo)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, task): task for task in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _simulated(task: Task) -> list[Ended]:
    return simulate(search_grid.load(), _strategy(task), task[1])


def _tied(task: Task) -> tuple[search_ties.Values, search_ties.Values]:
    return search_ties.pair(search_grid.load(), _strategy(task), task[1])


def _through_ray(task: Task) -> dict[str, Any]:
    return asdict(search_overhead.through_ray(search_grid.load()))


def _asked(task: Task) -> dict[str, Any]:
    known, asked = KNOWN[task[0]]
    return {
        "known": known,
        **asdict(search_overhead.at_known(search_grid.load(), task[0].partition(",")[0], known, asked)),
    }


def _state(grid: search_grid.Grid) -> str:
    """What the simulations depend on, in a few digits."""
    told = [json.dumps(grid.curves, sort_keys=True), *(path.read_text(encoding="utf-8") for path in _SOURCES)]
    told += [version(name) for name in ("optuna", "ray")]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
