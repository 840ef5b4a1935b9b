"""The architectures: a new family is one file and one line of MODELS."""

import re

from kdtrain.config import ConfigError, unknown
from kdtrain.models import (
    bottleneck_cifar,
    densenet_cifar,
    mobilenet_v1,
    mobilenet_v2,
    preact_resnet_cifar,
    resnet,
    resnet_imagenet,
    resnext_cifar,
    shufflenet_v1,
    shufflenet_v2,
    torchvision,
    vgg,
    wrn,
)
from kdtrain.models.family import Family
from kdtrain.models.outputs import Model

MODELS: dict[str, Family] = {
    "resnet_imagenet": resnet_imagenet.FAMILY,
    "resnet": resnet.FAMILY,
    "vgg": vgg.FAMILY,
    "wrn": wrn.FAMILY,
    "bottleneck_cifar": bottleneck_cifar.FAMILY,
    "preact_resnet_cifar": preact_resnet_cifar.FAMILY,
    "densenet_cifar": densenet_cifar.FAMILY,
    "resnext_cifar": resnext_cifar.FAMILY,
    "mobilenet_v1": mobilenet_v1.FAMILY,
    "mobilenet_v2": mobilenet_v2.FAMILY,
    "shufflenet_v1": shufflenet_v1.FAMILY,
    "shufflenet_v2": shufflenet_v2.FAMILY,
    "torchvision": torchvision.FAMILY,
}


def check(name: str, where: str) -> None:
    """Raise ConfigError unless `name` can be built; `where` is its key path."""
    _find(name, where)


def build(name: str, num_classes: int, in_channels: int = 3) -> Model:
    """The network `name` with fresh weights from torch's global generator; ConfigError if there is none."""
    family, match = _find(name, "model")
    return family.build(match, num_classes, in_channels)


def named(family: str, depth: int | None, width: float | None, where: str) -> str:
    """The name of a family's network of this depth and width; ConfigError if it has none, with the key path `where`.

    None leaves one out: a family may have no depth or no width, and a name without a width has the family's own. That
    is 1 but for `mobilenet_v2`, half the paper's. A `wrn` must have one.
    """
    sized = [key for key, each in MODELS.items() if each.name is not None]
    if family not in MODELS:
        raise ConfigError(unknown("family", family, sized, where))
    found = MODELS[family]
    if found.name is None:
        raise ConfigError(
            f"a family must have names for a depth or a width, as {', '.join(sized)} have, but got {family} at {where}."
        )
    given = {"depth": depth, "width": width}
    asked = " and ".join(f"{key} {value}" for key, value in given.items() if value is not None) or "neither"
    try:
        name = found.name(depth, width)
    except ValueError as rule:
        raise ConfigError(f"{rule} for the family {family}, but got {asked} at {where}.") from None
    check(name, where)
    if not found.pattern.fullmatch(name):  # resnet50 is ImageNet's
        raise ConfigError(f"{name} is a network of another family than {family}, but got {asked} at {where}.")
    return name


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
