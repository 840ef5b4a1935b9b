"""What a trial costs that does nothing: Ray Tune, the plan and the result files, without any training."""

import io
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

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

TRIALS = 200
BUDGET = 0.25  # seconds a trial
SPEC = f"""
[sweep]
name = "nothing"
[data]
dataset = "fashion_mini"
[train]
epochs = 1
[grid]
pair = ["resnet8"]
method = ["vanilla"]
seed = {list(range(TRIALS))}
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
    """Writes the files that a trial of one epoch writes, and trains nothing."""

    def _step(self) -> dict[str, Any]:
        job, store = self.job, self.job.store
        store.read_bytes("checkpoints", f"{job.id}.pt")
        store.write_epochs(job.id, [rows.epoch(job.id, RECORD)])
        return self._end(Status.COMPLETED, RESULT)


def measure() -> Iterable[Table]:
    """One table: seconds a trial, with the start of Ray and of its workers and without."""
    with tempfile.TemporaryDirectory() as results:
        spec = parse_text(SPEC)
        spec = spec.model_copy(update={"run": spec.run.model_copy(update={"results": results})})
        start = time.perf_counter()
        todo = missing(spec, SPEC, expand(spec), retry_failed=False)
        planned = time.perf_counter()
        run(todo, spec.run, None, Cost([]), Console(file=io.StringIO()), Nothing)
        wall = time.perf_counter() - planned
        ended = sorted(Store(results, "nothing").read_trials()["ended_at"].to_pylist())
    assert len(ended) == TRIALS
    steady = (ended[-1] - ended[0]).total_seconds() / (TRIALS - 1)
    table = Table(title=f"{TRIALS} trials that do nothing, one run", title_justify="left")
    for header in ("", "total, s", "a trial, s", f"budget of {BUDGET} s"):
        table.add_column(header, justify="right" if header else "left")
    table.add_row("plan", f"{planned - start:.2f}", f"{(planned - start) / TRIALS:.4f}", "")
    for name, total, each in (
        ("run, with the start of Ray", wall, wall / TRIALS),
        ("run, first to last end", steady * (TRIALS - 1), steady),
    ):
        table.add_row(name, f"{total:.2f}", f"{each:.4f}", "kept" if each <= BUDGET else "exceeded")
    yield table
