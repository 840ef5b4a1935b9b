"""The last act of a trial: its row, written by its worker or, where that cannot, by the driver."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from kdtrain.record import TrialResult
from sweeps import rows
from sweeps.job import ASKED, Job
from sweeps.schema import Status


def end(
    job: Job,
    status: Status,
    *,
    epochs_done: int,
    device: str,
    started_at: datetime,
    result: TrialResult | None = None,
    error: tuple[str, str] | None = None,
    columns: Mapping[str, Any] = MappingProxyType({}),
    replayed: str | None = None,
) -> None:
    """Write the row of a trial and remove what was kept while it was under way.

    error: (type, traceback). columns: further columns that are known only at the end.
    """
    row = {
        **rows.identity(job.trial, job.role),
        **rows.searched(job.searched),
        **rows.outcome(status, epochs_done, error),
        **rows.metrics(result),
        **rows.provenance(job.source, device, job.where.cpus, started_at, replayed, job.predicted_seconds),
        **columns,
    }
    job.store.write_trial(row)
    clean(job)


def clean(job: Job) -> None:
    """Remove what is kept of a trial while it is under way."""
    job.store.delete("checkpoints", f"{job.id}.pt")
    if job.is_search:
        job.store.delete(ASKED, f"{job.id}.json")
