"""What is left of the searches of a sweep: the points that its rows have, and those that are still to be tried."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from kdtrain import methods
from kdtrain.build import trial_id
from kdtrain.config import ConfigError, TrialConfig, canonical
from kdtrain.data import info_of
from kdtrain.models.cost import cost, latency
from sweeps import searched, space
from sweeps.plan import Plan, Study, describe
from sweeps.points import COLUMNS, Row, Tried, best, tried
from sweeps.prior import first_points
from sweeps.schema import Status
from sweeps.space import Point
from sweeps.store import Store
from sweeps.tables import SearchTable, Spec
from sweeps.words import count

LATENCY_SECONDS = 0.5  # for which a student is timed
Costs = dict[str, dict[str, float]]  # by student: the columns of a row


@dataclass(frozen=True)
class Search:
    """A study with what its rows have."""

    study: Study
    table: SearchTable
    seeds: tuple[int, ...]
    tried: list[Tried]  # in the order of asking, those that have not ended among them
    next_number: int
    prior: list[Point]  # tried after the study's own starting points
    costs: Costs
    top: int  # points to confirm; 0: none
    fresh: tuple[int, ...]  # the seeds of confirmations
    confirmed: dict[tuple[str, int], str]  # statuses of confirmations that have ended, by point (JSON) and seed

    @cached_property
    def budget(self) -> int:
        """How many points are tried: as many as the spec says, and no more than there are within the limits."""
        wanted, every = self.table.trials, space.points(self.study.space)
        if every is None:
            assert wanted is not None, "only a grid may leave it out, and its space has an end"
            return wanted
        return sum(1 for _ in islice((point for point in every if not self.excess(point)), wanted))

    @property
    def left(self) -> int:
        """How many points are still to be asked for."""
        return max(0, self.budget - len(self.tried))

    def excess(self, point: Point) -> float:
        """By how much the costs of a point's student exceed the limits, as shares of them; 0 within."""
        student = searched.student_of(point)
        return 0.0 if student is None else self.excess_of(student)

    def excess_of(self, student: str) -> float:
        """The same for a student."""
        costs = self.costs[student]
        return sum(max(0.0, costs[_COLUMN[name]] / limit - 1) for name, limit in self.table.limits.items())

    def columns(self, each: Tried, phase: str = "search") -> Row:
        """The search columns of the rows of a point, or of a confirmation of it."""
        student = searched.student_of(each.point)
        costs = {} if student is None else {key: value for key, value in self.costs[student].items() if key in _OWN}
        return {
            "phase": phase,
            "study": self.study.id,
            "objectives": self.table.objectives,
            "seeds": list(self.seeds),
            "space": canonical(space.plain(self.study.space)),
            "point": canonical(each.point),
            "number": each.number,
            "origin": each.origin,
            **costs,
        }

    @property
    def open(self) -> list[Tried]:
        """The points of which a trial has not ended."""
        return [each for each in self.tried if not each.ended(self.seeds)]

    @property
    def over(self) -> bool:
        """Whether all points have ended."""
        return not self.left and not self.open

    def missing(self, found: Iterable[Tried]) -> list[tuple[Tried, int]]:
        """The confirmations, point and seed, that have not ended, if `found` are all points of the study."""
        winners = best(found, self.seeds, self.table.objectives, self.top)
        pairs = ((each, seed) for each in winners for seed in self.fresh)
        return [(each, seed) for each, seed in pairs if (canonical(each.point), seed) not in self.confirmed]

    @property
    def search_trials_left(self) -> int:
        """How many trials of its points have not ended."""
        return self.left * len(self.seeds) + sum(seed not in each.rows for each in self.tried for seed in self.seeds)

    @property
    def confirmations_left(self) -> int:
        """How many confirmations it will still run, at most."""
        if self.over:
            return len(self.missing(self.tried))
        return min(self.top, self.budget) * len(self.fresh)

    @property
    def trials_left(self) -> int:
        """How many trials it will still run, at most."""
        return self.search_trials_left + self.confirmations_left

    @property
    def done(self) -> int:
        """How many of its trials have ended: of its points, and the confirmations of what are its winners now."""
        winners = best(self.tried, self.seeds, self.table.objectives, self.top) if self.over else []
        confirmed = sum((canonical(each.point), seed) in self.confirmed for each in winners for seed in self.fresh)
        return sum(seed in each.rows for each in self.tried for seed in self.seeds) + confirmed

    @property
    def examples(self) -> list[TrialConfig]:
        """A trial of each kind that it will still run: they show the teachers that it needs."""
        if not self.trials_left:
            return []
        confirmation = [self.study.confirmation] if self.study.confirmation is not None else []
        return confirmation if self.over else [self.study.example, *confirmation]

    @property
    def blind(self) -> int:
        """After how many epochs of the recipe the accuracy of its trials begins to mean something."""
        trial = self.study.example
        return methods.blind_epochs(trial.method, trial.train.epochs)


_COLUMN = {"params": "student_params", "macs": "student_macs", "latency_ms": "latency_ms"}
_OWN = ("student_macs", "latency_ms")  # columns of a row that no trainer fills


def searches(
    spec: Spec,
    plan: Plan,
    own: Store,
    under_way: Iterable[Row],
    *,
    retry_failed: bool = False,
    accept_changes: bool = False,
    timed: bool = False,
) -> list[Search]:
    """The searches of a sweep, in the order of the plan.

    own: the sweep's store; under_way: what was asked for and has no row. retry_failed: failed and diverged trials count
    as under way. timed: whether to measure the students' latencies where the spec weighs them. ConfigError if a space
    has changed since points of it ended, unless `accept_changes`: then those that still fit count.
    """
    table = spec.search
    if table is None:
        return []
    rows = own.read_trials().select(COLUMNS).to_pylist()
    by_study: dict[str, list[Row]] = defaultdict(list)
    for row in [*rows, *under_way]:
        if row["phase"] is not None:
            again = retry_failed and row["status"] in (Status.FAILED, Status.DIVERGED)
            by_study[row["study"]].append({**row, "status": None} if again else row)
    prior = None if table.prior is None else first_points(spec, table.prior)
    found = []
    for study in plan.studies:
        mine = by_study[study.id]
        searching = [row for row in mine if row["phase"] == "search"]
        if not accept_changes:
            _check_space(study, searching)
        search = Search(
            study=study,
            table=table,
            seeds=tuple(spec.grid.seed),
            tried=tried(row for row in searching if _same(study, row)),
            next_number=1 + max((row["number"] for row in searching), default=-1),
            prior=[] if prior is None else prior(study),
            costs=student_costs(study, table, rows, timed),
            top=spec.confirm.top if spec.confirm else 0,
            fresh=tuple(spec.confirm.seed) if spec.confirm else (),
            confirmed={
                (row["point"], row["seed"]): row["status"]
                for row in mine
                if row["phase"] == "confirm" and row["status"] is not None
            },
        )
        _check_limits(search)
        found.append(search)
    return found


def _same(study: Study, row: Row) -> bool:
    """Whether a row's point is one of the space, and its trial is the one that the study would run for it now."""
    point = json.loads(row["point"])
    if space.misfit(study.space, point) is not None:
        return False
    return bool(trial_id(study.cell.trial(point, row["seed"])[0]) == row["trial_id"])


def _check_space(study: Study, rows: list[Row]) -> None:
    """Raise ConfigError if the points of a study were drawn from another space."""
    ended = [row for row in rows if row["status"] is not None]
    if not ended:
        return
    newest = max(ended, key=lambda row: row["number"])
    if changed := space.differences(json.loads(newest["space"]), space.plain(study.space)):
        fitting = sum(space.misfit(study.space, json.loads(row["point"])) is None for row in ended)
        raise ConfigError(
            f"the space of {describe(study.axes)} has changed since {count(len(ended), 'trial')} of it ended: "
            f"{'; '.join(changed)}. Put the old space back, give the sweep another sweep.name, or run with "
            f"--accept-space-change to keep the {fitting} that still fit."
        )


def student_costs(study: Study, table: SearchTable, rows: list[Row], timed: bool) -> Costs:
    """The costs of all students of a study; times only if the spec weighs them and they are known or `timed`."""
    info = info_of(study.example.data)
    weighed = "latency_ms" in (*table.objectives, *table.limits)
    old = {row["student"]: row["latency_ms"] for row in rows if row.get("latency_ms") is not None}
    found: Costs = {}
    for name in dict.fromkeys(searched.students(study.space)):
        its = cost(name, info.num_classes, info.image_size, info.in_channels)
        found[name] = {"student_params": its.params, "student_macs": its.multiply_adds}
        if weighed and name not in old and timed:
            size = (info.num_classes, info.image_size, info.in_channels)
            old[name] = latency(name, *size, seconds=LATENCY_SECONDS).median
        if weighed:
            found[name]["latency_ms"] = old.get(name, math.nan)
    return found


def _check_limits(search: Search) -> None:
    """Raise ConfigError if no student of a search is within the limits."""
    excess = [search.excess_of(name) for name in search.costs]
    if excess and min(excess) > 0:
        limits = ", ".join(f"{name} = {limit:g}" for name, limit in search.table.limits.items())
        cheapest = {name: min(costs[_COLUMN[name]] for costs in search.costs.values()) for name in search.table.limits}
        least = ", ".join(f"{name} {value:g}" for name, value in cheapest.items())
        raise ConfigError(
            f"search.limits must leave a student of {search.study.axes['pair']}, but got {limits}; "
            f"the least that there is: {least}."
        )
