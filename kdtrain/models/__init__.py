"""The architectures: a new family is one file and one line of MODELS."""

import re

from kdtrain.config import ConfigError, unknown
from kdtrain.models import resnet, vgg, wrn
from kdtrain.models.family import Family
from kdtrain.models.outputs import Model

MODELS: dict[str, Family] = {
    "resnet": resnet.FAMILY,
    "vgg": vgg.FAMILY,
    "wrn": wrn.FAMILY,
}


def check(name: str, where: str) -> None:
    """Raise ConfigError unless `name` can be built; `where` is its key path."""
    _find(name, where)


def build(name: str, num_classes: int, in_channels: int = 3) -> Model:
    """The network `name` with fresh weights from torch's global generator; ConfigError if there is none."""
    family, match = _find(name, "model")
    return family.build(match, num_classes, in_channels)


def _find(name: str, where: str) -> tuple[Family, re.Match[str]]:
    for family in MODELS.values():
        match = family.pattern.fullmatch(name)
        if match:
            rule = family.broken(match)
            if rule:
                raise ConfigError(f"{rule}, but got {name} at {where}.")
            return family, match
    known = (example for family in MODELS.values() for example in family.examples)
    forms = ", ".join(family.form for family in MODELS.values())
    raise ConfigError(f"{unknown('model', name, known, where)} In general: {forms}.")
