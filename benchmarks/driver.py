"""What a trial costs that does nothing: Ray Tune, the plan and the result files, without any training.

python -m benchmarks.driver N measures N trials and prints the figures as JSON.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.page import Shown
from benchmarks.results import Row
from kdtrain.record import EpochRecord, TrialResult
from sweeps import rows
from sweeps.cost import Cost
from sweeps.job import missing
from sweeps.plan import expand
from sweeps.run import run
from sweeps.schema import Status
from sweeps.spec import parse_text
from sweeps.store import Store
from sweeps.trainable import TrialTrainable

SIZES = (1_000, 10_000)
BUDGET = 0.03  # seconds a trial of a whole run
GROWTH = 1.1  # how much longer a trial of a plan may take than one of a plan a tenth as long, for noise
SPEC = """
[sweep]
name = "nothing"
[data]
dataset = "fashion_mini"
[train]
epochs = 1
[grid]
pair = ["resnet8"]
method = ["vanilla"]
seed = {seeds}
"""
RECORD = EpochRecord(
    stage="train", epoch=1, lr=0.1, terms={"ce": 1.0}, train_acc=1.0, val_acc=None, test_acc=1.0, seconds=0.1
)
RESULT = TrialResult(
    test_top1=1.0, test_top5=5.0, test_nll=1.0, test_ece=1.0, test_aurc=1.0, test_eaurc=1.0,
    class_recall=(1.0,) * 10, val_acc=None, best_epoch=1, best_acc=1.0, best_split="test", n_train=1,
    student_params=1, train_seconds=0.1,
)  # fmt: skip


class Nothing(TrialTrainable):
    """Reads and writes the files that a trial of one epoch does, and trains nothing."""

    def _step(self) -> dict[str, Any]:
        job, store = self.job, self.job.store
        if (ended := self._completed()) is not None:
            return ended
        store.read_bytes("checkpoints", f"{job.id}.pt")
        store.write_epochs(job.id, [rows.epoch(job.id, RECORD)])
        return self._end(Status.COMPLETED, RESULT)


def sweep(trials: int) -> dict[str, float]:
    """Seconds of planning, of the start of Ray and its workers, of the run and of a trial; MiB of the driver; files."""
    with tempfile.TemporaryDirectory() as results:
        text = SPEC.format(seeds=list(range(trials)))
        spec = parse_text(text)
        spec = spec.model_copy(update={"run": spec.run.model_copy(update={"results": results})})
        start = time.perf_counter()
        todo = missing(spec, text, expand(spec), retry_failed=False)
        planned, begun = time.perf_counter(), datetime.now(UTC)
        run(todo, spec.run, None, Cost([]), Console(file=io.StringIO()), Nothing)
        wall = time.perf_counter() - planned
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ended = Store(results, "nothing").read_trials().to_pandas()
        files = sum(path.is_file() for path in Path(results).rglob("*"))
    assert len(ended) == trials
    first, last = ended["started_at"].min(), ended["ended_at"].max()
    return {
        "trials": trials,
        "plan": planned - start,
        "start": (first - begun).total_seconds(),
        "run": wall,
        "steady": (last - first).total_seconds() / trials,
        "peak": peak,
        "files": files,
    }


def measure() -> list[Row]:
    """What plans of 1,000 and 10,000 trials take, each in a process of its own."""
    return [_apart(trials) for trials in SIZES]


def shown(rows: Sequence[Row]) -> list[Shown]:
    """One table."""
    whole = [row["run"] / row["trials"] for row in rows]
    growth = [later["steady"] / earlier["steady"] for earlier, later in pairwise(rows)]
    lines = [
        ["plan, s", *(f"{row['plan']:.1f}" for row in rows), ""],
        ["start of Ray and of its workers, s", *(f"{row['start']:.1f}" for row in rows), ""],
        ["run, with that start, s", *(f"{row['run']:.1f}" for row in rows), ""],
        ["of it a trial, ms", *(f"{1e3 * each:.1f}" for each in whole), _said(whole[-1], BUDGET, f"{1e3 * BUDGET:g}")],
        ["first begin to last end, a trial, ms", *(f"{1e3 * row['steady']:.1f}" for row in rows), ""],
        ["to a trial of the plan before", "", *(f"{each:.2f}" for each in growth), _said(growth[-1], GROWTH, "1.1")],
        ["peak memory of the driver, MiB", *(f"{row['peak']:.0f}" for row in rows), ""],
        ["result files", *(f"{row['files']:,.0f}" for row in rows), ""],
    ]
    about = (
        "Planned trials whose trainer returns at once, through the code of `kd-sweep run`, one run each (n = 1). Each "
        "writes the rows of a trial of one epoch; a worker reads and writes nothing else."
    )
    headers = ("", *(f"{row['trials']:,} trials" for row in rows), "target")
    return [Shown("5. The driver", about, headers, lines)]


def _apart(trials: int) -> Row:
    command = [sys.executable, "-m", "benchmarks.driver", str(trials)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    told: Row = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    return told


def _said(value: float, most: float, text: str) -> str:
    return f"at most {text}: {'kept' if value <= most else 'exceeded'}"


if __name__ == "__main__":
    print(json.dumps(sweep(int(sys.argv[1]))))
