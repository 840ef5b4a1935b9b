"""The share of a sweep's time in which its workers train: the demo, as a user runs it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

import sweeps
from sweeps.spec import read
from sweeps.store import TEACHERS, Store


def measure() -> Iterable[Table]:
    """One table: seconds of training of students and teachers, of all seconds of all slots."""
    path = Path(sweeps.__file__).parent / "specs" / "demo.toml"
    spec, _ = read(path)
    slots = max(1, (os.cpu_count() or 1) // spec.run.cpus)
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-m", "sweeps", "run", str(path), "--results", results]
        start = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "RAY_ADDRESS": "local"}, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        trained = {
            name: Store(results, name).read_trials()["train_seconds"].to_pylist()
            for name in (spec.sweep.name, TEACHERS)
        }
    seconds = {name: sum(value for value in values if value is not None) for name, values in trained.items()}
    table = Table(title=f"kd-sweep run {path.name}, one run, {slots} trials at a time", title_justify="left")
    for header in ("", "n", "seconds", "share of all slots"):
        table.add_column(header, justify="right" if header else "left")
    table.add_row("wall time of the command", "1", f"{wall:.1f}", "")
    for name, label in ((TEACHERS, "training of teachers"), (spec.sweep.name, "training of students")):
        table.add_row(label, str(len(trained[name])), f"{seconds[name]:.1f}", f"{seconds[name] / (slots * wall):.1%}")
    total = sum(seconds.values())
    table.add_row("training", "", f"{total:.1f}", f"{total / (slots * wall):.1%}")
    yield table
