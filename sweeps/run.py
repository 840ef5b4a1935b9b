"""Run what is missing of a plan with Ray Tune. Nothing is read back from Ray: workers write the rows."""

import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

# Ray reads these when it is imported or started: no loggers and no state of Tune's own, no banners, no usage report.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(10**6))
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # run.gpus = 0 hides the GPUs

import ray
from ray import tune
from rich.console import Console

from kdtrain.config import ConfigError
from sweeps.cost import Cost
from sweeps.ended import clean, end
from sweeps.job import Blocked, Job, Missing
from sweeps.progress import Progress, weights
from sweeps.scheduler import InOrder, StudySchedulers
from sweeps.schema import Status
from sweeps.search import SweepSearch
from sweeps.store import StoreError
from sweeps.tables import RunTable, SchedulerTable
from sweeps.trainable import TrialTrainable

PENDING = 16  # trials that wait for workers where the cluster has none yet


def run(
    todo: Missing,
    table: RunTable,
    scheduler: SchedulerTable | None,
    cost: Cost,
    console: Console,
    trainable: type = TrialTrainable,
) -> list[Blocked]:
    """Run all missing jobs, and what searches ask for; returns those that were not run because a teacher failed.

    StoreError if results cannot be written; KeyboardInterrupt passes through.
    """
    wilcoxon = scheduler is not None and scheduler.name == "wilcoxon"
    expected = weights(todo, cost)
    search = SweepSearch(todo, expected, scheduler.p_threshold if scheduler is not None and wilcoxon else None)
    if not search.to_come:  # all that is left needs a teacher that failed
        return search.blocked
    teachers = {job.key for job in todo.jobs if job.role == "teacher"}
    progress = Progress(console, search.jobs, expected, teachers, todo.done, search.skipped)
    schedulers = InOrder()
    if scheduler is not None and not wilcoxon:
        schedulers = StudySchedulers(scheduler, search.jobs, {each.study.id: each.blind for each in todo.searches})
        for each in todo.searches:
            schedulers.remember(each)
    scratch = tempfile.mkdtemp(prefix="kdsweep-tune-")
    try:
        with progress:
            _start_ray()
            _fit(search, schedulers, progress, table, scratch, trainable)
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    if search.store_error:
        raise StoreError(search.store_error)
    _bury(job for job in search.jobs.values() if job.key in progress.dead)
    return search.blocked


def _start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; else start one here."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():  # Ray itself would try for minutes and print pages
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"RAY_ADDRESS must name a running cluster, but {address} does not answer ({reason})."
            ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray announces changes of later releases at every start
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is told by rows


def _is_own() -> bool:
    """Whether this process has started Ray, which is then this machine alone."""
    node: Any = ray._private.worker._global_node  # Ray has no other way to say so
    return bool(node.is_head())


def _check_fits(table: RunTable) -> None:
    """ConfigError if no machine has what a trial asks for: Tune would wait for ever and say nothing.

    A cluster without any CPU is one whose autoscaler has not begun.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any("CPU" in node for node in nodes):
        return
    for key, kind, wanted in (("cpus", "CPU", table.cpus), ("gpus", "GPU", table.gpus or 0)):
        most = max(node.get(kind, 0) for node in nodes)
        if wanted > most:
            raise ConfigError(f"run.{key} must be at most what a machine has, {most:g}, but got {wanted:g}.")


def _slots(cpus: int, gpus: float) -> int:
    """For how many trials at a time there is room."""
    cluster = ray.cluster_resources()
    slots = int(cluster.get("CPU", 0) // cpus)
    return min(slots, int(cluster.get("GPU", 0) / gpus + 1e-6)) if gpus else slots


def _fit(
    search: SweepSearch,
    scheduler: InOrder,
    progress: Progress,
    table: RunTable,
    scratch: str,
    trainable: type,
) -> None:
    _check_fits(table)
    gpus = table.gpus if table.gpus is not None else min(1.0, ray.cluster_resources().get("GPU", 0))
    if table.cuda_graphs and not gpus:
        raise ConfigError("run.cuda_graphs must be false where trials use no GPU, but got true.")
    # All workers start at once: by default Tune asks for the next trial when the last one's worker is up.
    # Where no worker is up yet, the trials that wait tell the autoscaler how many to start.
    slots = _slots(table.cpus, gpus)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots or PENDING)
    # A study is asked when a worker is free and not before, so that it knows all that has ended. Nor is anything begun
    # before where no machine can join: Tune would request a place for each trial that waits, and cancel the request.
    own = _is_own()
    at_once = table.max_concurrent or (slots or None if search.studies or own else None)
    scheduler.places = slots if own else 0  # elsewhere others may take them
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": table.cpus, "gpu": gpus}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            callbacks=[progress],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=table.max_failures),
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner.fit()


def _bury(jobs: Iterable[Job]) -> None:
    """Write the rows of trials whose workers died: nobody else can."""
    for job in jobs:
        if job.store.statuses([job.id]):  # it died after its work was done
            clean(job)
            continue
        told = ("WorkerDied", "the worker died more often than run.max_failures allows (out of memory, or killed)")
        end(job, Status.FAILED, epochs_done=0, device="unknown", started_at=datetime.now(UTC), error=told)
