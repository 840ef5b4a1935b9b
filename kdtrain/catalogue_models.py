"""All architectures with what they cost: for `kd-train models`."""

import torch

from kdtrain.config import ConfigError
from kdtrain.models import MODELS
from kdtrain.models.cost import cost, latency, parameters


def listing(num_classes: int, image_size: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of the architectures that papers use; `-` where images of this size do not fit.

    The form of a family's names stands in its first row.
    """
    header = ["family", "name", "parameters", "multiply-adds"]
    rows = [
        ["" if i else family.form, name, *_costs(name, num_classes, image_size)]
        for family in MODELS.values()
        for i, name in enumerate(family.examples)
    ]
    return header, rows


def _costs(name: str, num_classes: int, image_size: int) -> tuple[str, str]:
    try:
        count = f"{cost(name, num_classes, image_size).multiply_adds:,}"
    except ConfigError:
        count = "-"
    return f"{parameters(name, num_classes):,}", count


def described(name: str, num_classes: int, image_size: int) -> list[str]:
    """Lines about one architecture, its speed on this machine among them; ConfigError as for `cost`."""
    its = cost(name, num_classes, image_size)
    time = latency(name, num_classes, image_size)
    shapes = its.shapes
    stages = ", ".join(map(_shape, shapes.stages))
    maps = f"stem {_shape(shapes.stem)}, stages {stages}" if shapes.stages else "no maps"
    threads = f"{time.threads} thread{'s' if time.threads > 1 else ''}"
    return [
        f"{name}: {num_classes} classes, images of {image_size} x {image_size}",
        f"parameters: {its.params:,}",
        f"multiply-adds: {its.multiply_adds:,} an image, in convolutions and matrix products",
        f"features: {maps}, pooled {_shape(shapes.pooled)}",
        f"time of an image: {time.median:.2f} ms [{time.low:.2f}, {time.high:.2f}] (median and quartiles of {time.n} "
        f"forward passes, fp32, this CPU, {threads})",
    ]


def _shape(feature: torch.Tensor) -> str:
    return " x ".join(map(str, feature.shape[1:]))
