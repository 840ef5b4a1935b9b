"""What several families share: the passage through stages that end in a ReLU, and an initialisation."""

import math
from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.outputs import Outputs


def through_stages(stem: Tensor, stages: Iterable[Callable[[Tensor], Tensor]], head: nn.Module) -> Outputs:
    """The outputs of a network whose stages end in a ReLU and whose pooled features are the mean of the last map.

    Each of `stages` takes the map before it and gives its own before that ReLU. stem: [B, C0, H0, W0].
    """
    f, maps, preacts = stem, [], []
    for stage in stages:
        preact = stage(f)
        f = F.relu(preact)
        maps.append(f)
        preacts.append(preact)
    pooled = F.adaptive_avg_pool2d(f, 1).flatten(1)
    return Outputs(head(pooled), pooled, stem, tuple(maps), tuple(preacts))


def fan_out_normal_(model: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / (k^2 C_out)), as in RepDistiller."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
