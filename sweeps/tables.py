"""The tables of a sweep's TOML file, each key with its type, range and default."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from kdtrain.config import Epochs, Frozen, MethodRef, Recipe, Seed, parse


def _distinct(values: list[Any]) -> list[Any]:
    if len({repr(value) for value in values}) < len(values):
        raise ValueError("must not repeat a value")
    return values


def _whole_or_share(gpus: float) -> float:
    # Shares other than 1/n would straddle two GPUs.
    if gpus < 0 or (gpus != round(gpus) and not (gpus < 1 and abs(1 / gpus - round(1 / gpus)) < 1e-6)):
        raise ValueError("must be a whole number or 1/n")
    return gpus


Axis = AfterValidator(_distinct)
Fraction = Annotated[float, Field(gt=0, le=1)]
SweepName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # also a folder's, and never a path


class SweepTable(Frozen):
    """[sweep]: what the sweep is called, and the table of a paper that it repeats."""

    name: SweepName
    cites: str = ""


class DataTable(Frozen):
    """[data]: the images, and where they lie."""

    dataset: str
    subset_seed: Seed = 0
    val_size: int = Field(0, ge=0)
    view_seed: Seed | None = None
    image_size: int | None = None  # this and the next three: as in DataConfig
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    root: str = "data"
    download: bool = False
    skip_corrupt: bool = False


class Weights(Frozen):
    """An entry of [teacher.weights]: the weights of one architecture."""

    file: str  # a path, a URI, `torchvision` or `torchvision:NAME_OF_ITS_WEIGHTS`
    expect_top1: float | None = Field(None, ge=0, le=100)  # percent, on the test images; else the sweep is refused
    within: float = Field(0.1, ge=0)  # points


class TeacherTable(Frozen):
    """[teacher]: how teachers are trained where that differs from [train]. Further keys: fields of the recipe."""

    model_config = ConfigDict(extra="allow")

    fraction: Fraction = 1.0
    seed: Seed = 0  # also of the assistants
    method: str | dict[str, Any] = "vanilla"  # a name, or { name = ..., PARAM = ... }; one that needs no teacher
    # Teachers of pairs that are not trained: {architecture: file or Weights}; "torchvision..." for all of them.
    weights: str | dict[str, Any] = Field(default_factory=dict)


class Grid(Frozen):
    """[grid]: the product of its lists. Further keys: fields of the recipe, and one table a method."""

    model_config = ConfigDict(extra="allow")

    pair: Annotated[list[str], Axis] = Field(min_length=1)  # "teacher/student", or "student" without a teacher
    method: Annotated[list[str | dict[str, Any]], Axis] = Field(min_length=1)  # a name, or { name = ..., PARAM = ... }
    fraction: Annotated[list[Fraction], Axis] = Field([1.0], min_length=1)
    seed: Annotated[list[Seed], Axis] = Field(min_length=1)


class Override(Frozen):
    """[[override]]: where the axes match `when`, `set` replaces fields of the recipe or of the method."""

    when: dict[str, Any] = Field(default_factory=dict)
    set: dict[str, Any] = Field(min_length=1)


class ProbeTable(Frozen):
    """[[probe]]: a linear classifier on the frozen features of every student and teacher of the sweep.

    What no paper gives: the optimizer and its learning rate, which is chosen on held-out training images of the target.
    """

    dataset: str
    image_size: int | None = None  # None: that of the students' images
    fraction: Fraction = 1.0
    holdout: float = Field(0.1, gt=0, lt=1)  # share of the training images on which the learning rate is chosen
    normalise: Literal["source", "target"] = "source"  # whose mean and standard deviation
    lr: Annotated[list[Annotated[float, Field(gt=0)]], Axis] = Field([0.01, 0.1, 1.0], min_length=1)
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(128, ge=1)
    lr_milestones: tuple[Epochs, ...] = (0.6, 0.8)
    lr_gamma: float = Field(0.1, gt=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)


class SearchTable(Frozen):
    """[search]: one study for each cell of the grid, on held-out training images."""

    sampler: str = "tpe"  # a name of sweeps.samplers.SAMPLERS
    trials: int | None = Field(None, ge=1, le=100_000)  # points of each study; None only for "grid": all there are
    score: Literal["val_acc", "mean_over_seeds"] = "val_acc"  # of a point; the second: the mean over grid.seed
    objectives: Annotated[list[str], Axis] = Field(["val_acc"], min_length=1)  # names of schema.OBJECTIVES
    limits: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)  # of a searched student
    seed: Seed = 0  # of the samplers
    prior: SweepName | None = None  # a sweep whose best points are tried first
    space: dict[str, dict[str, Any]] = Field(default_factory=dict)  # by method, `train` and `student`
    start: dict[str, list[dict[str, Any]]] = Field(default_factory=dict)  # by method: points tried first


class SchedulerTable(Frozen):
    """[scheduler]: which points of a study are stopped early."""

    name: Literal["asha", "hyperband", "median", "wilcoxon"]
    grace: int = Field(1, ge=1)  # epochs of a trial that are never cut short, after those that its method needs blindly
    reduction_factor: float = Field(3, gt=1)  # of asha and hyperband: one in so many goes on at each rung
    p_threshold: float = Field(0.1, gt=0, lt=1)  # of wilcoxon


class ConfirmTable(Frozen):
    """[confirm]: the best points of each study, trained again on all training images."""

    top: int = Field(1, ge=1)
    seed: Annotated[list[Seed], Axis] = Field(min_length=1)


class RunTable(Frozen):
    """[run]: resources of each trial and where results go; no part of any trial's identity."""

    results: str = Field("results", min_length=1)
    # Folder on each machine of prepared images and of the outputs of teachers that trials share; None: in data.root.
    cache: str | None = Field(None, min_length=1)
    cache_gb: float = Field(20.0, ge=0)  # of the outputs of teachers in it; 0: each trial computes its own
    cpus: int = Field(1, ge=1)
    gpus: Annotated[float, AfterValidator(_whole_or_share)] | None = None  # None: 1 where there are GPUs, else 0
    cuda_graphs: bool = False  # whether the student's passes are recorded and replayed, on GPUs
    price: float | None = Field(None, gt=0)  # of an hour of a GPU, where trials use none of a core; for plans
    max_concurrent: int | None = Field(None, ge=1)
    max_failures: int = Field(3, ge=0)  # restarts of a trial whose worker died
    replay: SweepName | None = None  # a sweep whose stored epochs are returned instead of training
    keep_weights: bool = False  # also the students'; a sweep with probes keeps them in any case


class Spec(Frozen):
    """A whole sweep."""

    sweep: SweepTable
    data: DataTable
    train: Recipe = Recipe()
    teacher: TeacherTable = TeacherTable()
    grid: Grid
    override: list[Override] = Field(default_factory=list)
    probe: list[ProbeTable] = Field(default_factory=list)
    search: SearchTable | None = None
    scheduler: SchedulerTable | None = None
    confirm: ConfirmTable | None = None
    run: RunTable = RunTable()

    @property
    def teacher_recipe(self) -> Recipe:
        """The recipe of the teachers: [train] with what [teacher] changes."""
        return parse(Recipe, {**self.train.model_dump(), **(self.teacher.model_extra or {})}, "teacher")

    @property
    def teacher_method(self) -> MethodRef:
        """The method by which the teachers are trained."""
        return method_entry(self.teacher.method)

    def weights_of(self, model: str) -> Weights | None:
        """The weights that the spec names for an architecture as a teacher; None if it is to be trained."""
        named = self.teacher.weights
        entry = named if isinstance(named, str) else named.get(model)
        if entry is None:
            return None
        if isinstance(entry, str):
            return Weights(file=entry)
        return parse(Weights, entry, f"teacher.weights.{model}")

    @property
    def recipe_axes(self) -> dict[str, list[Any]]:
        """The lists of [grid] that vary fields of the recipe."""
        extra = self.grid.model_extra or {}
        return {key: values for key, values in extra.items() if key in Recipe.model_fields}

    @property
    def method_axes(self) -> dict[str, dict[str, list[Any]]]:
        """The tables of [grid] that vary parameters of one method: {method: {parameter: values}}."""
        extra = self.grid.model_extra or {}
        return {key: table for key, table in extra.items() if key not in Recipe.model_fields}


def split_pair(pair: str) -> tuple[str | None, str]:
    """The (teacher, student) of "teacher/student"; without a slash there is no teacher."""
    teacher, slash, student = pair.rpartition("/")
    return (teacher if slash else None), student


def method_entry(entry: str | Mapping[str, Any]) -> MethodRef:
    """An entry of grid.method, or teacher.method, as a reference."""
    if isinstance(entry, str):
        return MethodRef(name=entry)
    return MethodRef(name=entry["name"], params={key: value for key, value in entry.items() if key != "name"})
