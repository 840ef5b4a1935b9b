"""MobileNetV2 for small images (Sandler et al., CVPR 2018, arXiv:1801.04381), with RepDistiller's features and keys.

`mobilenet_v2` has half the paper's channels and `mobilenet_v2_w{w}` w times the paper's, rounded down; the last
convolution has 1280 at every width (the paper and RepDistiller widen it where w > 1).
Source: https://github.com/HobbitLong/RepDistiller/blob/master/models/mobilenetv2.py. As there, the strides suit images
of 32 x 32, ReLU takes the place of ReLU6 and the first block too has an expanding convolution. It pools 2 x 2 windows;
here the pooling is global, which is the same at 32 x 32 and lets other image sizes work.
"""

import re

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import fan_out_normal_
from kdtrain.models.family import Family
from kdtrain.models.naming import WIDTH, ending, misspelt, superfluous
from kdtrain.models.outputs import Model, Outputs

ROWS = (  # expansion, channels at width 1, blocks, stride of the first block
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # the rows of each stage
LAST = 1280
BARE = 0.5  # the width of `mobilenet_v2`


class InvertedResidual(nn.Module):
    """bn(conv1x1(relu(bn(dw3x3(relu(bn(conv1x1(x)))))))), + x where the shape stays; the stride is the middle one's."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.conv = nn.Sequential(
            *_conv(c_in, wide, 1),
            *_conv(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H/stride, W/stride], of either sign."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(Model):
    """Four stages of linear bottlenecks. No ReLU ends a stage: the maps are of either sign and `preact` the same."""

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = _conv(in_channels, channels, 3, stride=2)
        rows = []
        for expansion, c, n, stride in ROWS:
            rows.append(_row(n, channels, int(c * width), stride, expansion))
            channels = int(c * width)
        self.blocks = nn.ModuleList(rows)
        self.conv2 = _conv(channels, LAST, 1)
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        fan_out_normal_(self)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H/2, H/4, H/8 and H/16 rows, rounded up."""
        f = stem = self.conv1(x)
        maps = []
        for rows in self.trunk[1:]:
            for row in rows:
                f = row(f)
            maps.append(f)
        pooled = F.adaptive_avg_pool2d(self.conv2(f), 1).flatten(1)
        return Outputs(self.classifier(pooled), pooled, stem, tuple(maps), tuple(maps))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        linear = self.classifier[0]
        assert isinstance(linear, nn.Linear)
        return linear

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage; the last convolution and its BatchNorm are in none."""
        return (self.conv1,), *(tuple(self.blocks[row] for row in rows) for rows in STAGES)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The last BatchNorm of each stage; if its last block is a residual one, the block's input is added to it."""
        return tuple(_norms(part[-1])[-1] for part in self.trunk[1:])


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """relu(bn(conv(x))), padded to keep the size at stride 1."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def _row(n: int, c_in: int, c_out: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(c_in, c_out, stride, expansion)
    return nn.Sequential(first, *(InvertedResidual(c_out, c_out, 1, expansion) for _ in range(n - 1)))


def _norms(row: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in row.modules() if isinstance(module, nn.BatchNorm2d)]


def _width(match: re.Match[str]) -> float:
    return float(match["width"] or BARE)


def _broken(match: re.Match[str]) -> str | None:
    width = _width(match)
    if not 0.1 <= width <= 4:
        return "0.1 <= width <= 4 must hold"
    # Widths that differ by 0.01 or more differ in the 320 channels of the last row: equal networks have one name.
    if width != round(width, 2):
        return "width must have at most two decimals"
    return misspelt(match, _name(None, width))


def _name(depth: int | None, width: float | None) -> str:
    superfluous("depth", depth)
    return f"mobilenet_v2{ending(width, BARE)}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> MobileNetV2:
    return MobileNetV2(_width(match), num_classes, in_channels)


FAMILY = Family(
    form="mobilenet_v2, mobilenet_v2_w<width>",
    pattern=re.compile(r"mobilenet_v2" + WIDTH),
    broken=_broken,
    build=_build,
    examples=("mobilenet_v2", "mobilenet_v2_w0.25", "mobilenet_v2_w0.75", "mobilenet_v2_w1", "mobilenet_v2_w1.4"),
    name=_name,
)
