"""The share of a sweep's time in which its workers train: 40 short trials, and the demo, as a user runs them."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import sweeps
from benchmarks.page import Shown
from benchmarks.results import Row
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


def measure() -> list[Row]:
    """The trials of the sweep of 40 short ones, and those of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "short.toml"
        path.write_text(SHORT, encoding="utf-8")
        rows = _run(path)
    return rows + _run(Path(sweeps.__file__).parent / "specs" / "demo.toml")


def shown(rows: Sequence[Row]) -> list[Shown]:
    """Two tables."""
    by_sweep = {name: [row for row in rows if row["sweep"] == name] for name in dict.fromkeys(r["sweep"] for r in rows)}
    return [_overhead(by_sweep["short"]), _shares(by_sweep["demo"])]


def _run(path: Path) -> list[Row]:
    """Run a sweep by the command. Times of its trials are seconds from its begin."""
    spec, _ = read(path)
    slots = max(1, (os.cpu_count() or 1) // spec.run.cpus)
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-m", "sweeps", "run", str(path), "--results", results]
        begun, start = datetime.now(UTC), time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "RAY_ADDRESS": "local"}, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        trials = [row for name in (TEACHERS, spec.sweep.name) for row in Store(results, name).read_trials().to_pylist()]
    return [
        {
            "sweep": spec.sweep.name, "role": row["role"], "started": (row["started_at"] - begun).total_seconds(),
            "ended": (row["ended_at"] - begun).total_seconds(), "train_seconds": row["train_seconds"] or 0.0,
            "wall": wall, "slots": slots,
        }
        for row in trials
    ]  # fmt: skip


def _seconds(rows: Iterable[Row]) -> float:
    """Training, evaluation after each epoch included."""
    return float(sum(row["train_seconds"] for row in rows))


def _overhead(rows: Sequence[Row]) -> Shown:
    """Of each worker from the end of its first trial, in which it is still starting, to the end of its last."""
    slots, rows = rows[0]["slots"], sorted(rows, key=lambda row: row["started"])
    n, ends = len(rows) - slots, sorted(row["ended"] for row in rows)
    spans = zip((row["ended"] for row in rows[:slots]), ends[-slots:], strict=True)
    total, trained = sum(last - first for first, last in spans), _seconds(rows[slots:])
    rest, share = (total - trained) / n, trained / total
    lines = [
        ["wall time of the command, s", f"{rows[0]['wall']:.1f}", ""],
        ["start, once: until the first trial began, s", f"{rows[0]['started']:.1f}", ""],
        ["start, once: first trial of a worker, beside training, s", f"{_beside(rows[:slots]):.1f}", ""],
        ["end, once: a worker without work, s", f"{ends[-1] - ends[-slots]:.1f}", ""],
        ["training, a trial, s", f"{trained / n:.2f}", ""],
        ["overhead, a trial, s", f"{rest:.3f}", f"at most {OVERHEAD}: {'kept' if rest <= OVERHEAD else 'exceeded'}"],
        ["of it in the worker: networks, files, metrics, s", f"{_beside(rows[slots:]):.3f}", ""],
        ["training, of all slots", f"{share:.1%}", f"at least {SHARE:.0%}: {'kept' if share >= SHARE else 'missed'}"],
        ["training, of all slots of the command", f"{_seconds(rows) / (slots * rows[0]['wall']):.1%}", ""],
    ]
    about = (
        f"`kd-sweep run` of {len(rows)} trials of resnet8 on a quarter of fashion_mini for two epochs, {slots} at a "
        "time, one run (n = 1). Training is `train_seconds` of the rows, evaluation included. What is paid once is "
        "apart: the start of Ray and of its workers, and the first trial of each, in which torch loads parts of "
        "itself."
    )
    return Shown("4. Full machines: short trials", about, ("", "", "target"), lines)


def _beside(rows: Sequence[Row]) -> float:
    """The mean seconds of a trial in its worker, without its training."""
    return (sum(row["ended"] - row["started"] for row in rows) - _seconds(rows)) / len(rows)


def _shares(rows: Sequence[Row]) -> Shown:
    slots, wall = rows[0]["slots"], rows[0]["wall"]
    parts = [("training of teachers", [row for row in rows if row["role"] == "teacher"])]
    parts += [("training of students", [row for row in rows if row["role"] == "student"]), ("training", list(rows))]
    lines = [["wall time of the command", "1", f"{wall:.1f}", ""]]
    for label, some in parts:
        seconds = _seconds(some)
        lines.append([label, str(len(some)), f"{seconds:.1f}", f"{seconds / (slots * wall):.1%}"])
    about = f"`kd-sweep run` of the demo, {slots} trials at a time, one run (n = 1), everything counted."
    return Shown("Full machines: the demo", about, ("", "n", "seconds", "of all slots"), lines)
