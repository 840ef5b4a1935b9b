"""CIFAR ResNets of bottlenecks (He et al., CVPR 2016), for 32 x 32 images: `resnet50_cifar`, `101`, `152`.

`resnet50_cifar_w{k}` has k times the channels everywhere. The depths differ in their blocks and in the start of their
convolutions, which their sources chose differently: `resnet50_cifar` is RepDistiller's ResNet50 and starts from
kaiming_normal (fan_out), and so does `resnet152_cifar`; `resnet101_cifar` is PS-KD's ResNet-101, which its README calls
pre-activation though it is not, and starts from torch's default.
Sources: https://github.com/HobbitLong/RepDistiller/blob/master/models/resnetv2.py,
https://github.com/lgcnsai/PS-KD-Pytorch/blob/main/models/preact_resnet.py. The latter pools 4 x 4 windows; here the
pooling is global, which is the same at 32 x 32 and lets other image sizes work.
"""

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import through_stages
from kdtrain.models.family import Family
from kdtrain.models.naming import WIDTH, broken_width, ending, misspelt, required, width_of
from kdtrain.models.outputs import Model, Outputs

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
TORCH_START = {101}  # depths whose convolutions keep torch's default; the others have kaiming_normal


class Bottleneck(nn.Module):
    """relu(bn(conv(relu(bn(conv(relu(bn(conv(x)))))))) + shortcut(x)), convolutions of 1 x 1, 3 x 3 and 1 x 1.

    The second has the stride, the third four times the planes of the others.
    """

    def __init__(self, c_in: int, planes: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * planes
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, 4 planes, H/stride, W/stride], not negative."""
        return F.relu(self.preact(x))

    def preact(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        total: Tensor = self.bn3(self.conv3(out)) + self.shortcut(x)
        return total


class BottleneckResNet(Model):
    """A stem of 3 x 3 without max-pooling and four stages of `blocks` bottlenecks. All features are >= 0.

    `planes`: channels of the stem and of the 3 x 3 convolutions of the first stage; each next stage has twice as many.
    `kaiming`: whether the convolutions start from kaiming_normal (fan_out), else from torch's default.
    """

    def __init__(
        self, blocks: tuple[int, ...], planes: int, num_classes: int, in_channels: int, *, kaiming: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.layer1 = _stage(blocks[0], planes, planes, stride=1)
        self.layer2 = _stage(blocks[1], 4 * planes, 2 * planes, stride=2)
        self.layer3 = _stage(blocks[2], 8 * planes, 4 * planes, stride=2)
        self.layer4 = _stage(blocks[3], 16 * planes, 8 * planes, stride=2)
        self.linear = nn.Linear(32 * planes, num_classes)
        for module in self.modules():
            if kaiming and isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H, H/2, H/4 and H/8 rows, rounded up."""
        stem = F.relu(self.bn1(self.conv1(x)))
        layers = (self.layer1, self.layer2, self.layer3, self.layer4)
        return through_stages(stem, [partial(_preact, layer) for layer in layers], self.linear)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.linear

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage."""
        return (self.conv1, self.bn1), (self.layer1,), (self.layer2,), (self.layer3,), (self.layer4,)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The third BatchNorm of each stage's last block; the shortcut is added to it."""
        return tuple(_last(layer).bn3 for layer in (self.layer1, self.layer2, self.layer3, self.layer4))


def _stage(n: int, c_in: int, planes: int, stride: int) -> nn.Sequential:
    first = Bottleneck(c_in, planes, stride)
    return nn.Sequential(first, *(Bottleneck(4 * planes, planes, 1) for _ in range(n - 1)))


def _preact(stage: nn.Sequential, x: Tensor) -> Tensor:
    """A stage before its last ReLU."""
    return _last(stage).preact(stage[:-1](x))


def _last(stage: nn.Sequential) -> Bottleneck:
    block = stage[-1]
    assert isinstance(block, Bottleneck)
    return block


def _broken(match: re.Match[str]) -> str | None:
    return broken_width(match, 64) or misspelt(match, _name(int(match["depth"]), width_of(match)))


def _name(depth: int | None, width: float | None) -> str:
    return f"resnet{required('depth', depth)}_cifar{ending(width)}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> BottleneckResNet:
    depth, planes = int(match["depth"]), int(64 * width_of(match))
    return BottleneckResNet(BLOCKS[depth], planes, num_classes, in_channels, kaiming=depth not in TORCH_START)


FAMILY = Family(
    form="resnet<50, 101 or 152>_cifar, resnet50_cifar_w<width>",
    pattern=re.compile(rf"resnet(?P<depth>50|101|152)_cifar{WIDTH}"),
    broken=_broken,
    build=_build,
    examples=tuple(f"resnet{depth}_cifar" for depth in BLOCKS),
    name=_name,
)
