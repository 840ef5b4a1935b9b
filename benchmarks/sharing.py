"""A search of 16 points of CID's weights by `kd-sweep run`, with shared teacher outputs and without."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.page import Shown, percent
from benchmarks.results import Row
from benchmarks.steps import PAIRS
from kdtrain import models
from kdtrain.checkpoint import pack_weights
from sweeps.store import Store

POINTS, EPOCHS = 16, 3
SPEC = """
[sweep]
name = "search"
[data]
dataset = "fashion_mini"
val_size = 500
[train]
epochs = {epochs}
batch_size = 64
[teacher.weights]
{teacher} = "{file}"
[grid]
pair = ["{teacher}/{student}"]
method = ["cid"]
fraction = [0.06]
seed = [1]
[search]
sampler = "random"
trials = {points}
[run]
cache = "{folder}/cache"
cache_gb = {cache_gb}
"""


def measure() -> list[Row]:
    """A row for each trial of each pair, with and without shared files."""
    rows = []
    for teacher, student in PAIRS:
        for cache_gb in (0, 20):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                _write_teacher(teacher, folder / "teacher.safetensors")
                spec = folder / "search.toml"
                spec.write_text(SPEC.format(
                    teacher=teacher, student=student, file=folder / "teacher.safetensors", folder=folder,
                    points=POINTS, epochs=EPOCHS, cache_gb=cache_gb,
                ))  # fmt: skip
                command = [sys.executable, "-m", "sweeps", "run", str(spec), "--results", str(folder / "results")]
                subprocess.run(command, check=True, env={**os.environ, "RAY_ADDRESS": "local"}, stdout=sys.stderr)
                every = Store(str(folder / "results"), "search").read_trials().to_pylist()
            trials = [trial for trial in every if trial["role"] == "student"]
            first = min(trial["started_at"] for trial in trials)
            rows += [
                {
                    "pair": f"{teacher}/{student}",
                    "shared": cache_gb > 0,
                    "n_train": trial["n_train"],
                    "ended": (trial["ended_at"] - first).total_seconds(),
                    **{key: trial[key] for key in ("train_seconds", "teacher_seconds", "shared_seconds")},
                    "workers": os.cpu_count(),
                }
                for trial in sorted(trials, key=lambda trial: trial["started_at"])
            ]
    return rows


def shown(rows: Sequence[Row]) -> list[Shown]:
    """One table."""
    lines = []
    workers = rows[0]["workers"]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        walls = {}
        for shared in (False, True):
            mine = [row for row in rows if row["pair"] == pair and row["shared"] is shared]
            first, later = (_completed(some) for some in (mine[:workers], mine[workers:]))
            walls[shared] = max(row["ended"] for row in mine)
            lines.append([
                pair, "shared" if shared else "live", f"{walls[shared]:.1f}",
                percent(walls[True] / walls[False]) if shared else "",
                *(_median(some, "train_seconds", 2) for some in (first, later)),
                *(_median(some, "teacher_seconds", 2) for some in (first, later)),
                _median(later, "shared_seconds", 3),
                f"{len(mine) - len(first) - len(later)} of {len(mine)}",
            ])  # fmt: skip
    about = (
        f"`kd-sweep run` of {POINTS} random points of CID's weights, {EPOCHS} epochs of {rows[0]['n_train']} images of "
        f"fashion_mini and 500 held out, fp32, {workers} one-core trials at a time, one run each (n = 1). Wall time is "
        "from the start of the first trial to the end of the last. Medians over the completed trials that begin first, "
        "one on each worker, and over the later ones. Teachers are untrained, so some points diverge: the same ones "
        "with and without files."
    )
    headers = (
        "pair", "outputs", "wall, s", "of live", "first trials, s", "later trials, s", "of it teacher, first",
        "teacher, later", "files, later", "diverged",
    )  # fmt: skip
    return [Shown("2. A search whose trials share one teacher", about, headers, lines)]


def _completed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["train_seconds"] is not None]


def _median(rows: Sequence[Row], key: str, digits: int) -> str:
    return f"{median(row[key] for row in rows):.{digits}f}" if rows else "-"


def _write_teacher(name: str, path: Path) -> None:
    """An untrained teacher whose BatchNorm has seen images: what it says does not change what it costs."""
    torch.manual_seed(0)
    teacher = models.build(name, 10, 1).train()
    with torch.no_grad():
        for _ in range(3):
            teacher(torch.randn(32, 1, 28, 28))
    path.write_bytes(pack_weights(teacher.state_dict(), {}, name))
