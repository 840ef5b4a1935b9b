"""Wide ResNets (Zagoruyko and Komodakis, BMVC 2016), with the features and keys of RepDistiller.

`wrn_{d}_{k}` has depth d = 6n+4 and stage widths 16k, 32k, 64k.
Source: https://github.com/HobbitLong/RepDistiller/blob/master/models/wrn.py. It pools 8 x 8 windows; here the
pooling is global, which is the same at 32 x 32 and lets other image sizes work. Its dropout rate is 0 and left out.
"""

import re

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import fan_out_normal_
from kdtrain.models.family import Family
from kdtrain.models.naming import misspelt, required, whole
from kdtrain.models.outputs import Model, Outputs


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) + shortcut, 3 x 3 convolutions, the first with the stride.

    The shortcut is x; where the width changes, it is a 1 x 1 convolution of relu(bn(x)).
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.convShortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H/stride, W/stride], of either sign."""
        return self.after_norm(x, self.bn1(x))

    def after_norm(self, x: Tensor, normed: Tensor) -> Tensor:
        """The block after its first BatchNorm: `normed` is bn1(x)."""
        act = F.relu(normed)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(act))))
        return out + (x if self.convShortcut is None else self.convShortcut(act))


class Stage(nn.Module):
    """n blocks in a row, under the name that RepDistiller's keys have (`block1.layer.0`)."""

    def __init__(self, n: int, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        first = PreActBlock(c_in, c_out, stride)
        self.layer = nn.Sequential(first, *(PreActBlock(c_out, c_out, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H/stride, W/stride]. `normed`: x after the first BatchNorm."""
        first = self.first
        out: Tensor = self.layer[1:](first(x) if normed is None else first.after_norm(x, normed))
        return out

    @property
    def first(self) -> PreActBlock:
        """The block with the stride."""
        block = self.layer[0]
        assert isinstance(block, PreActBlock)
        return block


class WideResNet(Model):
    """Three stages of n pre-activation blocks of width 16k, 32k, 64k.

    The stem and the stages are raw sums, of either sign; the pooled features are >= 0. `preact` are the sums after
    the BatchNorm that follows them. RepDistiller calls that BatchNorm a second time for them, which in train mode moves
    its running statistics twice; here it is called once.
    """

    def __init__(self, n: int, k: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(n, 16, 16 * k, stride=1)
        self.block2 = Stage(n, 16 * k, 32 * k, stride=2)
        self.block3 = Stage(n, 32 * k, 64 * k, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * k)
        self.fc = nn.Linear(64 * k, num_classes)
        nn.init.zeros_(self.fc.bias)
        fan_out_normal_(self)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H, H/2 and H/4 rows."""
        stem = self.conv1(x)
        f1 = self.block1(stem)
        preact1 = self.block2.first.bn1(f1)
        f2 = self.block2(f1, preact1)
        preact2 = self.block3.first.bn1(f2)
        f3 = self.block3(f2, preact2)
        preact3 = self.bn1(f3)
        pooled = F.adaptive_avg_pool2d(F.relu(preact3), 1).flatten(1)
        return Outputs(self.fc(pooled), pooled, stem, (f1, f2, f3), (preact1, preact2, preact3))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.fc

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage; the last BatchNorm is in none."""
        return (self.conv1,), (self.block1,), (self.block2,), (self.block3,)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BatchNorm that follows each stage: the first of the next stage, at last that before the pooling."""
        return self.block2.first.bn1, self.block3.first.bn1, self.bn1


def _broken(match: re.Match[str]) -> str | None:
    depth, width = int(match["depth"]), int(match["width"])
    if depth < 10 or depth % 6 != 4:
        return "depth must be 6n+4 with n >= 1"
    if width < 1:
        return "width must be at least 1"
    return misspelt(match, _name(depth, width))


def _name(depth: int | None, width: float | None) -> str:
    """Width is the widening factor, without which there is no name."""
    return f"wrn_{required('depth', depth)}_{whole('width', required('width', width))}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> WideResNet:
    return WideResNet((int(match["depth"]) - 4) // 6, int(match["width"]), num_classes, in_channels)


FAMILY = Family(
    form="wrn_<6n+4>_<width>",
    pattern=re.compile(r"wrn_(?P<depth>[0-9]{1,5})_(?P<width>[0-9]{1,5})"),
    broken=_broken,
    build=_build,
    examples=("wrn_16_1", "wrn_16_2", "wrn_16_4", "wrn_40_1", "wrn_40_2", "wrn_40_4"),
    name=_name,
)
