"""CIFAR ResNeXts (Xie et al., CVPR 2017), with the features and keys of PS-KD.

`resnext{d}_{g}x{w}d` has depth d = 9n+2, g groups and w channels a group in the first stage.
Source: https://github.com/lgcnsai/PS-KD-Pytorch/blob/main/models/resnext.py. It pools 8 x 8 windows; here the pooling
is global, which is the same at 32 x 32 and lets other image sizes work.
"""

import re
from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import through_stages
from kdtrain.models.family import Family
from kdtrain.models.naming import misspelt, required, superfluous
from kdtrain.models.outputs import Model, Outputs

WIDTHS = (64, 256, 512, 1024)  # of the stem and of the stages


class Bottleneck(nn.Module):
    """relu(bn(conv(relu(bn(conv(relu(bn(conv(x)))))))) + shortcut(x)), convolutions of 1 x 1, 3 x 3 and 1 x 1.

    The second has `inner` channels in `groups` groups, and the stride. The shortcut is x; where the width changes, it
    is a 1 x 1 convolution with BatchNorm.
    """

    def __init__(self, c_in: int, inner: int, c_out: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, c_out, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if c_in != c_out:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(c_in, c_out, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H/stride, W/stride], not negative."""
        return F.relu(self.preact(x))

    def preact(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        out = F.relu(self.bn_reduce(self.conv_reduce(x)))
        out = F.relu(self.bn(self.conv_conv(out)))
        total: Tensor = self.bn_expand(self.conv_expand(out)) + self.shortcut(x)
        return total


class ResNeXt(Model):
    """Three stages of n bottlenecks, `base` channels in each of `groups` groups at first. All features are >= 0."""

    def __init__(self, n: int, groups: int, base: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(WIDTHS[0])
        self.stage_1 = _stage(n, 1, groups, base)
        self.stage_2 = _stage(n, 2, groups, 2 * base)
        self.stage_3 = _stage(n, 3, groups, 4 * base)
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H, H/2 and H/4 rows."""
        stem = F.relu(self.bn_1(self.conv_1_3x3(x)))
        layers = (self.stage_1, self.stage_2, self.stage_3)
        return through_stages(stem, [partial(_preact, layer) for layer in layers], self.classifier)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.classifier

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage."""
        return (self.conv_1_3x3, self.bn_1), (self.stage_1,), (self.stage_2,), (self.stage_3,)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The last BatchNorm of each stage's last block; the shortcut is added to it."""
        return tuple(_last(layer).bn_expand for layer in (self.stage_1, self.stage_2, self.stage_3))


def _stage(n: int, number: int, groups: int, base: int) -> nn.Sequential:
    """The stage `number`, its blocks under the names that PS-KD's keys have (`stage_1.stage_1_bottleneck_0`)."""
    c_in, c_out, stride = WIDTHS[number - 1], WIDTHS[number], 1 if number == 1 else 2
    blocks = [Bottleneck(c_in, groups * base, c_out, groups, stride)]
    blocks += (Bottleneck(c_out, groups * base, c_out, groups, 1) for _ in range(n - 1))
    return nn.Sequential(OrderedDict((f"stage_{number}_bottleneck_{i}", block) for i, block in enumerate(blocks)))


def _preact(stage: nn.Sequential, x: Tensor) -> Tensor:
    """A stage before its last ReLU."""
    return _last(stage).preact(stage[:-1](x))


def _last(stage: nn.Sequential) -> Bottleneck:
    block = stage[-1]
    assert isinstance(block, Bottleneck)
    return block


def _broken(match: re.Match[str]) -> str | None:
    depth, groups, base = (int(match[part]) for part in ("depth", "groups", "base"))
    if depth < 11 or depth % 9 != 2:
        return "depth must be 9n+2 with n >= 1"
    if groups < 1 or base < 1:
        return "cardinality and width must be at least 1"
    return misspelt(match, f"resnext{depth}_{groups}x{base}d")


def _name(depth: int | None, width: float | None) -> str:
    """Of 8 groups of 64 channels: no number in a name makes the whole network wider, only its grouped convolutions."""
    superfluous("width", width)
    return f"resnext{required('depth', depth)}_8x64d"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> ResNeXt:
    n = (int(match["depth"]) - 2) // 9
    return ResNeXt(n, int(match["groups"]), int(match["base"]), num_classes, in_channels)


FAMILY = Family(
    form="resnext<9n+2>_<cardinality>x<width>d",
    pattern=re.compile(r"resnext(?P<depth>[0-9]{1,4})_(?P<groups>[0-9]{1,4})x(?P<base>[0-9]{1,4})d"),
    broken=_broken,
    build=_build,
    examples=("resnext29_8x64d",),
    name=_name,
)
