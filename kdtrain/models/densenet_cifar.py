"""CIFAR DenseNets (Huang et al., CVPR 2017) with the features and keys of PS-KD: `densenet121_cifar`, `169`, `201`.

Each layer adds 32 channels; `densenet121_cifar_k{growth}` adds another number, to which the channels everywhere are
proportional: width 0.5 is growth 16. All start from torch's default.
Source: https://github.com/lgcnsai/PS-KD-Pytorch/blob/main/models/densenet_cifar.py, which has depth 121. It pools
4 x 4 windows; here the pooling is global, which is the same at 32 x 32 and lets other image sizes work.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.family import Family
from kdtrain.models.naming import misspelt, required, whole
from kdtrain.models.outputs import Model, Outputs

BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
GROWTH = 32


class DenseLayer(nn.Module):
    """[conv3x3(relu(bn(conv1x1(relu(bn(x)))))), x]: the new channels come before the old ones."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, growth + c_in, H, W], of either sign."""
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat((new, x), 1)


class Transition(nn.Module):
    """2 x 2 averages of conv1x1(relu(bn(x))), with half the channels."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_in // 2, 1, bias=False)

    def forward(self, normed: Tensor) -> Tensor:
        """`normed`: bn(x), [B, c_in, H, W], which the network has made; returns [B, c_in/2, H/2, W/2]."""
        return F.avg_pool2d(self.conv(F.relu(normed)), 2)


class DenseNet(Model):
    """A stem of one 3 x 3 convolution and four dense blocks of `layers` layers, with transitions between them.

    The stem and the stages, which are the dense blocks, are of either sign; the pooled features are >= 0. `preact` are
    the stages after the BatchNorm that follows them, which is called once.
    """

    def __init__(self, layers: tuple[int, ...], growth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        stem = 2 * growth
        width1 = stem + layers[0] * growth
        width2 = width1 // 2 + layers[1] * growth
        width3 = width2 // 2 + layers[2] * growth
        width4 = width3 // 2 + layers[3] * growth
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.dense1 = _dense(layers[0], stem, growth)
        self.trans1 = Transition(width1)
        self.dense2 = _dense(layers[1], width1 // 2, growth)
        self.trans2 = Transition(width2)
        self.dense3 = _dense(layers[2], width2 // 2, growth)
        self.trans3 = Transition(width3)
        self.dense4 = _dense(layers[3], width3 // 2, growth)
        self.bn = nn.BatchNorm2d(width4)
        self.linear = nn.Linear(width4, num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H, H/2, H/4 and H/8 rows, rounded down."""
        stem = self.conv1(x)
        f1 = self.dense1(stem)
        preact1 = self.trans1.bn(f1)
        f2 = self.dense2(self.trans1(preact1))
        preact2 = self.trans2.bn(f2)
        f3 = self.dense3(self.trans2(preact2))
        preact3 = self.trans3.bn(f3)
        f4 = self.dense4(self.trans3(preact3))
        preact4 = self.bn(f4)
        pooled = F.adaptive_avg_pool2d(F.relu(preact4), 1).flatten(1)
        return Outputs(self.linear(pooled), pooled, stem, (f1, f2, f3, f4), (preact1, preact2, preact3, preact4))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.linear

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage and of the transition to it, without the last BatchNorm."""
        return (
            (self.conv1,),
            (self.dense1,),
            (self.trans1, self.dense2),
            (self.trans2, self.dense3),
            (self.trans3, self.dense4),
        )

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BatchNorm that follows each stage: that of the transition, at last that before the pooling."""
        return self.trans1.bn, self.trans2.bn, self.trans3.bn, self.bn


def _dense(n: int, c_in: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(c_in + i * growth, growth) for i in range(n)))


def _growth(match: re.Match[str]) -> int:
    return int(match["growth"] or GROWTH)


def _broken(match: re.Match[str]) -> str | None:
    growth = _growth(match)
    if growth < 1:
        return "growth must be at least 1"
    return misspelt(match, _name(int(match["depth"]), growth / GROWTH))


def _name(depth: int | None, width: float | None) -> str:
    """Width is the growth relative to the published one."""
    growth = GROWTH if width is None else whole(f"{GROWTH} times the width", GROWTH * width)
    bare = f"densenet{required('depth', depth)}_cifar"
    return bare if growth == GROWTH else f"{bare}_k{growth}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> DenseNet:
    return DenseNet(BLOCKS[int(match["depth"])], _growth(match), num_classes, in_channels)


FAMILY = Family(
    form="densenet<121, 169 or 201>_cifar, densenet121_cifar_k<growth>",
    pattern=re.compile(r"densenet(?P<depth>121|169|201)_cifar(?:_k(?P<growth>[0-9]{1,4}))?"),
    broken=_broken,
    build=_build,
    examples=tuple(f"densenet{depth}_cifar" for depth in BLOCKS),
    name=_name,
)
