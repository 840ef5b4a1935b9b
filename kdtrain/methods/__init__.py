"""The methods by name. `a+b` names two together; where b is a plug-in with the host a, it changes a's terms."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdtrain.config import ConfigError, MethodRef, parse, unknown
from kdtrain.methods.ab import AB
from kdtrain.methods.at import AT
from kdtrain.methods.base import MAPS, Method, Part, Plugin, Range, Setting, trains_teacher
from kdtrain.methods.cc import CC
from kdtrain.methods.cid import CID
from kdtrain.methods.composed import Composed
from kdtrain.methods.crd import CRD
from kdtrain.methods.cs_kd import ClasswiseKD
from kdtrain.methods.cskd import CSKD
from kdtrain.methods.dgkd import DGKD
from kdtrain.methods.dist import DIST
from kdtrain.methods.dkd import DKD
from kdtrain.methods.fitnet import FitNet
from kdtrain.methods.fsp import FSP
from kdtrain.methods.ft import FT
from kdtrain.methods.ipwd import IPWD, IPWDPlugin
from kdtrain.methods.kd import KD
from kdtrain.methods.ls import LS
from kdtrain.methods.lskd import LSKD, LSKDPlugin
from kdtrain.methods.nkd import NKD
from kdtrain.methods.nst import NST
from kdtrain.methods.ofd import OFD
from kdtrain.methods.pkt import PKT
from kdtrain.methods.ps_kd import PSKD
from kdtrain.methods.reviewkd import ReviewKD
from kdtrain.methods.rkd import RKD
from kdtrain.methods.sp import SP
from kdtrain.methods.srrl import SRRL
from kdtrain.methods.sskd import SSKD
from kdtrain.methods.tf_kd import TFKD
from kdtrain.methods.vanilla import Vanilla
from kdtrain.methods.vid import VID
from kdtrain.methods.wsld import WSLD
from kdtrain.models.outputs import Outputs

METHODS: dict[str, type[Method]] = {
    "vanilla": Vanilla,
    "ls": LS,
    "kd": KD,
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "cc": CC,
    "vid": VID,
    "rkd": RKD,
    "pkt": PKT,
    "ab": AB,
    "ft": FT,
    "fsp": FSP,
    "nst": NST,
    "crd": CRD,
    "srrl": SRRL,
    "cskd": CSKD,
    "ofd": OFD,
    "sskd": SSKD,
    "wsld": WSLD,
    "dgkd": DGKD,
    "cs_kd": ClasswiseKD,
    "tf_kd": TFKD,
    "ps_kd": PSKD,
    "dkd": DKD,
    "reviewkd": ReviewKD,
    "dist": DIST,
    "nkd": NKD,
    "lskd": LSKD,
    "cid": CID,
    "ipwd": IPWD,
}
PLUGINS: dict[str, type[Plugin]] = {
    "lskd": LSKDPlugin,
    "ipwd": IPWDPlugin,
}


CE_WEIGHT = "gamma"  # the parameter of all methods that weights the cross-entropy
T = TypeVar("T")


def classes(ref: MethodRef, path: str = "method") -> dict[str, type[Part]]:
    """The class of each part of a method; ConfigError for an unknown name, and for one that is named twice."""
    host, *others = names = ref.name.split("+")
    for name in names:
        if name not in METHODS:
            raise ConfigError(unknown("method", name, METHODS, path))
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} must name each method once, but got {ref.name!r}.")
    plugins = [name for name in others if name in PLUGINS and host in PLUGINS[name].hosts]
    if len(plugins) > 1:
        raise ConfigError(f"{path} must have one plug-in of {host} at most, but got {' and '.join(plugins)}.")
    return {name: PLUGINS[name] if name in plugins else METHODS[name] for name in names}


def resolve(ref: MethodRef, path: str = "method") -> dict[str, BaseModel]:
    """The full Config of each part of a method; ConfigError for an unknown name or a wrong parameter."""
    parts = classes(ref, path)
    if len(parts) == 1:
        return {ref.name: parse(METHODS[ref.name].Config, ref.params, ref.name)}
    for key, value in ref.params.items():
        if key not in parts:
            raise ConfigError(unknown("part", key, parts, ref.name))
        if not isinstance(value, Mapping):
            raise ConfigError(f"{ref.name}: {key} must be a table of that method's parameters, but got {value!r}.")
        if CE_WEIGHT in value and key != next(iter(parts)):
            raise ConfigError(
                f"{key}.{CE_WEIGHT} has no effect in {ref.name}, whose cross-entropy is the first method's, "
                f"but got {value[CE_WEIGHT]!r}."
            )
    return {
        name: parse(part.Config, {**_defaults(name, parts), **ref.params.get(name, {})}, name)
        for name, part in parts.items()
    }


def _defaults(name: str, parts: Mapping[str, type[Part]]) -> Mapping[str, Any]:
    """The defaults of a part that differ in this company."""
    host, part = next(iter(parts)), parts[name]
    if issubclass(part, Plugin):
        return part.hosts[host][1]
    if name == host:
        plugins = (other for other in parts.values() if issubclass(other, Plugin))
        return next((plugin.hosts[host][0] for plugin in plugins), {})
    assert issubclass(part, Method)
    return part.composed


def params(ref: MethodRef) -> dict[str, Any]:
    """The full parameters of a method as plain data: {name: value}, for `a+b` {part: {name: value}}.

    Parameters that are None are left out, so that one added later with the default None changes no id; so is the
    weight of the cross-entropy of all but the first.
    """
    dumps = {name: config.model_dump(mode="json", exclude_none=True) for name, config in resolve(ref).items()}
    for name in list(dumps)[1:]:
        dumps[name].pop(CE_WEIGHT, None)
    return dumps.get(ref.name, dumps)


def search_space(ref: MethodRef) -> dict[str, Range | tuple[Any, ...]]:
    """What a search tries by default, by flat name: `alpha`, for `a+b` that of all parts, `b.alpha`."""
    return _flat({name: part.search_space for name, part in classes(ref).items()})


def defaults(ref: MethodRef) -> dict[str, Any]:
    """All parameters as plain data by flat name, as they are where a search does not set them; None: not set."""
    return _flat({name: config.model_dump(mode="json") for name, config in resolve(ref).items()})


def with_values(ref: MethodRef, values: Mapping[str, Any]) -> MethodRef:
    """The method with these values, by flat name, and its other parameters; ConfigError for an unknown name."""
    params = dict(ref.params)
    for name, value in values.items():
        _field(ref, name)
        part, _, key = name.rpartition(".")
        params |= {part: {**params.get(part, {}), key: value}} if part else {key: value}
    return MethodRef(name=ref.name, params=params)


def whole(ref: MethodRef, name: str) -> bool:
    """Whether a parameter, by flat name, takes whole numbers only; ConfigError for an unknown name."""
    return _field(ref, name).annotation in (int, int | None)


def _field(ref: MethodRef, name: str) -> FieldInfo:
    """A parameter by flat name."""
    fields = _flat({part: cls.Config.model_fields for part, cls in classes(ref).items()})
    if name not in fields:
        raise ConfigError(unknown("parameter", name, fields, ref.name))
    return fields[name]


def _flat(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """By flat name; the weight of the cross-entropy, which has no effect in a later part, is the first's alone."""
    first = next(iter(parts))
    if len(parts) == 1:
        return dict(parts[first])
    pairs = ((part, key, value) for part, values in parts.items() for key, value in values.items())
    return {f"{part}.{key}": value for part, key, value in pairs if key != CE_WEIGHT or part == first}


def version(ref: MethodRef) -> str:
    """The version of a method, of each part for `a+b`."""
    return "+".join(str(part.version) for part in classes(ref).values())


def needs(ref: MethodRef) -> frozenset[str]:
    """The teacher outputs that a method looks at; empty if it needs no teacher."""
    return frozenset().union(*(part.needs_with(config) for part, config in _methods(ref)))


def digested(names: Iterable[str], teacher: Outputs) -> Outputs:
    """The outputs of a teacher with the digests of these names, made of its maps."""
    return teacher._replace(digests={name: METHODS[name.partition(":")[0]].digest(name, teacher) for name in names})


def maps(ref: MethodRef) -> frozenset[str]:
    """The maps of the student that a method looks at: "stages", "preact"."""
    return frozenset().union(*(part.maps(config) for part, config in _methods(ref)))


def assistants(ref: MethodRef) -> tuple[str, ...]:
    """The architectures of the assistant teachers of a method, the first the teacher's own pupil."""
    return tuple(dict.fromkeys(model for part, config in _methods(ref) for model in part.assistants(config)))


def for_assistant(ref: MethodRef, model: str) -> MethodRef:
    """The method by which an assistant is trained: `ref` with the assistants before that one."""
    configs, params = resolve(ref), dict(ref.params)
    for name, part in classes(ref).items():
        models = part.assistants(configs[name]) if issubclass(part, Method) else ()
        if issubclass(part, Method) and model in models:
            own = part.assistant_params(configs[name], models.index(model))
            params |= own if name == ref.name else {name: {**params.get(name, {}), **own}}
    return MethodRef(name=ref.name, params=params)


def blind_epochs(ref: MethodRef, epochs: int) -> int:
    """How many of the recipe's first epochs end with predictions that say nothing yet: no search may judge by them.

    For `a+b` they are the first method's. It alone predicts and has a cross-entropy: whether a later part, on its own,
    would begin without one does not matter, and no later part trains the first's classifier in its stead.
    """
    part, config = _methods(ref)[0]
    return part.blind_epochs(config, epochs)


def self_taught(ref: MethodRef) -> bool:
    """Whether a method's teacher is a trained network of the student's own architecture."""
    return any(part.self_taught(config) for part, config in _methods(ref))


def partners(ref: MethodRef) -> bool:
    """Whether the student sees another image of each label, too."""
    return any(part.partners for part, _ in _methods(ref))


def min_batch(ref: MethodRef) -> int:
    """The least number of images in a batch that the method makes sense with."""
    return max(part.min_batch for part in classes(ref).values())


def rotated(ref: MethodRef) -> bool:
    """Whether batches hold each image turned by 0, 90, 180 and 270 degrees."""
    return any(part.rotated for part in classes(ref).values())


def cacheable(ref: MethodRef) -> bool:
    """Whether all that a method looks at of its teacher is a few numbers an image that no step changes."""
    return why_live(ref) is None


def why_live(ref: MethodRef) -> str | None:
    """Why a method must ask its teacher in every step, in a few words; None if it need not."""
    if any(trains_teacher(config) for config in resolve(ref).values()):
        return "the teacher is in train mode"
    if rotated(ref):
        return "images are turned"
    return "it looks at whole maps" if needs(ref) & MAPS else None


def nesterov(ref: MethodRef) -> bool:
    """Whether the method's authors used Nesterov momentum; for `a+b` those of the first."""
    return METHODS[ref.name.split("+")[0]].nesterov


def build(ref: MethodRef, setting: Setting) -> Method:
    """The method with its modules, for these networks. ConfigError if it cannot work with them."""
    configs = resolve(ref)
    parts = {name: part(configs[name], setting) for name, part in classes(ref).items()}
    if len(parts) > 1:
        return Composed(parts, setting)
    alone = parts[ref.name]
    assert isinstance(alone, Method)
    return alone


def _methods(ref: MethodRef) -> list[tuple[type[Method], BaseModel]]:
    """The parts that are methods, with their Configs."""
    configs = resolve(ref)
    return [(part, configs[name]) for name, part in classes(ref).items() if issubclass(part, Method)]
