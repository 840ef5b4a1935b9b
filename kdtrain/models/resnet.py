"""CIFAR ResNets (He et al., CVPR 2016, section 4.2), with the widths, features and keys of RepDistiller.

`resnet{d}` has widths 16; 16, 32, 64 and `resnet{d}x{k}` has 8k; 16k, 32k, 64k, for d = 6n+2 and k >= 2: k = 4 gives
RepDistiller's 32; 64, 128, 256.
Source: https://github.com/HobbitLong/RepDistiller/blob/master/models/resnet.py. It pools 8 x 8 windows; here the
pooling is global, which is the same at 32 x 32 and lets other image sizes work.
"""

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import through_stages
from kdtrain.models.family import Family
from kdtrain.models.naming import misspelt, required, whole
from kdtrain.models.outputs import Model, Outputs


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3 x 3 convolutions, the first with the stride."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H/stride, W/stride], not negative."""
        return F.relu(self.preact(x))

    def preact(self, x: Tensor) -> Tensor:
        """The sum before the last ReLU."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return out + (x if self.downsample is None else self.downsample(x))


class ResNet(Model):
    """Three stages of n basic blocks. `widths`: channels of the stem and of the stages. All features are >= 0."""

    def __init__(self, n: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(n, widths[0], widths[1], stride=1)
        self.layer2 = _stage(n, widths[1], widths[2], stride=2)
        self.layer3 = _stage(n, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H, H/2 and H/4 rows."""
        stem = F.relu(self.bn1(self.conv1(x)))
        layers = (self.layer1, self.layer2, self.layer3)
        return through_stages(stem, [partial(_preact, layer) for layer in layers], self.fc)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.fc

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage."""
        return (self.conv1, self.bn1), (self.layer1,), (self.layer2,), (self.layer3,)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The second BatchNorm of each stage's last block; the shortcut is added to it."""
        return tuple(_last(layer).bn2 for layer in (self.layer1, self.layer2, self.layer3))


def _stage(n: int, c_in: int, c_out: int, stride: int) -> nn.Sequential:
    first = BasicBlock(c_in, c_out, stride)
    return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1) for _ in range(n - 1)))


def _preact(stage: nn.Sequential, x: Tensor) -> Tensor:
    """A stage before its last ReLU."""
    return _last(stage).preact(stage[:-1](x))


def _last(stage: nn.Sequential) -> BasicBlock:
    block = stage[-1]
    assert isinstance(block, BasicBlock)
    return block


def _broken(match: re.Match[str]) -> str | None:
    depth, k = int(match["depth"]), match["k"]
    if depth < 8 or depth % 6 != 2:
        return "depth must be 6n+2 with n >= 1"
    if k and int(k) < 2:
        return "width must be at least 2"
    return misspelt(match, _name(depth, int(k or 1)))


def _name(depth: int | None, width: float | None) -> str:
    """Width is that of the stages; that of `resnet{d}` is 1."""
    k = 1 if width is None else whole("width", width)
    bare = f"resnet{required('depth', depth)}"
    return bare if k == 1 else f"{bare}x{k}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> ResNet:
    k = int(match["k"] or 0)
    widths = (8 * k, 16 * k, 32 * k, 64 * k) if k else (16, 16, 32, 64)
    return ResNet((int(match["depth"]) - 2) // 6, widths, num_classes, in_channels)


FAMILY = Family(
    form="resnet<6n+2>, resnet<6n+2>x<width>",
    # The bare names of ImageNet's networks are theirs, also where the depth is 6n+2: 50 is 6 * 8 + 2.
    pattern=re.compile(r"(?!resnet0*(?:18|34|50)\Z)resnet(?P<depth>[0-9]{1,4})(?:x(?P<k>[0-9]{1,4}))?"),
    broken=_broken,
    build=_build,
    examples=(
        *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
        *("resnet8x4", "resnet32x4"),
    ),
    name=_name,
)
