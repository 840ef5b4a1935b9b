"""Teachers whose weights were trained elsewhere: files, URIs and torchvision's, checked, measured and kept."""

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdtrain import teacher_check, weights
from kdtrain.checkpoint import pack_weights
from kdtrain.config import ConfigError, DataConfig, Frozen, TeacherRef, Where
from kdtrain.data import info_of
from kdtrain.device import device_name, device_of
from kdtrain.metrics import Metrics
from kdtrain.models.unfilled import unfilled
from sweeps import rows
from sweeps.schema import Status
from sweeps.store import Store, local_file
from sweeps.tables import Weights


class Published(Frozen):
    """A teacher whose weights were trained elsewhere."""

    ref: TeacherRef
    source: str  # as the spec names it: a path, a URI or torchvision
    data: DataConfig  # on whose test images it is measured
    expect_top1: float | None  # percent
    within: float


def published(model: str, entry: Weights, config: DataConfig) -> Published:
    """The teacher that a spec names; ConfigError if its file cannot be read or holds another network."""
    found = _find(model, entry.file, config)
    if not weights.is_torchvision(entry.file):
        found.state()  # does it fit?
    ref = TeacherRef(model=model, id=found.id)
    return Published(ref=ref, source=entry.file, data=config, expect_top1=entry.expect_top1, within=entry.within)


def is_measured(teacher: Published, own: Store, taught: Store) -> bool:
    """Whether its metrics on these images and its weights are stored, and are what the spec demands.

    own: the sweep's store; taught: that of all teachers. ConfigError if the accuracy is another.
    """
    row = next(iter(own.read_trials([teacher.ref.id]).to_pylist()), None)
    images = _seen(rows.data(teacher.data))
    if row is None or _seen(row) != images or not taught.exists("models", _file(teacher)):
        return False
    _expect(teacher, row["test_top1"])
    return True


def bring(teacher: Published, own: Store, taught: Store, where: Where, source: Mapping[str, str]) -> None:
    """Measure a teacher and store its weights and its row; ConfigError if it is not what the spec demands.

    Its row is that of a teacher without a recipe, so that tables and reports show its accuracy like any other's. It
    stands in the sweep's own store, since another sweep may measure it on other images.
    """
    begun, ref = datetime.now(UTC), teacher.ref
    found = _find(ref.model, teacher.source, teacher.data)
    if found.id != ref.id:
        raise ConfigError(f"{teacher.source} has changed since the sweep was planned: run it again.")
    packed = pack_weights(found.state(), {}, ref.id)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "teacher.safetensors"
        file.write_bytes(packed)
        measured: Metrics = teacher_check.evaluate(ref, teacher.data, str(file), where)
    _expect(teacher, measured.top1)
    row: dict[str, Any] = {
        **rows.published(ref, teacher.source, teacher.data),
        **rows.outcome(Status.COMPLETED, 0),
        **rows.measured(measured),
        **rows.provenance(source, device_name(device_of(where)), where.cpus, begun),
    }
    if not taught.exists("models", _file(teacher)):  # it may be a teacher of ours, whose file says more
        taught.write_bytes(packed, "models", _file(teacher))
    own.write_trial(row)


def _seen(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that say which test images a teacher saw, and how they were normalised."""
    return {key: row[key] for key in ("dataset", "image_size", "channels", "mean", "std", "folder_sha256")}


def _find(model: str, source: str, config: DataConfig) -> weights.Found:
    info = info_of(config)
    network = unfilled(model, info.num_classes, info.in_channels)
    return weights.find(local_file(source), network, model, f"teacher.weights.{model}")


def _file(teacher: Published) -> str:
    return f"{teacher.ref.id}.safetensors"


def _expect(teacher: Published, top1: float) -> None:
    if teacher.expect_top1 is not None:
        key = f"teacher.weights.{teacher.ref.model}.expect_top1"
        what = f"{key}: teacher {teacher.ref.model} ({teacher.source}) on {teacher.data.dataset}"
        teacher_check.expect(top1, teacher.expect_top1, teacher.within, what)
