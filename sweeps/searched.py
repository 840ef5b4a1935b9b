"""What [search] varies in each cell of the grid, and what a point means for a trial."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from kdtrain import methods, models
from kdtrain.config import ConfigError, MethodRef, Recipe, TrialConfig, canonical, parse, unknown
from kdtrain.methods.base import Range
from sweeps import space
from sweeps.schema import FAMILY, SEARCHED
from sweeps.space import Dimension, Point, Space
from sweeps.tables import Spec

TRAIN, STUDENT = "train", "student"  # the tables of [search.space] that are no method's
NEVER = {  # what a search may not vary, and why
    "seed": "the best seed is no better method",
    "view_seed": "the best seed is no better method",
    "subset_seed": "points must be compared on the same images",
    "val_size": "points must be compared on the same images",
    "epochs": "points must be compared after the same epochs",
}


def space_of(spec: Spec, ref: MethodRef, student: str) -> Space:
    """What is searched in a cell: of its method, of the recipe, and of its student where that is `*`.

    ref: the cell's method with the parameters that the grid gives, which are not searched by default.
    """
    assert spec.search is not None
    tables = spec.search.space
    found = _method_space(spec, ref)
    for name, entry in tables.get(TRAIN, {}).items():
        path = f"search.space.{TRAIN}.{name}"
        _refuse(name, path)
        if name not in Recipe.model_fields:
            raise ConfigError(unknown("key", name, Recipe.model_fields, f"search.space.{TRAIN}"))
        if name in spec.recipe_axes:
            raise ConfigError(f"{path} must not be searched, as grid.{name} gives it.")
        dim = space.dimension(entry, path, whole=Recipe.model_fields[name].annotation in (int, int | None))
        recipes = [
            parse(Recipe, {**spec.train.model_dump(), name: value}, f"search.space.{TRAIN}") for value in dim.to_check
        ]
        told = [canonical([recipe.model_dump(exclude={"lr_milestones"}), recipe.milestones]) for recipe in recipes]
        _check_distinct(dim, told, path, "the recipe")
        found[f"{TRAIN}.{name}"] = dim
    if student == SEARCHED:
        found |= student_space(tables[STUDENT])
    space.check_conditions(found, f"search.space.{ref.name}")
    endless = [name for name, dim in found.items() if dim.values is None]
    if endless and spec.search.sampler == "grid":
        raise ConfigError(
            f"search.space.{ref.name}: {endless[0]} must have a step or be a list, as search.sampler is 'grid'."
        )
    return found


def _method_space(spec: Spec, ref: MethodRef) -> Space:
    """The method's own space, or what the spec says instead."""
    assert spec.search is not None
    fixed = set(_flat(ref, ref.params))
    table = spec.search.space.get(ref.name)
    if table is None:
        default = methods.search_space(ref)
        return {name: _default(entry) for name, entry in default.items() if name not in fixed}
    found: Space = {}
    for name, entry in _flat(ref, table).items():
        path = f"search.space.{ref.name}.{name}"
        _refuse(name.rpartition(".")[2], path)
        if name in fixed:
            raise ConfigError(f"{path} must not be searched, as the grid gives it.")
        try:
            dim = space.dimension(entry, path, methods.whole(ref, name))
            trials = [canonical(methods.params(methods.with_values(ref, {name: value}))) for value in dim.to_check]
        except ConfigError as error:
            raise ConfigError(_located(str(error), ref, name, path)) from None
        _check_distinct(dim, trials, path, ref.name)
        found[name] = dim
    return found


def _located(error: str, ref: MethodRef, name: str, path: str) -> str:
    """The message about a parameter with the key path that it has here."""
    own = name if "+" in ref.name else f"{ref.name}.{name}"
    if error.startswith(f"{own} "):
        return path + error.removeprefix(own)
    return error.replace(f" at {ref.name}.", f" at search.space.{ref.name}.", 1)


def _check_distinct(dim: Dimension, trials: list[str], path: str, what: str) -> None:
    """Raise ConfigError if two choices are one trial. `trials`: what each of them makes."""
    if len(set(trials)) < len(trials):
        raise ConfigError(f"{path} must have choices that differ for {what}, but got {list(dim.to_check)!r}.")


def _refuse(name: str, path: str) -> None:
    if name in NEVER:
        raise ConfigError(f"{path} must not be searched: {NEVER[name]}.")
    if name.startswith("test"):
        raise ConfigError(f"{path} must not be searched: the test set is for the end.")


def _default(entry: Range | tuple[Any, ...]) -> Dimension:
    if isinstance(entry, Range):
        return Dimension(low=float(entry.low), high=float(entry.high), log=entry.log)
    return Dimension(choices=tuple(entry))


def _flat(ref: MethodRef, table: Mapping[str, Any]) -> dict[str, Any]:
    """A table by parameter, for `a+b` from one by part."""
    if "+" not in ref.name:
        return dict(table)
    flat: dict[str, Any] = {}
    for part, own in table.items():
        if not isinstance(own, Mapping):
            raise ConfigError(f"search: {part} of {ref.name} must be a table of that method's parameters, got {own!r}.")
        flat |= {f"{part}.{name}": entry for name, entry in own.items()}
    return flat


def student_space(tables: Mapping[str, Any]) -> Space:
    """The families of students, with their depths and widths."""
    found: Space = {FAMILY: Dimension(choices=tuple(tables))}
    for family, table in tables.items():
        path = f"search.space.{STUDENT}.{family}"
        if not isinstance(table, Mapping):
            raise ConfigError(f"{path} must be a table with depth and width, but got {table!r}.")
        for name, entry in table.items():
            if name not in ("depth", "width"):
                raise ConfigError(unknown("key", name, ("depth", "width"), path))
            dim = space.dimension(entry, f"{path}.{name}", whole=name == "depth")
            if dim.values is None:
                raise ConfigError(f"{path}.{name} must have a step or be a list: networks are counted.")
            found[f"{family}.{name}"] = dim.model_copy(update={"when": {**dim.when, FAMILY: family}})
    list(students(found))  # each can be built
    return found


def students(searched: Space) -> Iterator[str]:
    """The names of all students in a space; none where the student is not searched."""
    if FAMILY not in searched:
        return
    for family in searched[FAMILY].choices or ():
        own = {key: searched.get(f"{family}.{key}") for key in ("depth", "width")}
        values = [dim.values or () if dim is not None else (None,) for dim in own.values()]
        for depth, width in itertools.product(*values):
            yield models.named(family, depth, width, f"search.space.{STUDENT}.{family}")


def architectures(searched: Space) -> dict[str, Point]:
    """The dimensions of each student in a space, by its name."""
    network = {name: dim for name, dim in searched.items() if FAMILY in (name, *dim.when)}
    return {name: point for point in space.points(network) or () if (name := student_of(point)) is not None}


def student_of(point: Point) -> str | None:
    """The student that a point names; None where the student is not searched."""
    if FAMILY not in point:
        return None
    family = point[FAMILY]
    return models.named(family, point.get(f"{family}.depth"), point.get(f"{family}.width"), STUDENT)


def placed(point: Point, recipe: Mapping[str, Any], ref: MethodRef) -> tuple[dict[str, Any], MethodRef]:
    """Recipe and method with the values of a point."""
    own, values = dict(recipe), {}
    for name, value in point.items():
        head, _, tail = name.partition(".")
        if head == TRAIN:
            own[tail] = value
        elif name != FAMILY and head != point.get(FAMILY):
            values[name] = value
    return own, methods.with_values(ref, values)


def starts(spec: Spec, trial: TrialConfig, searched: Space) -> list[Point]:
    """The points that are tried first: those of the spec, else `own_point` if it is one.

    ConfigError for a point that is none of the space.
    """
    assert spec.search is not None
    given = spec.search.start.get(trial.method.name)
    if given is None:
        point = own_point(trial, searched)
        return [] if space.misfit(searched, point) else [space.spelled(searched, point)]
    found = []
    for i, entry in enumerate(given):
        point = flat(entry)
        if (reason := space.misfit(searched, point)) is not None:
            raise ConfigError(f"search.start.{trial.method.name}[{i}] must be a point of the space, but {reason}.")
        found.append(space.spelled(searched, point))
    return found


def own_point(trial: TrialConfig, searched: Space) -> Point:
    """What a cell's trial has without a search; it may be no point of the space."""
    recipe = trial.train.model_dump(mode="json")
    values = methods.defaults(trial.method) | {f"{TRAIN}.{key}": value for key, value in recipe.items()}
    point: Point = {}
    for name, dim in searched.items():
        if name in values and space.exists(dim, point):
            point[name] = values[name]
    return point


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Values by flat name, from tables of parts, of `train` and of families."""
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= {f"{name}.{key}": own for key, own in value.items()} if isinstance(value, Mapping) else {name: value}
    return found


def without(trial: TrialConfig, searched: Space) -> TrialConfig:
    """The trial with the defaults of all that is searched; a searched student stays `*`."""
    recipe = {name.partition(".")[2] for name in searched if name.startswith(f"{TRAIN}.")}
    plain = methods.defaults(MethodRef(name=trial.method.name))
    own = {name: plain[name] for name in searched if name in plain}
    train = trial.train.model_copy(update={name: Recipe.model_fields[name].default for name in recipe})
    return trial.model_copy(update={"train": train, "method": methods.with_values(trial.method, own)})


def examples(searched: Space, first: list[Point]) -> Iterator[Point]:
    """Points that together have every choice of a space, and every student. The first is a starting point, if any."""
    yield from first
    base = first[0] if first else {}
    for network in architectures(searched).values():
        yield _completed(searched, {**base, **network})
    for name, dim in searched.items():
        for value in dim.choices or () if FAMILY not in (name, *dim.when) else ():
            yield _completed(searched, {**base, name: value})


def _completed(searched: Space, given: Point) -> Point:
    """A point with the values given; of the rest it has the first choices and the lower ends."""
    point: Point = {}
    for name, dim in searched.items():
        if space.exists(dim, point):
            value = given.get(name)
            first = dim.values[0] if dim.values is not None else dim.low
            point[name] = value if value is not None and dim.holds(value) else first
    return point


def own_teachers(ref: MethodRef) -> bool:
    """Whether the teachers of a method depend on its parameters or its student: each point may need others."""
    return methods.self_taught(ref) or bool(methods.assistants(ref))
