"""Where the numbers of a sweep come from: code, machines, times, teachers, and what went wrong."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analysis.columns import shown
from analysis.configuration import params_of
from analysis.load import Row, Sweep, records
from analysis.names import dataset_name, fraction_name, model_name
from analysis.tables import row_name
from sweeps.schema import PUBLISHED


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher, or an assistant of one, that students of the sweep learned from or that it probes."""

    id: str
    model: str
    training: str  # e.g. `CIFAR-100, 100 %, 240 epochs, seed 0, LS (epsilon=0.1)`; empty if it has no row
    accuracy: float | None  # test top-1, percent


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A trial that failed or diverged."""

    id: str
    what: str  # e.g. `KD, ResNet-56 → ResNet-20, 100 %, seed 3`
    status: str
    error: str  # class and last line
    epochs_done: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Facts are (label, value) pairs, as printed."""

    facts: tuple[tuple[str, str], ...]
    teachers: tuple[Teacher, ...]
    failures: tuple[Failure, ...]


def build_provenance(sweep: Sweep) -> Provenance:
    """What the rows of a sweep and of its teachers say about their origin."""
    rows = [*records(sweep.trials), *records(sweep.searched)]
    return Provenance(
        facts=tuple(_facts(sweep, rows)) if rows else (("Trials", sweep.status()),),
        teachers=tuple(_teachers(rows, records(sweep.teachers))),
        failures=tuple(_failure(row) for row in rows if row["status"] in ("failed", "diverged")),
    )


def core_hours(rows: Iterable[Row]) -> float:
    """Sum of CPUs times hours of training; of a trial whose time is not known, of its last run.

    Trials that replayed stored epochs trained nothing.
    """
    seconds = 0.0
    for row in (row for row in rows if row["replayed"] is None):
        trained = row["train_seconds"]
        if trained is None:
            trained = (row["ended_at"] - row["started_at"]).total_seconds()
        seconds += trained * row["cpus"]
    return seconds / 3600


def _facts(sweep: Sweep, rows: list[Row]) -> Iterable[tuple[str, str]]:
    yield "Trials", sweep.status()
    yield "Spec", _distinct(row["spec_sha256"][:12] for row in rows) + " (SHA-256)"
    yield "kdsweep", _distinct(row["kdsweep"] for row in rows)
    yield "Git commit", _distinct(_commit(row["git_commit"]) for row in rows)
    yield "PyTorch", _distinct(row["torch"] for row in rows)
    yield "Python", _distinct(row["python"] for row in rows)
    yield "Hosts", _distinct(row["host"] for row in rows)
    yield "Devices", _distinct(row["device"] for row in rows)
    yield "First start", _time(min(row["started_at"] for row in rows))
    yield "Last end", _time(max(row["ended_at"] for row in rows))
    search = core_hours(row for row in rows if row["phase"] == "search")
    share = f", {search:,.2f} of them for the search" if len(sweep.searched) else ""
    yield "Core-hours", f"{core_hours(rows):,.2f}{share} (CPUs × time of training)"


def _commit(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    short = commit.removesuffix("+")[:12]
    return f"{short} with local changes" if commit.endswith("+") else short


def _teachers(rows: list[Row], known: list[Row]) -> Iterable[Teacher]:
    by_id = {row["trial_id"]: row for row in known}
    used = {row["teacher_id"]: row["teacher"] for row in rows if row["teacher_id"] is not None}
    used |= {row["source_id"]: row["student"] for row in rows if row["source_id"] in by_id}
    assistants = {key for row in rows for key in row["assistant_ids"] or ()}
    used |= {key: by_id[key]["student"] if key in by_id else "unknown" for key in assistants}
    for teacher_id, model in sorted(used.items(), key=lambda item: (item[1], item[0])):
        row = by_id.get(teacher_id)
        yield Teacher(
            id=teacher_id,
            model=model_name(model),
            training="" if row is None else _training(row),
            accuracy=None if row is None else row["test_top1"],
        )


def _training(row: Row) -> str:
    if row["method"] == PUBLISHED:
        return f"weights from {json.loads(row['params'])['source']}"
    data = f"{dataset_name(row['dataset'])}, {fraction_name(row['fraction'])}"
    held_out = f", {row['val_size']:,} images held out" if row["val_size"] else ""
    how = "" if row["method"] == "vanilla" else f", {row_name(row['method'], params_of(row))}"
    return f"{data}{held_out}, {row['epochs']} epochs, seed {row['seed']}{how}"


def _failure(row: Row) -> Failure:
    student = model_name(row["student"])
    pair = f"{model_name(row['teacher'])} → {student}" if row["teacher"] else student
    data = "" if row["source_id"] is None else f"{dataset_name(shown(row))}, "
    searched = f", search point {row['number']}" if row["phase"] == "search" else ""
    place = f"{pair}, {data}{fraction_name(row['fraction'])}, seed {row['seed']}{searched}"
    return Failure(
        id=row["trial_id"],
        what=f"{row_name(row['method'], ())}, {place}",
        status=row["status"],
        error=_last_line(row["error_type"] or "", row["error"] or ""),
        epochs_done=row["epochs_done"],
    )


def _last_line(error_type: str, error: str) -> str:
    lines = error.strip().splitlines()
    last = lines[-1].strip() if lines else ""
    # A traceback's last line begins with the class already.
    if last.split(":")[0].endswith(error_type):
        return last
    return f"{error_type}: {last}" if last else error_type


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
