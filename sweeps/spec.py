"""A sweep's TOML file as a frozen Spec: shapes, ranges and names checked, key paths in every error."""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, Field

from kdtrain import data, models, subset
from kdtrain.config import ConfigError, DataConfig, Frozen, MethodRef, Recipe, Seed, Where, parse, unknown
from kdtrain.methods import needs, resolve
from sweeps.store import TEACHERS


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


class SweepTable(Frozen):
    """[sweep]: what the sweep is called, and the table of a paper that it repeats."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    cites: str = ""


class DataTable(Frozen):
    """[data]: the images, and where they lie."""

    dataset: str
    subset_seed: Seed = 0
    val_size: int = Field(0, ge=0)
    view_seed: Seed | None = None
    image_size: int | None = None  # this and the next two: as in DataConfig
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    root: str = "data"
    download: bool = False
    skip_corrupt: bool = False


class TeacherTable(Frozen):
    """[teacher]: how teachers are trained where that differs from [train]. Further keys: fields of the recipe."""

    model_config = ConfigDict(extra="allow")

    fraction: Fraction = 1.0
    seed: Seed = 0  # also of the assistants
    method: str | dict[str, Any] = "vanilla"  # a name, or { name = ..., PARAM = ... }; one that needs no teacher


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


class RunTable(Frozen):
    """[run]: resources of each trial and where results go; no part of any trial's identity."""

    results: str = Field("results", min_length=1)
    cache: str | None = Field(None, min_length=1)  # folder of prepared images on each machine; None: in data.root
    cpus: int = Field(1, ge=1)
    gpus: Annotated[float, AfterValidator(_whole_or_share)] | None = None  # None: 1 where there are GPUs, else 0
    max_concurrent: int | None = Field(None, ge=1)
    max_failures: int = Field(3, ge=0)  # restarts of a trial whose worker died


class Spec(Frozen):
    """A whole sweep."""

    sweep: SweepTable
    data: DataTable
    train: Recipe = Recipe()
    teacher: TeacherTable = TeacherTable()
    grid: Grid
    override: list[Override] = Field(default_factory=list)
    run: RunTable = RunTable()

    @property
    def teacher_recipe(self) -> Recipe:
        """The recipe of the teachers: [train] with what [teacher] changes."""
        return parse(Recipe, {**self.train.model_dump(), **(self.teacher.model_extra or {})}, "teacher")

    @property
    def teacher_method(self) -> MethodRef:
        """The method by which the teachers are trained."""
        return method_entry(self.teacher.method)

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


def read(path: Path) -> tuple[Spec, str]:
    """The spec in a file and its text; ConfigError if there is none or a rule is broken."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the spec {path}: {reason}.") from None
    return parse_text(text, str(path)), text


def parse_text(text: str, name: str = "spec") -> Spec:
    """A spec from its text, completely checked except for what depends on trials."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not TOML: {error}.") from None
    spec = parse(Spec, tables)
    if spec.sweep.name == TEACHERS:
        raise ConfigError(f"sweep.name must not be {TEACHERS!r}, the folder of all teachers.")
    data.info_of(data_config(spec.data))
    _check_teacher(spec)
    _check_pairs(spec.grid.pair)
    _check_methods(spec)
    _check_axes(spec)
    return spec


def sha256(text: str) -> str:
    """The SHA-256 of a spec's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_pair(pair: str) -> tuple[str | None, str]:
    """The (teacher, student) of "teacher/student"; without a slash there is no teacher."""
    teacher, slash, student = pair.rpartition("/")
    return (teacher if slash else None), student


def method_entry(entry: str | Mapping[str, Any]) -> MethodRef:
    """An entry of grid.method, or teacher.method, as a reference."""
    if isinstance(entry, str):
        return MethodRef(name=entry)
    return MethodRef(name=entry["name"], params={key: value for key, value in entry.items() if key != "name"})


def data_config(table: DataTable, fraction: float = 1.0) -> DataConfig:
    """The part of a data table that is a trial's."""
    given = table.model_dump(exclude_none=True, include=set(DataConfig.model_fields))
    return parse(DataConfig, {**given, "fraction": fraction}, "data")


def where(spec: Spec) -> Where:
    """Where and how fast the trials run, in paths that mean the same in every worker."""
    table, run = spec.data, spec.run
    return Where(
        data_root=absolute(table.root),
        download=table.download,
        cache=None if run.cache is None else absolute(run.cache),
        skip_corrupt=table.skip_corrupt,
        device="cpu" if run.gpus == 0 else "auto",
        cpus=run.cpus,
    )


def absolute(path: str) -> str:
    """A path that means the same in every worker; URIs stay as they are."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def check_data(spec: Spec) -> None:
    """Read the data set, downloading it if the spec says so, and draw all its splits; ConfigError if that fails."""
    images = data.load(data_config(spec.data), where(spec), torch.device("cpu"))
    for fraction in (*spec.grid.fraction, spec.teacher.fraction):
        subset.split(images.train.labels, fraction, spec.data.val_size, spec.data.subset_seed)


def _check_teacher(spec: Spec) -> None:
    _ = spec.teacher_recipe
    _check_entry(spec.teacher.method, "teacher.method")
    if needs(spec.teacher_method):
        raise ConfigError(
            f"teacher.method must be a method that needs no teacher itself, but got {spec.teacher.method!r}."
        )


def _check_pairs(pairs: Iterable[str]) -> None:
    for i, pair in enumerate(pairs):
        teacher, student = split_pair(pair)
        if teacher is not None:
            models.check(teacher, f"grid.pair[{i}]")
        models.check(student, f"grid.pair[{i}]")


def _check_methods(spec: Spec) -> None:
    for i, entry in enumerate(spec.grid.method):
        _check_entry(entry, f"grid.method[{i}]")
        ref = method_entry(entry)
        axes = spec.method_axes.get(ref.name, {})
        if isinstance(axes, Mapping) and (both := ref.params.keys() & axes.keys()):
            raise ConfigError(f"grid.method[{i}] must not give what is an axis in [grid.{ref.name}]: {min(both)}.")


def _check_entry(entry: str | Mapping[str, Any], where: str) -> None:
    if not isinstance(entry, str) and not isinstance(entry.get("name"), str):
        raise ConfigError(f"{where}.name must be the name of a method, but got {entry!r}.")
    resolve(method_entry(entry), where)


def _check_axes(spec: Spec) -> None:
    for key, values in spec.recipe_axes.items():
        _check_values(f"grid.{key}", values)
        for i, value in enumerate(values):
            parse(Recipe, {key: value}, f"grid.{key}[{i}]")
    used = {method_entry(entry).name for entry in spec.grid.method}
    for name, table in spec.method_axes.items():
        if name not in used:
            known = {*Grid.model_fields, *Recipe.model_fields, *used}
            raise ConfigError(unknown("axis", name, known, f"grid.{name}"))
        if not isinstance(table, dict) or not table:
            raise ConfigError(f"grid.{name} must be a table of the method's parameters, but got {table!r}.")
        for key, values in table.items():
            _check_values(f"grid.{name}.{key}", values)
            for ref in (ref for ref in map(method_entry, spec.grid.method) if ref.name == name):
                for value in values:
                    resolve(MethodRef(name=name, params={**ref.params, key: value}), f"grid.{name}")


def _check_values(where: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where} must be a list of values, but got {values!r}.")
    if len({repr(value) for value in values}) < len(values):
        raise ConfigError(f"{where} must not repeat a value, but got {values!r}.")
