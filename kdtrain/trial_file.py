"""A trial as a TOML file: what `kd-train run` takes."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from kdtrain import data, models, recipes, weights
from kdtrain.build import check
from kdtrain.config import (
    ConfigError,
    DataConfig,
    Frozen,
    MethodRef,
    Recipe,
    Seed,
    TeacherRef,
    TrialConfig,
    Where,
    parse,
)
from kdtrain.methods import assistants, needs, resolve
from kdtrain.models.unfilled import unfilled


class DataTable(DataConfig):
    """[data]: the images, and where they lie."""

    root: str = "data"
    cache: str | None = None
    download: bool = False
    skip_corrupt: bool = False


class TeacherTable(Frozen):
    """[teacher], [[assistant]]: an architecture and its weights, a file of any origin or `torchvision`."""

    model: str
    weights: str
    expect_top1: float | None = Field(None, ge=0, le=100)  # percent, on the test images; else the trial is refused
    within: float = Field(0.1, ge=0)  # points


class MethodTable(Frozen):
    """[method]: a name, and its parameters beside it."""

    model_config = ConfigDict(extra="allow")

    name: str


class TrialFile(Frozen):
    """A trial as TOML."""

    student: str
    seed: Seed = 0
    view_seed: Seed | None = None
    data: DataTable
    train: Recipe = Recipe()
    teacher: TeacherTable | None = None
    assistant: list[TeacherTable] = Field(default_factory=list)  # in the order of the method's assistants
    method: MethodTable

    @property
    def where(self) -> Where:
        """Where and how fast the trial runs."""
        return Where(
            data_root=self.data.root,
            cache=self.data.cache,
            download=self.data.download,
            skip_corrupt=self.data.skip_corrupt,
            teacher_weights=self.teacher.weights if self.teacher else None,
            assistant_weights=tuple(other.weights for other in self.assistant),
        )


def read(path: Path) -> tuple[TrialConfig, TrialFile]:
    """The trial in a TOML file, completely checked, and the file without what the method does not look at.

    ConfigError if a rule is broken.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the trial {path}: {reason}.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    if isinstance(tables.get("train"), dict):
        tables["train"] = recipes.expanded(tables["train"], "train")
    file = parse(TrialFile, tables)
    method = MethodRef(name=file.method.name, params=file.method.model_extra or {})
    resolve(method, "method.name")
    # What the method does not look at is no part of the trial, so that a file serves several methods.
    teacher, others = (file.teacher if needs(method) else None), (file.assistant if assistants(method) else [])
    file = file.model_copy(update={"teacher": teacher, "assistant": others})
    images = _images(file)
    refs = [_reference(other, images, f"assistant[{i}]") for i, other in enumerate(file.assistant)]
    trial = TrialConfig(
        data=images,
        train=file.train,
        teacher=_reference(file.teacher, images, "teacher") if file.teacher else None,
        assistants=tuple(refs) or None,
        student=file.student,
        method=method,
        seed=file.seed,
        view_seed=file.view_seed,
    )
    check(trial)
    return trial, file


def _images(file: TrialFile) -> DataConfig:
    given = file.data.model_dump(include=set(DataConfig.model_fields) - {"dataset"}, exclude_none=True)
    return parse(DataConfig, {**data.named(file.data.dataset, file.where), **given}, "data")


def _reference(table: TeacherTable, images: DataConfig, path: str) -> TeacherRef:
    models.check(table.model, f"{path}.model")
    info = data.info_of(images)
    network = unfilled(table.model, info.num_classes, info.in_channels)
    found = weights.find(table.weights, network, table.model, f"{path}.weights")
    if not weights.is_torchvision(table.weights):
        found.state()  # does it fit?
    return TeacherRef(model=table.model, id=found.id)
