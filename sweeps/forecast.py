"""What the rest of a sweep will cost: hours of cores or GPUs, the time on a machine, money."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from kdtrain import methods
from kdtrain.config import TrialConfig
from kdtrain.data import info_of
from sweeps.cost import Cost
from sweeps.job import Missing
from sweeps.plan import requirements
from sweeps.schema import Status
from sweeps.sharing import key
from sweeps.waiting import ROLES


class Task(NamedTuple):
    """A trial to come: its name, its seconds, the names of what has to end before it begins, and its turn."""

    name: str
    seconds: float
    needs: frozenset[str] = frozenset()
    rank: int = 0  # those of a lower one go first


@dataclass(frozen=True)
class Forecast:
    """What the trials to run will cost; probes take next to nothing."""

    slot_seconds: float  # of all trials together
    wall_seconds: float  # with `slots` trials at a time
    by_work: int  # trials whose time follows from multiply-adds, as no trial of their kind has ended
    unknown: int  # trials whose time nothing says; they count as 0


def makespan(tasks: Iterable[Task], slots: int) -> float:
    """The seconds until all tasks have ended, on `slots` workers.

    Of the tasks that are ready a free one takes the longest of the lowest rank. What a task needs and is not among the
    tasks is there already.
    """
    by_name = {task.name: task for task in tasks}
    open_needs = {name: task.needs & by_name.keys() for name, task in by_name.items()}
    waiting_for: dict[str, list[str]] = defaultdict(list)
    for name, needs in open_needs.items():
        for other in needs:
            waiting_for[other].append(name)
    left = {name: len(needs) for name, needs in open_needs.items()}
    ready = [(by_name[name].rank, -by_name[name].seconds, name) for name, n in left.items() if n == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []  # when each ends
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            *_, name = heapq.heappop(ready)
            heapq.heappush(running, (now + by_name[name].seconds, name))
        now, ended = heapq.heappop(running)
        for name in waiting_for[ended]:
            left[name] -= 1
            if left[name] == 0:
                heapq.heappush(ready, (by_name[name].rank, -by_name[name].seconds, name))
    return now


def forecast(todo: Missing, cost: Cost, cpus: int, slots: int) -> Forecast:
    """What is to be run, at most: searches may stop trials early."""
    tasks, by_work, unknown = list[Task](), 0, 0
    taught = set[str]()  # outputs of teachers that a trial before will have computed
    for name, trial, needs, rank in _to_run(todo):
        found = cost.estimate(trial, cpus)
        unknown += found is None
        by_work += found is not None and not found.like
        own = 0.0 if found is None else found.seconds
        tasks.append(Task(name, own + _teaching(trial, todo, cost, cpus, taught), needs, rank))
    return Forecast(sum(task.seconds for task in tasks), makespan(tasks, slots), by_work, unknown)


def _to_run(todo: Missing) -> Iterator[tuple[str, TrialConfig, frozenset[str], int]]:
    """All trials to come: name, trial, the names of what it waits for (confirmations for all points), and rank.

    Planned trials go first as in `Waiting`, then what searches have yet to choose.
    """
    names = set[str]()
    for job in todo.jobs:
        name = job.key if job.id in names else job.id  # a student may be the same trial as a teacher
        names.add(name)
        yield name, job.trial, job.requirements, ROLES[job.role]
    for search in todo.searches:
        study = search.study
        points = [f"{study.id} {i}" for i in range(search.search_trials_left)]
        for name, seed in zip(points, cycle(search.seeds), strict=False):
            yield name, study.example.model_copy(update={"seed": seed}), study.requirements, len(ROLES)
        if study.confirmation is not None:
            needs = frozenset(requirements(study.confirmation))
            for i, seed in zip(range(search.confirmations_left), cycle(search.fresh), strict=False):
                trial = study.confirmation.model_copy(update={"seed": seed})
                yield f"{study.id} confirmation {i}", trial, needs.union(points), ROLES["student"]


def _teaching(trial: TrialConfig, todo: Missing, cost: Cost, cpus: int, taught: set[str]) -> float:
    """The seconds that a trial spends on outputs of its teacher for whole epochs, unless another has computed them."""
    if trial.teacher is None or trial.probe is not None or not _at_once(trial):
        return 0.0
    epochs = trial.train.epochs
    if todo.sharing.names(trial):
        epochs = epochs if trial.train.augment else 1
        if key(trial) in taught:
            return (cost.reading_seconds(trial, cpus) or 0.0) * trial.train.epochs
        taught.add(key(trial))
    return (cost.teacher_seconds(trial, cpus) or 0.0) * epochs


def _at_once(trial: TrialConfig) -> bool:
    return methods.cacheable(trial.method) and info_of(trial.data).in_memory


def amount(seconds: float, cpus: int, gpus: float) -> tuple[float, str]:
    """Hours of what trials are counted by: of GPUs where they use any, else of cores."""
    return (seconds * gpus / 3600, "GPU-hours") if gpus else (seconds * cpus / 3600, "core-hours")


def predictions(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(predicted, actual) seconds of the rows of completed trials that were predicted."""
    found = []
    for row in rows:
        predicted, total = row["predicted_seconds"], row["train_seconds"]
        if row["status"] == Status.COMPLETED and predicted and total:
            found.append((predicted, total - (row["teacher_seconds"] or 0.0) - (row["shared_seconds"] or 0.0)))
    return found
