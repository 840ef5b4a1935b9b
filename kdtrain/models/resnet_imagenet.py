"""ResNets for ImageNet (He et al., CVPR 2016, table 1), made of torchvision's modules: its keys, structure and init.

Source: https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py. In `resnet50` the 3 x 3 convolution of
a bottleneck has the stride, not the first 1 x 1 as in the paper.
"""

import re
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import through_stages
from kdtrain.models.family import Family
from kdtrain.models.naming import required, superfluous
from kdtrain.models.outputs import Model, Outputs

CONVOLUTIONS = {18: 2, 34: 2, 50: 3}  # depth: convolutions of a block


class ImageNetResNet(Model):
    """Four stages of basic blocks or, for depth 50, bottlenecks. All features are >= 0.

    The stem is what the first stage gets, after the max-pooling. `preact` are the sums before the last ReLU of the
    stages.
    """

    multiple: ClassVar[int] = 32
    least: ClassVar[int] = 64
    hint: ClassVar[str] = " For small images there are resnet18_cifar, resnet34_cifar and resnet50_cifar."

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        from torchvision import models  # takes more than a second, which only these networks need

        super().__init__()
        net = getattr(models, f"resnet{depth}")(weights=None, num_classes=num_classes)
        if in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.depth = depth
        self.conv1: nn.Conv2d = net.conv1
        self.bn1: nn.BatchNorm2d = net.bn1
        self.maxpool: nn.MaxPool2d = net.maxpool
        self.layer1: nn.Sequential = net.layer1
        self.layer2: nn.Sequential = net.layer2
        self.layer3: nn.Sequential = net.layer3
        self.layer4: nn.Sequential = net.layer4
        self.fc: nn.Linear = net.fc

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; stem and first stage have H/4 rows, the others H/8, H/16 and H/32."""
        stem = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return through_stages(stem, [partial(self._preact, layer) for layer in self._layers], self.fc)

    def _preact(self, layer: nn.Sequential, x: Tensor) -> Tensor:
        """A stage before its last ReLU."""
        block: Any = layer[-1]
        x = layer[:-1](x)
        out: Tensor = block.bn1(block.conv1(x))
        for i in range(2, CONVOLUTIONS[self.depth] + 1):
            out = getattr(block, f"bn{i}")(getattr(block, f"conv{i}")(F.relu(out)))
        shortcut: Tensor = x if block.downsample is None else block.downsample(x)
        return out + shortcut

    @property
    def _layers(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.fc

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage."""
        return (self.conv1, self.bn1), *((layer,) for layer in self._layers)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The last BatchNorm of each stage's last block; the shortcut is added to it."""
        return tuple(getattr(layer[-1], f"bn{CONVOLUTIONS[self.depth]}") for layer in self._layers)


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> ImageNetResNet:
    return ImageNetResNet(int(match["depth"]), num_classes, in_channels)


def _name(depth: int | None, width: float | None) -> str:
    superfluous("width", width)
    return f"resnet{required('depth', depth)}"


FAMILY = Family(
    form="resnet18, resnet34, resnet50 for ImageNet",
    pattern=re.compile(r"resnet(?P<depth>18|34|50)"),
    broken=lambda _: None,
    build=_build,
    examples=("resnet18", "resnet34", "resnet50"),
    name=_name,
)
