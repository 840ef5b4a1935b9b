"""What is left of the searches of a sweep: the points that its rows have, and those that are still to be tried."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from kdtrain.build import trial_id
from kdtrain.config import ConfigError, TrialConfig, canonical
from kdtrain.methods import blind_epochs, resolve
from sweeps import searched, space
from sweeps.plan import Plan, Study, describe
from sweeps.points import COLUMNS, Row, Tried, best, tried
from sweeps.prior import first_points
from sweeps.schema import OBJECTIVES, Status
from sweeps.space import Point
from sweeps.store import Store
from sweeps.student_costs import Costs, excess, student_costs
from sweeps.tables import SearchTable, Spec
from sweeps.words import count

SPACES = "spaces.json"  # file of a sweep: by study, the space that it was last run with
Curve = dict[int, float]  # accuracy on held-out images by epoch of the recipe


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
    curves: dict[str, Curve]  # of the trials of its points that have ended, by trial; read only for a run

    @cached_property
    def budget(self) -> int:
        """How many points are tried: as many as the spec says, and no more than there are within the limits."""
        wanted, every = self.table.trials, space.points(self.study.space)
        if every is None:
            assert wanted is not None, "only a grid may leave it out, and its space has an end"
            return wanted
        there = (point for point in every if not self.excess(point) and self.can_run(point))
        return sum(1 for _ in islice(there, wanted))

    @property
    def left(self) -> int:
        """How many points are still to be asked for."""
        return max(0, self.budget - len(self.tried))

    def excess(self, point: Point) -> float:
        """By how much the costs of a point's student exceed the limits, as shares of them; 0 within."""
        student = searched.student_of(point)
        return 0.0 if student is None else excess(self.costs[student], self.table.limits)

    def can_run(self, point: Point) -> bool:
        """Whether a point makes a trial: parameters that are right one by one may contradict each other."""
        try:
            resolve(self.study.cell.trial(point, self.seeds[0])[0].method)
        except ConfigError:
            return False
        return True

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

    def winners(self, found: Iterable[Tried]) -> list[tuple[Tried, int]]:
        """The confirmations, point and seed, that there are to be if `found` are all points of the study."""
        best_points = best(found, self.seeds, self.table.objectives, self.top)
        return [(each, seed) for each in best_points for seed in self.fresh]

    def missing(self, found: Iterable[Tried]) -> list[tuple[Tried, int]]:
        """Those of them that have not ended."""
        return [(each, seed) for each, seed in self.winners(found) if self.confirmation(each, seed) is None]

    def confirmation(self, each: Tried, seed: int) -> str | None:
        """How the confirmation of a point has ended."""
        return self.confirmed.get((canonical(each.point), seed))

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
        winners = self.winners(self.tried) if self.over else []
        confirmed = sum(self.confirmation(each, seed) is not None for each, seed in winners)
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
        return blind_epochs(trial.method, trial.train.epochs)


_OWN = ("student_macs", "latency_ms")  # columns of a row that no trainer fills


def searches(
    spec: Spec,
    plan: Plan,
    own: Store,
    under_way: Iterable[Row],
    *,
    retry_failed: bool = False,
    accept_changes: bool = False,
    to_run: bool = False,
) -> list[Search]:
    """The searches of a sweep, in the order of the plan.

    own: the sweep's store; under_way: what was asked for and has no row. retry_failed: failed and diverged trials count
    as under way. to_run: measure the students' times where the spec weighs them, and read the curves. ConfigError if a
    space has changed since the last run, unless `accept_changes`: then the points that still fit count.
    """
    if spec.search is None:
        return []
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in [*own.read_trials(columns=COLUMNS).to_pylist(), *under_way]:
        if row["phase"] is not None:
            again = retry_failed and row["status"] in (Status.FAILED, Status.DIVERGED)
            rows[row["study"]].append({**row, "status": None} if again else row)
    if not accept_changes:
        spaces = json.loads(own.read_bytes(SPACES) or "{}")
        for study in plan.studies:
            _check_space(study, [row for row in rows[study.id] if row["phase"] == "search"], spaces.get(study.id))
    found = [_search(spec, study, rows[study.id], own, to_run) for study in plan.studies]
    if spec.search.prior is not None and any(search.left for search in found):
        prior = first_points(spec, spec.search.prior)
        found = [replace(search, prior=prior(search.study)) if search.left else search for search in found]
    return found


def _search(spec: Spec, study: Study, rows: list[Row], own: Store, to_run: bool) -> Search:
    """A study with its rows."""
    table, confirm = spec.search, spec.confirm
    assert table is not None
    searching = [row for row in rows if row["phase"] == "search"]
    costs = student_costs(study, table, own, to_run)
    # Costs may not have been weighed when a row was written.
    same = [{**row, **costs.get(row.get("student") or "", {})} for row in searching if _same(study, row)]
    bare = Search(
        study=study,
        table=table,
        seeds=tuple(spec.grid.seed),
        tried=[],
        next_number=1 + max((row["number"] for row in searching), default=-1),
        prior=[],
        costs=costs,
        top=confirm.top if confirm else 0,
        fresh=tuple(confirm.seed) if confirm else (),
        confirmed={
            (row["point"], row["seed"]): row["status"]
            for row in rows
            if row["phase"] == "confirm" and row["status"] is not None
        },
        curves=_curves(own, same) if to_run else {},
    )
    _check_limits(bare)
    # Of limits that have become tighter, what lies beyond is no point any more.
    return replace(bare, tried=[each for each in tried(same) if not bare.excess(each.point)])


def _curves(own: Store, rows: Iterable[Row]) -> dict[str, Curve]:
    curves: dict[str, Curve] = defaultdict(dict)
    ended = [row["trial_id"] for row in rows if row["status"] is not None]
    for row in own.read_epochs(ended, ["trial_id", "stage", "epoch", "val_acc"]).to_pylist():
        if row["stage"] == "train" and row["val_acc"] is not None:
            curves[row["trial_id"]][row["epoch"]] = row["val_acc"]
    return curves


def _same(study: Study, row: Row) -> bool:
    """Whether a row's point is one of the space, and its trial is the one that the study would run for it now."""
    point = json.loads(row["point"])
    if space.misfit(study.space, point) is not None:
        return False
    return bool(trial_id(study.cell.trial(point, row["seed"])[0]) == row["trial_id"])


def _check_space(study: Study, rows: list[Row], last: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if the points of a study were drawn from another space. `last`: that of the last run."""
    ended = [row for row in rows if row["status"] is not None]
    if not ended:
        return
    before = json.loads(max(ended, key=lambda row: row["number"])["space"]) if last is None else last
    if changed := space.differences(before, space.plain(study.space)):
        fitting = sum(space.misfit(study.space, json.loads(row["point"])) is None for row in ended)
        raise ConfigError(
            f"the space of {describe(study.axes)} has changed since {count(len(ended), 'trial')} of it ended: "
            f"{'; '.join(changed)}. Put the old space back, give the sweep another sweep.name, or run with "
            f"--accept-space-change to keep the {fitting} that still fit."
        )


def _check_limits(search: Search) -> None:
    """Raise ConfigError if no student is within the limits, or if there are fewer points than confirmations."""
    costs, limits, what = search.costs.values(), search.table.limits, describe(search.study.axes)
    if costs and all(excess(own, limits) for own in costs):
        told = ", ".join(f"{name} = {limit:g}" for name, limit in limits.items())
        least = ", ".join(f"{name} {min(own[OBJECTIVES[name][0]] for own in costs):g}" for name in limits)
        raise ConfigError(
            f"search.limits must leave a student of {search.study.axes['pair']}, but got {told}; "
            f"the least that there is: {least}."
        )
    if search.study.space and search.top > search.budget:
        raise ConfigError(f"confirm.top must be at most the {search.budget} points of {what}, but got {search.top}.")


def remember_spaces(plan: Plan, own: Store) -> None:
    """Keep the spaces that a sweep is run with."""
    if plan.studies:
        before = json.loads(own.read_bytes(SPACES) or "{}")
        now = before | {study.id: space.plain(study.space) for study in plan.studies}
        if now != before:
            own.write_bytes(json.dumps(now).encode(), SPACES)
