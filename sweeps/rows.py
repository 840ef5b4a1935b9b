"""Trials, records and results as rows of the result files."""

import platform
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdtrain import methods
from kdtrain.build import nesterov, trial_id
from kdtrain.config import DataConfig, TeacherRef, TrialConfig, canonical
from kdtrain.data import title
from kdtrain.metrics import Metrics
from kdtrain.record import EpochRecord, TrialResult
from sweeps.schema import IDENTITY, METRICS, PUBLISHED, SEARCH, Status

Row = dict[str, Any]
_METRICS = [field.name for field in METRICS]


def identity(trial: TrialConfig, role: str) -> Row:
    """The identity columns of a trial; `role` is "student", "teacher" or "probe"."""
    recipe = trial.train.model_dump(exclude={"lr_milestones", "nesterov"})
    return {
        "trial_id": trial_id(trial),
        "role": role,
        **data(trial.data),
        "source_id": trial.probe and trial.probe.source,
        "source_dataset": trial.probe and title(trial.probe.dataset),
        "probe": trial.probe and canonical(trial.probe.model_dump(mode="json", include={"lrs", "holdout"})),
        "teacher": trial.teacher and trial.teacher.model,
        "teacher_id": trial.teacher and trial.teacher.id,
        "self_taught": methods.self_taught(trial.method),
        "assistant_ids": [ref.id for ref in trial.assistants] if trial.assistants else None,
        "student": trial.student,
        "method": trial.method.name,
        "method_version": methods.version(trial.method),
        "params": canonical(methods.params(trial.method)),
        **recipe,
        "lr_milestones": trial.train.milestones,
        "nesterov": nesterov(trial),
        "seed": trial.seed,
        "view_seed": trial.views,
    }


def published(teacher: TeacherRef, source: str, config: DataConfig) -> Row:
    """The identity columns of a teacher whose weights were trained elsewhere: of its recipe nothing is known."""
    return {
        **dict.fromkeys(field.name for field in IDENTITY),
        "trial_id": teacher.id,
        "role": "teacher",
        **data(config),
        "self_taught": False,
        "student": teacher.model,
        "method": PUBLISHED,
        "method_version": "1",
        "params": canonical({"source": source}),
    }


def searched(columns: Mapping[str, Any]) -> Row:
    """The search columns, null where `columns` does not say them; of a trial that a grid planned it says nothing."""
    return {**dict.fromkeys(field.name for field in SEARCH), **columns}


def data(config: DataConfig) -> Row:
    """The columns that say which images."""
    folder = config.folder and config.folder.sha256
    as_lists = {key: value and list(value) for key, value in (("mean", config.mean), ("std", config.std))}
    name = title(config.dataset)
    return {**config.model_dump(exclude={"folder"}), **as_lists, "dataset": name, "folder_sha256": folder}


def epoch(trial_id: str, record: EpochRecord) -> Row:
    """A row of EPOCHS."""
    return {"trial_id": trial_id, **asdict(record)}


def outcome(status: Status, epochs_done: int, error: tuple[str, str] | None = None) -> Row:
    """The outcome columns; `error` is (type, traceback)."""
    error_type, text = error or (None, None)
    return {"status": status.value, "error_type": error_type, "error": text, "epochs_done": epochs_done}


def measured(found: Metrics) -> Row:
    """The metrics columns of a network that was not trained here."""
    told = asdict(found)
    recall = told.pop("class_recall")
    return dict.fromkeys(_METRICS) | {f"test_{key}": value for key, value in told.items()} | {"class_recall": recall}


def metrics(result: TrialResult | None) -> Row:
    """The metrics columns: null unless the trial completed."""
    return dict.fromkeys(_METRICS) if result is None else asdict(result)


def provenance(
    source: Mapping[str, str],
    device: str,
    cpus: int,
    started_at: datetime,
    replayed: str | None = None,
    predicted: float | None = None,
) -> Row:
    """Where, when and by what code a trial ran; `source` has sweep, spec_sha256 and git_commit.

    replayed: the trial whose stored epochs were returned, where nothing was trained. predicted: see predicted_seconds.
    """
    return {
        "sweep": source["sweep"],
        "spec_sha256": source["spec_sha256"],
        "kdsweep": _version("kdsweep"),
        "git_commit": source["git_commit"] or None,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "host": socket.gethostname(),
        "device": device,
        "replayed": replayed,
        "cpus": cpus,
        "predicted_seconds": predicted,
        "started_at": started_at,
        "ended_at": datetime.now(UTC),
    }


_version = cache(version)  # which reads files


@cache
def git_commit() -> str:
    """The commit of the checkout that this code runs from, "+" added if it has changes; empty outside of one."""
    root = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
