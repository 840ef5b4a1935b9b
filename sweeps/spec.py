"""From a sweep's TOML file to a frozen Spec: ranges and names checked, key paths in every error."""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from kdtrain import data, models, recipes, subset
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, Where, parse, unknown
from kdtrain.methods import needs, resolve
from sweeps import search_rules
from sweeps.schema import SEARCHED
from sweeps.store import TEACHERS
from sweeps.tables import Grid, Spec, method_entry, split_pair


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
    _expand_recipes(tables)
    spec = parse(Spec, tables)
    if spec.sweep.name == TEACHERS:
        raise ConfigError(f"sweep.name must not be {TEACHERS!r}, the folder of all teachers.")
    data.info_of(data_config(spec))
    _check_teacher(spec)
    _check_weights(spec)
    _check_probes(spec)
    _check_pairs(spec.grid.pair)
    _check_methods(spec)
    _check_axes(spec)
    search_rules.check(spec)
    return spec


def _expand_recipes(tables: dict[str, Any]) -> None:
    """Put the keys of a named recipe where a table says `recipe`. What is no table is left for the parser to refuse."""
    for key in ("train", "teacher"):
        if isinstance(tables.get(key), dict):
            tables[key] = recipes.expanded(tables[key], key)
    overrides = tables.get("override")
    for i, override in enumerate(overrides if isinstance(overrides, list) else []):
        if isinstance(override, dict) and isinstance(override.get("set"), dict):
            override["set"] = recipes.expanded(override["set"], f"override[{i}].set")


def sha256(text: str) -> str:
    """The SHA-256 of a spec's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def data_config(spec: Spec, fraction: float = 1.0) -> DataConfig:
    """The images that students, or teachers, of a sweep see."""
    fields = set(DataConfig.model_fields) - {"dataset"}
    given = spec.data.model_dump(exclude_none=True, include=fields)
    return parse(DataConfig, {**data.named(spec.data.dataset, where(spec)), **given, "fraction": fraction}, "data")


def where(spec: Spec) -> Where:
    """Where and how fast the trials run, in paths that mean the same in every worker."""
    table, run = spec.data, spec.run
    return Where(
        data_root=absolute(table.root),
        download=table.download,
        cache=None if run.cache is None else absolute(run.cache),
        cache_gb=run.cache_gb,
        skip_corrupt=table.skip_corrupt,
        device="cpu" if run.gpus == 0 else "auto",
        cpus=run.cpus,
        gpu_share=run.gpus if run.gpus and run.gpus < 1 else None,
        cuda_graphs=run.cuda_graphs,
    )


def absolute(path: str) -> str:
    """A path that means the same in every worker; URIs stay as they are."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def check_data(spec: Spec, targets: Iterable[DataConfig]) -> list[str]:
    """Open the data sets, downloading them if the spec says so, and draw all splits; ConfigError if that fails.

    `targets`: the images of probes. Returns what there is to say: how many corrupt images are left out.
    """
    place, cpu = where(spec), torch.device("cpu")
    images = data.load(data_config(spec), place, cpu)
    for fraction in (*spec.grid.fraction, spec.teacher.fraction):
        subset.split(images.train.labels, fraction, spec.data.val_size, spec.data.subset_seed)
    opened = {spec.data.dataset: images}
    for target in targets:
        opened[target.dataset] = data.load(target, place, cpu)
        subset.split(opened[target.dataset].train.labels, target.fraction, 0, target.subset_seed)
    return [line for name, dataset in opened.items() for line in data.told(name, dataset)]


def _check_teacher(spec: Spec) -> None:
    _ = spec.teacher_recipe
    _check_entry(spec.teacher.method, "teacher.method")
    if needs(spec.teacher_method):
        raise ConfigError(
            f"teacher.method must be a method that needs no teacher itself, but got {spec.teacher.method!r}."
        )


def _check_weights(spec: Spec) -> None:
    """Raise ConfigError unless the weights are of teachers of the sweep, each entry well formed."""
    named = spec.teacher.weights
    if isinstance(named, str):
        if named.partition(":")[0] != "torchvision":
            raise ConfigError(
                "teacher.weights must be a table of files by architecture, such as { resnet56 = 'FILE' }, "
                f"or 'torchvision', but got {named!r}."
            )
        return
    known = {teacher for teacher, _ in map(split_pair, spec.grid.pair) if teacher is not None}
    for model, entry in named.items():
        if model not in known:
            raise ConfigError(unknown("teacher", model, known, "teacher.weights"))
        if not isinstance(entry, str | dict):
            raise ConfigError(f"teacher.weights.{model} must be a file, or a table that names one, but got {entry!r}.")
        spec.weights_of(model)


def _check_probes(spec: Spec) -> None:
    for i, table in enumerate(spec.probe):
        size = {} if table.image_size is None else {"image_size": table.image_size}
        images = parse(DataConfig, {**data.named(table.dataset, where(spec)), **size}, f"probe[{i}]")
        data.info_of(images, f"probe[{i}]")
        same = [(other.dataset, other.image_size, other.fraction) for other in spec.probe]
        if (first := same.index((table.dataset, table.image_size, table.fraction))) < i:
            raise ConfigError(f"probe[{i}] repeats probe[{first}]: data set, image_size and fraction are the same.")


def _check_pairs(pairs: Iterable[str]) -> None:
    for i, pair in enumerate(pairs):
        teacher, student = split_pair(pair)
        if teacher is not None:
            models.check(teacher, f"grid.pair[{i}]")
        if student != SEARCHED:
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
