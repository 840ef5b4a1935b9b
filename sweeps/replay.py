"""A trial that trains nothing: it returns the epochs that a trial of another sweep has stored."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kdtrain.build import trial_id
from kdtrain.config import ConfigError, TrialConfig, canonical
from kdtrain.record import DivergedError, EpochRecord, TrialResult
from sweeps import rows
from sweeps.plan import Plan
from sweeps.schema import IDENTITY, METRICS, Status
from sweeps.searched import flat
from sweeps.store import Store
from sweeps.tables import Spec

Row = Mapping[str, Any]
_POINT = {"trial_id", "params", "method_version"}  # what a trial may have otherwise than the one that stands for it


class Replay:
    """Has of a training what a worker asks of it. ConfigError if the sweep has no trial like this one.

    The stored trial is the same one or, where there is none, that with the nearest parameters of its method; all else
    must agree. It has completed or diverged: how one that was stopped, or failed, would have gone on nobody knows.
    """

    def __init__(self, trial: TrialConfig, results: str, sweep: str) -> None:
        found = _found(trial, _stored(results, sweep), sweep)
        self.row, every = found, _epochs(results, sweep)[found["trial_id"]]
        self.stored = [EpochRecord(**{**record, "terms": dict(record["terms"])}) for record in every]
        self.total_epochs: int = max(found["epochs_done"], found["epochs"])
        self.records: list[EpochRecord] = []

    @property
    def source(self) -> str:
        """The sweep and the id of the stored trial."""
        return f"{self.row['sweep']}/{self.row['trial_id']}"

    @property
    def done(self) -> bool:
        """Whether the last epoch has been returned."""
        return self.row["status"] == Status.COMPLETED and len(self.records) == self.total_epochs

    def run_epoch(self) -> EpochRecord:
        """The next epoch; what ended the stored trial ends this one."""
        if len(self.records) == len(self.stored):
            if self.row["status"] == Status.DIVERGED:
                last_line = (self.row["error"] or "").strip().rpartition("\n")[2]
                raise DivergedError(last_line.partition(": ")[2])
            raise RuntimeError(f"of the stored trial {self.source} epochs are missing after the {len(self.stored)}th.")
        self.records.append(self.stored[len(self.records)])
        return self.records[-1]

    def result(self) -> TrialResult:
        """The stored metrics."""
        told = {field.name: self.row[field.name] for field in METRICS}
        return TrialResult(**{**told, "class_recall": tuple(told["class_recall"])})


def check(spec: Spec, plan: Plan, own: Store) -> None:
    """Raise ConfigError if the sweep to replay lacks trials, or if real results or those of another one would mix."""
    name = spec.run.replay
    sources = {row["replayed"] for row in own.read_trials(columns=["epochs_done", "replayed"]).to_pylist()
               if row["epochs_done"]}  # fmt: skip
    if others := {source and source.partition("/")[0] for source in sources} - {name}:
        was = f"replayed from {min(map(str, others))}" if None not in others else "trained"
        raise ConfigError(f"run.replay: results of {spec.sweep.name!r} were {was}; give this one another sweep.name.")
    if name is None:
        return
    if not Store(spec.run.results, name).ids("trials"):
        raise ConfigError(f"run.replay must name a sweep with trials in {spec.run.results}, but got {name!r}.")
    stored = _stored(spec.run.results, name)
    examples = [trial for study in plan.studies for trial in (study.example, study.confirmation) if trial is not None]
    for trial in (*plan.trials.values(), *examples):
        _found(trial, stored, name)


@lru_cache(maxsize=4)
def _stored(results: str, sweep: str) -> dict[str, list[Row]]:
    """The trials of a sweep that ended by themselves, by all that must agree."""
    alike: dict[str, list[Row]] = defaultdict(list)
    for row in Store(results, sweep).read_trials().to_pylist():
        if row["role"] == "student" and row["status"] in (Status.COMPLETED, Status.DIVERGED):
            alike[_likeness(row)].append(row)
    return alike


@lru_cache(maxsize=4)
def _epochs(results: str, sweep: str) -> dict[str, list[dict[str, Any]]]:
    """The epochs of a sweep by trial."""
    epochs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in Store(results, sweep).read_epochs().to_pylist():
        epochs[row.pop("trial_id")].append(row)
    return epochs


def _likeness(row: Row) -> str:
    names = (field.name for field in IDENTITY if field.name not in _POINT)
    return canonical([row[name] for name in names])


def _found(trial: TrialConfig, stored: Mapping[str, list[Row]], sweep: str) -> Row:
    wanted = rows.identity(trial, "student")
    alike = stored.get(_likeness(wanted), [])
    if not alike:
        raise ConfigError(
            f"run.replay: {sweep!r} has no trial of {trial.method.name} with this pair, data, recipe and seed."
        )
    key = trial_id(trial)
    exact = next((row for row in alike if row["trial_id"] == key), None)
    return exact or min(alike, key=lambda row: (_distance(json.loads(wanted["params"]), row), row["trial_id"]))


def _distance(params: Mapping[str, Any], row: Row) -> float:
    """Between two settings: the squared ratios of numbers in the logarithm; 100 for anything else that differs."""
    mine, other = flat(params), flat(json.loads(row["params"]))
    total = 0.0
    for name in mine.keys() | other.keys():
        a, b = mine.get(name), other.get(name)
        if isinstance(a, int | float) and isinstance(b, int | float) and min(a, b) > 0:
            total += math.log(a / b) ** 2
        elif a != b:
            total += 100.0
    return total
