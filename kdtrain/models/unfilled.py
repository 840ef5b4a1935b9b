"""Networks without weights, on the meta device: what plans and costs are made of."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from kdtrain import models
from kdtrain.config import ConfigError
from kdtrain.models.outputs import Model, Outputs

# What keeps a tensor's shape, and would be computed by slow Python code on the meta device.
_SHAPELESS = {
    F.batch_norm, F.relu, torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_,
}  # fmt: skip


class _ShapesOnly(TorchFunctionMode):
    """Leaves out what changes no shape: a network is built and run in less than half the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func in _SHAPELESS else func(*args, **(kwargs or {}))


@lru_cache(maxsize=256)
def unfilled(name: str, num_classes: int, in_channels: int = 3) -> Model:
    """The network `name` without weights, in eval mode; one for all callers. ConfigError if there is none."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]), _ShapesOnly():
        return models.build(name, num_classes, in_channels).eval()


@lru_cache(maxsize=256)
def shapes(name: str, num_classes: int, image_size: int, in_channels: int = 3) -> Outputs:
    """What the network gives for one image, on the meta device: read only the shapes.

    ConfigError if there is no such network or if it cannot work with images of this size.
    """
    model = unfilled(name, num_classes, in_channels)
    image = torch.empty(1, in_channels, image_size, image_size, device="meta")
    try:
        with torch.no_grad(), _ShapesOnly():
            outputs: Outputs = model(image)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    return outputs
