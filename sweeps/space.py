"""What a search varies: dimensions, spaces of them, and points in a space. Plain data; knows no sampler."""

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from kdtrain.config import ConfigError, Frozen, parse, unknown

KEYS = ("low", "high", "log", "step", "choices", "when")  # of a dimension in a spec
Point = dict[str, Any]  # a value for each dimension whose condition holds
DIGITS = 4  # significant digits of a value drawn from a range: enough for any weight, and short in a spec
MOST = 10_000  # values of a dimension that can be counted


class Dimension(Frozen):
    """A range from `low` to `high`, or a list of choices; numbers in ascending order are ordered choices.

    `when` names other dimensions with the value, or the list of values, that they must have for this one to exist.
    """

    model_config = ConfigDict(populate_by_name=True)

    low: float | None = None
    high: float | None = None
    log: bool = False  # uniform in the logarithm
    step: float | None = Field(None, gt=0)
    whole: bool = Field(False, alias="int")  # integers only
    choices: tuple[Any, ...] | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.choices is None:
            self._check_range()
            return self
        if not self.choices or any(_same(a, b) for a, b in itertools.combinations(self.choices, 2)):
            raise ValueError("must have choices, each once")
        if {self.low, self.high, self.step} != {None} or self.log or self.whole:
            raise ValueError("must have low and high, or choices, not both")
        return self

    def _check_range(self) -> None:
        if self.low is None or self.high is None:
            raise ValueError("must have low and high, or choices")
        if self.low >= self.high:
            raise ValueError("must have low < high")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError("must have a step that fits between low and high")
        if self.log and self.low <= 0:
            raise ValueError("must have low > 0 where log = true")
        if self.log and self.step is not None:
            raise ValueError("must not have both log and step")
        if self.whole and not all(float(value).is_integer() for value in (self.low, self.high, self.step or 1)):
            raise ValueError("must have whole numbers, as the parameter is one")
        if (self.whole or self.step is not None) and (self.high - self.low) / (self.step or 1) >= MOST:
            raise ValueError(f"must have at most {MOST:,} values")

    @property
    def ordered(self) -> bool:
        """Whether one value can lie between two others."""
        choices = self.choices
        if choices is None:
            return True
        numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)
        return numbers and list(choices) == sorted(choices)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values; None if there is no end of them."""
        if self.choices is not None:
            return self.choices
        if self.step is None and not self.whole:
            return None
        step = self.step or 1
        assert self.low is not None
        assert self.high is not None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(self.cast(self.low + i * step) for i in range(count))

    def cast(self, value: float, digits: int = DIGITS) -> float | int:
        """A number of this range with so many significant digits, more where the range is narrow."""
        if self.whole:
            return round(value)
        assert self.low is not None
        assert self.high is not None
        if self.step is not None:
            rounded = float(f"{value:.12g}")
        else:
            scale = min(abs(value), self.high - self.low) or 1.0
            rounded = round(value, digits - 1 - math.floor(math.log10(scale)))
        return min(max(rounded, self.low), self.high)  # rounding may step over a limit

    def holds(self, value: Any) -> bool:
        """Whether a value is one of this dimension's."""
        values = self.values
        if values is not None:
            return any(_same(value, other) for other in values)
        assert self.low is not None
        assert self.high is not None
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def spelled(self, value: Any) -> Any:
        """One of this dimension's values as it is written here: 4 for 4.0 where the choices are 1, 2 and 4."""
        if self.choices is not None:
            return next(choice for choice in self.choices if _same(choice, value))
        return round(value) if self.whole else float(value)

    @property
    def to_check(self) -> Sequence[Any]:
        """Values that a parameter must take to take all of them: all choices, or the ends of a range and one inside."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        values = self.values
        inside = self.low + 0.381966 * (self.high - self.low) if values is None else values[len(values) // 2]
        return tuple(dict.fromkeys(map(self.spelled, (self.low, inside, self.high if values is None else values[-1]))))

    def plain(self) -> dict[str, Any]:
        """As plain data, without what is not said; `dimension` reads it."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _same(value: Any, other: Any) -> bool:
    """Whether two values are one and the same: 1 and 1.0 are, 1 and true are not."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


Space = dict[str, Dimension]  # in the order of drawing: a condition names dimensions before its own


def dimension(entry: Any, path: str, whole: bool = False) -> Dimension:
    """A dimension as a spec writes it: a list of choices, or a table. ConfigError names `path`.

    whole: whether the parameter is an integer.
    """
    table = {"choices": entry} if isinstance(entry, list) else entry
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path} must be a list of values or a table with low and high, but got {entry!r}.")
    if odd := [key for key in table if key not in (*KEYS, "int")]:
        raise ConfigError(unknown("key", odd[0], KEYS, f"{path}.{odd[0]}"))
    found = {**table, "int": True} if whole and "choices" not in table else table
    return parse(Dimension, found, path)


def check_conditions(space: Space, path: str) -> None:
    """Raise ConfigError unless each condition names a dimension before its own, and values that it can have."""
    before: Space = {}
    for name, dim in space.items():
        for other, wanted in dim.when.items():
            if other not in before:
                raise ConfigError(
                    f"{path}.{name}.when must name a dimension above it, but got {other!r}. "
                    f"Known: {', '.join(before) or 'none'}."
                )
            values = wanted if isinstance(wanted, list) else [wanted]
            if bad := [value for value in values if not before[other].holds(value)]:
                raise ConfigError(f"{path}.{name}.when must name values of {other}, but got {bad[0]!r}.")
        before[name] = dim


def exists(dim: Dimension, point: Mapping[str, Any]) -> bool:
    """Whether a dimension's condition holds in a point."""
    return all(
        name in point and point[name] in (wanted if isinstance(wanted, list) else [wanted])
        for name, wanted in dim.when.items()
    )


def misfit(space: Space, point: Mapping[str, Any]) -> str | None:
    """Why a point is none of this space; None if it is one."""
    for name, dim in space.items():
        if not exists(dim, point):
            if name in point:
                return f"{name} does not exist there"
        elif name not in point:
            return f"{name} is missing"
        elif not dim.holds(point[name]):
            return f"{name} = {point[name]!r} lies outside of {told(dim)}"
    extra = [name for name in point if name not in space]
    return f"{extra[0]} is not searched" if extra else None


def spelled(space: Space, point: Mapping[str, Any]) -> Point:
    """A point of the space as the space would write it: equal points give equal JSON."""
    return {name: dim.spelled(point[name]) for name, dim in space.items() if name in point}


def points(space: Space) -> Iterator[Point] | None:
    """All points in order, the last dimension fastest; None if there is no end of them."""
    if any(dim.values is None for dim in space.values()):
        return None
    return _points(list(space.items()), {})


def _points(dims: list[tuple[str, Dimension]], point: Point) -> Iterator[Point]:
    if not dims:
        yield point
        return
    (name, dim), rest = dims[0], dims[1:]
    if not exists(dim, point):
        yield from _points(rest, point)
        return
    for value in dim.values or ():
        yield from _points(rest, {**point, name: value})


def draw(space: Space, rng: random.Random, digits: int = DIGITS) -> Point:
    """A point at random: each dimension by itself, uniformly, or in the logarithm. `digits`: as of `cast`."""
    point: Point = {}
    for name, dim in space.items():
        if not exists(dim, point):
            continue
        if dim.values is not None:
            point[name] = rng.choice(dim.values)
            continue
        assert dim.low is not None
        assert dim.high is not None
        if dim.log:
            point[name] = dim.cast(math.exp(rng.uniform(math.log(dim.low), math.log(dim.high))), digits)
        else:
            point[name] = dim.cast(rng.uniform(dim.low, dim.high), digits)
    return point


def has_more_than(space: Space, n: int) -> bool:
    """Whether a space has more than n points."""
    every = points(space)
    return every is None or len(list(itertools.islice(every, n + 1))) > n


def told(dim: Dimension) -> str:
    """A dimension in a few words."""
    when = f" when {', '.join(f'{name} = {value}' for name, value in dim.when.items())}" if dim.when else ""
    if dim.choices is not None:
        return f"[{', '.join(map(str, dim.choices))}]{when}"
    step = "" if dim.step is None else f" in steps of {dim.step:g}"
    return f"{dim.low:g}..{dim.high:g}{' int' if dim.whole else ''}{' log' if dim.log else ''}{step}{when}"


def plain(space: Space) -> dict[str, Any]:
    """A space as plain data."""
    return {name: dim.plain() for name, dim in space.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two spaces, given as plain data: one text a dimension."""

    def shown(table: Mapping[str, Any], name: str) -> str:
        return told(Dimension.model_validate_json(json.dumps(table[name]))) if name in table else "not searched"

    names: Iterable[str] = dict.fromkeys([*old, *new])
    return [f"{name} {shown(old, name)} -> {shown(new, name)}" for name in names if old.get(name) != new.get(name)]
