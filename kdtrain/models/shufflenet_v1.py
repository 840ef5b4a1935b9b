"""ShuffleNet for small images (Zhang et al., CVPR 2018, arXiv:1707.01083), with RepDistiller's features and keys.

It has 3 groups. `shufflenet_v1` has stages of 240, 480 and 960 channels, `shufflenet_v1_w{w}` w times as many.
Source: https://github.com/HobbitLong/RepDistiller/blob/master/models/ShuffleNetv1.py. As there, the stem is a 1 x 1
convolution, and a ReLU follows the depthwise convolution too. It pools 4 x 4 windows; here the pooling is global, which
is the same at 32 x 32 and lets other image sizes work.
"""

import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import through_stages
from kdtrain.models.family import Family
from kdtrain.models.naming import WIDTH, ending, misspelt, superfluous, width_of
from kdtrain.models.outputs import Model, Outputs

STEM = 24
WIDTHS = (240, 480, 960)
BLOCKS = (4, 8, 4)
GROUPS = 3


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channels dealt out anew: the first of each group, then the second of each, and so on. `x`: [B, C, H, W]."""
    grouped: Tensor = x.unflatten(1, (groups, -1))
    return grouped.transpose(1, 2).flatten(1, 2)


class Bottleneck(nn.Module):
    """relu(bn(gconv1x1(relu(bn(dw3x3(shuffled(relu(bn(gconv1x1(x))))))))) + x).

    With `down` the depthwise convolution has stride 2, and the mean of 3 x 3 windows of x is not added but appended.
    """

    def __init__(self, c_in: int, c_out: int, down: bool) -> None:
        super().__init__()
        made = c_out - c_in if down else c_out
        mid = made // 4
        self.groups = 1 if c_in == STEM else GROUPS
        self.down = down
        self.conv1 = nn.Conv2d(c_in, mid, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, 2 if down else 1, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, made, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H, W], with `down` [B, c_out, H/2, W/2], not negative."""
        return F.relu(self.preact(x))

    def preact(self, x: Tensor) -> Tensor:
        """The sum, or with `down` the two parts, before the last ReLU."""
        out = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.cat((out, F.avg_pool2d(x, 3, stride=2, padding=1)), 1) if self.down else out + x


class ShuffleNetV1(Model):
    """Three stages of 4, 8 and 4 blocks; the first of each halves the map. All features are >= 0."""

    def __init__(self, widths: tuple[int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (
            _stage(*sizes) for sizes in zip(BLOCKS, (STEM, *widths[:-1]), widths, strict=True)
        )
        self.linear = nn.Linear(widths[-1], num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H/2, H/4 and H/8 rows, rounded up."""
        stem = F.relu(self.bn1(self.conv1(x)))
        layers = (self.layer1, self.layer2, self.layer3)
        return through_stages(stem, [partial(_preact, layer) for layer in layers], self.linear)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.linear

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage."""
        return (self.conv1, self.bn1), (self.layer1,), (self.layer2,), (self.layer3,)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The third BatchNorm of each stage's last block; the block's input is added to it."""
        return tuple(_last(layer).bn3 for layer in (self.layer1, self.layer2, self.layer3))


def _stage(n: int, c_in: int, c_out: int) -> nn.Sequential:
    first = Bottleneck(c_in, c_out, down=True)
    return nn.Sequential(first, *(Bottleneck(c_out, c_out, down=False) for _ in range(n - 1)))


def _preact(stage: nn.Sequential, x: Tensor) -> Tensor:
    """A stage before its last ReLU."""
    return _last(stage).preact(stage[:-1](x))


def _last(stage: nn.Sequential) -> Bottleneck:
    block = stage[-1]
    assert isinstance(block, Bottleneck)
    return block


def _broken(match: re.Match[str]) -> str | None:
    width = width_of(match)
    if not 0.2 <= width <= 4:  # at 0.1 the first stage would be as wide as the stem and its first block make nothing
        return "0.2 <= width <= 4 must hold"
    if any(c * width % 24 for c in WIDTHS):
        return "240, 480 and 960 times the width must be multiples of 24"
    return misspelt(match, _name(None, width_of(match)))


def _name(depth: int | None, width: float | None) -> str:
    superfluous("depth", depth)
    return f"shufflenet_v1{ending(width)}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> ShuffleNetV1:
    a, b, c = (int(channels * width_of(match)) for channels in WIDTHS)
    return ShuffleNetV1((a, b, c), num_classes, in_channels)


FAMILY = Family(
    form="shufflenet_v1, shufflenet_v1_w<width>",
    pattern=re.compile(r"shufflenet_v1" + WIDTH),
    broken=_broken,
    build=_build,
    examples=("shufflenet_v1", "shufflenet_v1_w0.5", "shufflenet_v1_w1.5", "shufflenet_v1_w2"),
    name=_name,
)
