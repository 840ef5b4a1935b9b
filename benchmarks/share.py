"""The share of a sweep's time in which its workers train: 40 short trials, and the demo, as a user runs them."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

import sweeps
from sweeps.spec import read
from sweeps.store import TEACHERS, Store

TRIALS = 40
SHARE = 0.95  # of the time of all slots in which trials train, beside the start and the end of workers
OVERHEAD = 0.1  # seconds a trial of the rest
SHORT = f"""
[sweep]
name = "short"
[data]
dataset = "fashion_mini"
[train]
epochs = 2
[grid]
pair = ["resnet8"]
method = ["vanilla"]
fraction = [0.25]
seed = {list(range(TRIALS))}
"""
Row = dict[str, Any]


class Ran(NamedTuple):
    """A sweep that was run by the command."""

    begun: datetime
    wall: float  # seconds
    slots: int  # trials at a time
    teachers: list[Row]
    students: list[Row]


def measure() -> Iterable[Table]:
    """Two tables: what 40 short trials cost beside their training, and the share of training in the demo."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "short.toml"
        path.write_text(SHORT, encoding="utf-8")
        yield _overhead(_run(path))
    demo = Path(sweeps.__file__).parent / "specs" / "demo.toml"
    yield _shares(_run(demo), demo.name)


def _run(path: Path) -> Ran:
    spec, _ = read(path)
    slots = max(1, (os.cpu_count() or 1) // spec.run.cpus)
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-m", "sweeps", "run", str(path), "--results", results]
        begun, start = datetime.now(UTC), time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "RAY_ADDRESS": "local"}, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        stored = (Store(results, name).read_trials().to_pylist() for name in (TEACHERS, spec.sweep.name))
        return Ran(begun, wall, slots, *stored)


def _seconds(rows: Iterable[Row]) -> float:
    """Training, evaluation after each epoch included."""
    return sum(row["train_seconds"] or 0.0 for row in rows)


def _overhead(ran: Ran) -> Table:
    """Of each worker from the end of its first trial, in which it is still starting, to the end of its last."""
    n, rows = len(ran.students) - ran.slots, sorted(ran.students, key=lambda row: row["started_at"])
    ends = sorted(row["ended_at"] for row in rows)
    spans = zip((row["ended_at"] for row in rows[: ran.slots]), ends[-ran.slots :], strict=True)
    slots = sum((last - first).total_seconds() for first, last in spans)
    trained = _seconds(rows[ran.slots :])
    rest, share = (slots - trained) / n, trained / slots
    every = _seconds(rows) / (ran.slots * ran.wall)
    table = Table(title=f"{len(rows)} short trials, one run, {ran.slots} at a time", title_justify="left")
    for header in ("", "seconds", "target"):
        table.add_column(header, justify="right" if header == "seconds" else "left")
    for label, value, target in (
        ("wall time of the command", f"{ran.wall:.1f}", ""),
        ("start, once: until the first trial began", f"{(rows[0]['started_at'] - ran.begun).total_seconds():.1f}", ""),
        ("start, once: first trial of a worker, beside training", f"{_beside(rows[: ran.slots]):.1f}", ""),
        ("end, once: a worker without work", f"{(ends[-1] - ends[-ran.slots]).total_seconds():.1f}", ""),
        ("training, a trial", f"{trained / n:.2f}", ""),
        ("overhead, a trial", f"{rest:.3f}", f"at most {OVERHEAD}: {'kept' if rest <= OVERHEAD else 'exceeded'}"),
        ("of it in the worker: networks, files, metrics", f"{_beside(rows[ran.slots :]):.3f}", ""),
        ("training, of all slots", f"{share:.1%}", f"at least {SHARE:.0%}: {'kept' if share >= SHARE else 'missed'}"),
        ("training, of all slots of the command", f"{every:.1%}", ""),
    ):
        table.add_row(label, value, target)
    return table


def _beside(rows: list[Row]) -> float:
    """The mean seconds of a trial in its worker, without its training."""
    return (sum((row["ended_at"] - row["started_at"]).total_seconds() for row in rows) - _seconds(rows)) / len(rows)


def _shares(ran: Ran, name: str) -> Table:
    table = Table(title=f"kd-sweep run {name}, one run, {ran.slots} trials at a time", title_justify="left")
    for header in ("", "n", "seconds", "share of all slots"):
        table.add_column(header, justify="right" if header else "left")
    table.add_row("wall time of the command", "1", f"{ran.wall:.1f}", "")
    for rows, label in ((ran.teachers, "training of teachers"), (ran.students, "training of students")):
        table.add_row(label, str(len(rows)), f"{_seconds(rows):.1f}", f"{_seconds(rows) / (ran.slots * ran.wall):.1%}")
    total = _seconds([*ran.teachers, *ran.students])
    table.add_row("training", "", f"{total:.1f}", f"{total / (ran.slots * ran.wall):.1%}")
    return table
