"""The configuration of one trial: typed, frozen, checked completely, with the key path in every error."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """Bad input: the message names the rule, the key path and the value."""


class Frozen(BaseModel):
    """Base of all configurations: immutable, unknown keys forbidden, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _whole_or_fraction(value: float) -> float:
    if value < 0 or (value >= 1 and value != int(value)):
        raise ValueError("must be a whole number of epochs or a fraction of all epochs below 1")
    return value


Epochs = Annotated[float, AfterValidator(_whole_or_fraction)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class FolderRef(Frozen):
    """What identifies the images of a person's own folder wherever it lies."""

    sha256: str  # of the names and contents of all its files
    num_classes: int


class DataConfig(Frozen):
    """Which images a trial sees. A name `folder:PATH` comes with `folder` and `image_size`."""

    dataset: str
    fraction: float = Field(1.0, gt=0, le=1)  # of the training images left after the validation split
    subset_seed: Seed = 0  # draws the validation split and the nested fractions
    val_size: int = Field(0, ge=0)  # held-out training images
    image_size: int | None = Field(None, ge=8, le=1024)  # rows and columns; None: the data set's own
    channels: Literal[1, 3] | None = None  # grey (0.299 R + 0.587 G + 0.114 B), or three; None: the data set's own
    mean: tuple[float, ...] | None = None  # of each channel, for pixels in 0..1; None: the data set's
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    folder: FolderRef | None = None


class Recipe(Frozen):
    """How a network is trained; the defaults are RepDistiller's CIFAR-100 recipe (240 epochs)."""

    epochs: int = Field(240, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(0.05, gt=0)
    # A number below 1 is a fraction of the epochs: 150, 180 and 210 of 240. The epoch named is the last at the old lr.
    lr_milestones: tuple[Annotated[Epochs, Field(gt=0)], ...] = (0.625, 0.75, 0.875)
    lr_gamma: float = Field(0.1, gt=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool | None = None  # None: as the method's authors did
    warmup_epochs: int | None = Field(None, ge=1)  # the learning rate rises linearly over the steps of these epochs
    drop_last: Literal[True] | None = None  # leave out the last, smaller batch of an epoch; None: keep it
    weight_decay: float = Field(5e-4, ge=0)
    augment: bool = True  # random crop after padding (or random resized crop, of ImageNet), random horizontal flip
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def milestones(self) -> list[int]:
        """The last epoch (1-based) at each learning rate, ascending."""
        return sorted(part_of(milestone, self.epochs) for milestone in self.lr_milestones)


class TeacherRef(Frozen):
    """A trained teacher: its architecture, and the id of the trial that trained it or that of its file.

    A file's id is its SHA-256; torchvision's weights are named by their enum.
    """

    model: str
    id: str


class Probe(Frozen):
    """A linear probe: the trial's student is that of another trial, frozen; `train` is how the classifier trains.

    The trial's `method`, `teacher` and `student` are those of the trial probed, its `data` the target's.
    """

    source: str  # the id of the trial whose student it is
    dataset: str  # that trial's data set
    num_classes: int  # of that data set
    lrs: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)  # the best on held-out images is taken
    holdout: float = Field(gt=0, lt=1)  # the share of the target's training images held out for that


class MethodRef(Frozen):
    """A method by name (`a+b` for two together) with the parameters that differ from its defaults."""

    name: str
    params: dict[str, Any] = {}


class TrialConfig(Frozen):
    """Everything that determines the result of one trial, and nothing else."""

    data: DataConfig
    train: Recipe = Recipe()
    teacher: TeacherRef | None = None
    assistants: tuple[TeacherRef, ...] | None = None  # teachers beside the teacher, for methods that have them
    student: str
    method: MethodRef
    seed: Seed = 0  # of the initial weights, of the order of the batches and, by default, of the views
    view_seed: Seed | None = None  # of the augmentation; None: the trial's seed
    probe: Probe | None = None  # None: the student is trained

    @property
    def views(self) -> int:
        """The seed of the augmentation."""
        return self.seed if self.view_seed is None else self.view_seed


class Where(Frozen):
    """What says only where and how fast a trial runs; never part of its identity."""

    data_root: str = "data"
    download: bool = False
    # Folder of prepared images and of teacher outputs, shared by all processes of a machine; None: in data_root.
    cache: str | None = None
    cache_gb: float = Field(20, ge=0)  # of the teacher outputs in it
    # What is stored of a teacher's outputs: all that trials look at that share them. Empty: nothing is shared.
    shared: tuple[str, ...] = ()
    skip_corrupt: bool = False  # leave out images that cannot be read, instead of refusing them
    teacher_weights: str | None = None  # file of the teacher's weights
    assistant_weights: tuple[str, ...] = ()  # of the assistants, in their order
    device: str = "auto"  # "auto": cuda if there is one, else cpu
    cpus: int = Field(1, ge=1)  # threads
    gpu_share: float | None = Field(
        None, gt=0, le=1
    )  # of a GPU's memory, where several trials are on it; None: all of it
    cuda_graphs: bool = False  # whether the student's passes are recorded once and replayed, on CUDA


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: Mapping[str, Any], path: str = "") -> M:
    """`data` (as read from TOML) as a `model`; ConfigError with the key path of the first rule broken."""
    try:
        return model.model_validate_json(json.dumps(data, default=_refuse))
    except ValidationError as error:
        raise ConfigError(explain(error, model, path)) from None


def _refuse(value: Any) -> Any:
    raise ConfigError(f"dates and times are no values here, but got {value}.")


def explain(error: ValidationError, model: type[BaseModel], path: str = "") -> str:
    """The first error of a ValidationError as one line: rule, key path, value, known names."""
    first = error.errors()[0]
    keys = [path] if path else []
    for part in first["loc"]:
        if part in ("str", "dict[str,any]") or str(part).startswith("function-after["):  # members of a union
            continue
        if isinstance(part, int) and keys:
            keys[-1] += f"[{part}]"
        else:
            keys.append(str(part))
    where = ".".join(keys)
    if first["type"] == "extra_forbidden":
        known = _fields(model, first["loc"][:-1])
        return unknown("key", str(first["loc"][-1]), known, where)
    if first["type"] == "missing":
        return f"{where} is required."
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    return f"{where} {rule[0].lower()}{rule[1:]}, but got {first['input']!r}."


def _fields(model: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    for part in loc:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        for inner in (annotation, *get_args(annotation)):  # get_args: the members of `Model | None`
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)


def unknown(kind: str, name: str, known: Iterable[str], where: str) -> str:
    """The message for an unknown name: where it stands, the nearest known name, all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1) or difflib.get_close_matches(name.lower(), names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r} at {where}.{hint} Known: {', '.join(names)}."


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data gives equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(data: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON of `data`."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:16]


def part_of(value: float, total: int) -> int:
    """A count given as such, or as a fraction (a number below 1) of `total`: at least 1 unless 0."""
    if value == 0 or value >= 1:
        return int(value)
    return max(1, round(value * total))
