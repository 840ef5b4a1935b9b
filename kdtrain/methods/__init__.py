"""The methods by name. `a+b` names two together."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from kdtrain.config import ConfigError, MethodRef, parse, unknown
from kdtrain.methods.base import Method, Setting
from kdtrain.methods.cid import CID
from kdtrain.methods.composed import Composed
from kdtrain.methods.fitnet import FitNet
from kdtrain.methods.ipwd import IPWD
from kdtrain.methods.kd import KD
from kdtrain.methods.sp import SP
from kdtrain.methods.vanilla import Vanilla

METHODS: dict[str, type[Method]] = {
    "vanilla": Vanilla,
    "kd": KD,
    "fitnet": FitNet,
    "sp": SP,
    "cid": CID,
    "ipwd": IPWD,
}


def resolve(ref: MethodRef, path: str = "method") -> dict[str, BaseModel]:
    """The full Config of each part of a method; ConfigError for an unknown name or a wrong parameter."""
    names = ref.name.split("+")
    for name in names:
        if name not in METHODS:
            raise ConfigError(unknown("method", name, METHODS, path))
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} must name each method once, but got {ref.name!r}.")
    if len(names) == 1:
        return {ref.name: parse(METHODS[ref.name].Config, ref.params, ref.name)}
    for key, value in ref.params.items():
        if key not in names:
            raise ConfigError(unknown("part", key, names, ref.name))
        if not isinstance(value, Mapping):
            raise ConfigError(f"{ref.name}: {key} must be a table of that method's parameters, but got {value!r}.")
    configs: dict[str, BaseModel] = {}
    for i, name in enumerate(names):
        defaults = METHODS[name].composed if i else {}
        configs[name] = parse(METHODS[name].Config, {**defaults, **ref.params.get(name, {})}, name)
    return configs


def params(ref: MethodRef) -> dict[str, Any]:
    """The full parameters of a method as plain data: {name: value}, for `a+b` {part: {name: value}}.

    Parameters that are None are left out, so that one added later with the default None changes no id.
    """
    dumps = {name: config.model_dump(mode="json", exclude_none=True) for name, config in resolve(ref).items()}
    return dumps.get(ref.name, dumps)


def version(ref: MethodRef) -> str:
    """The version of a method, of each part for `a+b`."""
    return "+".join(str(METHODS[name].version) for name in ref.name.split("+"))


def needs(ref: MethodRef) -> frozenset[str]:
    """The teacher outputs that a method looks at; empty if it needs no teacher."""
    return frozenset().union(*(METHODS[name].needs for name in ref.name.split("+")))


def nesterov(ref: MethodRef) -> bool:
    """Whether the method's authors used Nesterov momentum; for `a+b` those of the first."""
    return METHODS[ref.name.split("+")[0]].nesterov


def build(ref: MethodRef, setting: Setting) -> Method:
    """The method with its modules, for these networks. ConfigError if it cannot work with them."""
    parts = {name: METHODS[name](config, setting) for name, config in resolve(ref).items()}
    return Composed(parts, setting) if len(parts) > 1 else parts[ref.name]
