"""CIFAR ResNets of pre-activation blocks as PS-KD has them: `resnet18_cifar`, and `resnet34_cifar` of the same blocks.

`resnet18_cifar_w{k}` has k times the channels everywhere. They differ from He et al. (ECCV 2016) in three ways: the
identity shortcut is of relu(bn(x)), not of x; the stem has a BatchNorm and a ReLU; none follow the last stage.
All start from torch's default.
Source: https://github.com/lgcnsai/PS-KD-Pytorch/blob/main/models/preact_resnet.py. It pools 4 x 4 windows; here the
pooling is global, which is the same at 32 x 32 and lets other image sizes work.
"""

import re

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.config import ConfigError
from kdtrain.models.family import Family
from kdtrain.models.naming import WIDTH, broken_width, ending, misspelt, required, width_of
from kdtrain.models.outputs import Model, Outputs

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(o)))) + shortcut(o) with o = relu(bn(x)), 3 x 3 convolutions, the first with the stride.

    The shortcut is o itself; where the shape changes, it is a 1 x 1 convolution of o.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H/stride, W/stride], of either sign."""
        return self.after_norm(self.bn1(x))

    def after_norm(self, normed: Tensor) -> Tensor:
        """The block after its first BatchNorm: `normed` is bn1(x), all that it needs of x."""
        act = F.relu(normed)
        total: Tensor = self.conv2(F.relu(self.bn2(self.conv1(act)))) + self.shortcut(act)
        return total


class PreActResNet(Model):
    """A stem and four stages of `blocks` pre-activation blocks; `width`: channels of the stem and the first stage.

    The stem is >= 0; the stages and the pooled features are sums of either sign. `preact` are the first three sums
    after the BatchNorm that follows them, which is called once, and the last sum as it is.
    """

    def __init__(self, name: str, blocks: tuple[int, ...], width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.name = name
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks[0], width, width, stride=1)
        self.layer2 = _stage(blocks[1], width, 2 * width, stride=2)
        self.layer3 = _stage(blocks[2], 2 * width, 4 * width, stride=2)
        self.layer4 = _stage(blocks[3], 4 * width, 8 * width, stride=2)
        self.linear = nn.Linear(8 * width, num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H, H/2, H/4 and H/8 rows, rounded up."""
        f = stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = [], []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            first = _first(layer)
            normed = first.bn1(f)
            if layer is not self.layer1:
                preacts.append(normed)
            f = layer[1:](first.after_norm(normed))
            stages.append(f)
        pooled = F.adaptive_avg_pool2d(f, 1).flatten(1)
        return Outputs(self.linear(pooled), pooled, stem, tuple(stages), (*preacts, f))

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
        """ConfigError: the last stage has none."""
        raise ConfigError(
            f"a method that needs the BatchNorm before each stage's last ReLU cannot work with {self.name}: neither "
            "BatchNorm nor ReLU follows its last stage."
        )


def _stage(n: int, c_in: int, c_out: int, stride: int) -> nn.Sequential:
    first = PreActBlock(c_in, c_out, stride)
    return nn.Sequential(first, *(PreActBlock(c_out, c_out, 1) for _ in range(n - 1)))


def _first(stage: nn.Sequential) -> PreActBlock:
    block = stage[0]
    assert isinstance(block, PreActBlock)
    return block


def _broken(match: re.Match[str]) -> str | None:
    return broken_width(match, 64) or misspelt(match, _name(int(match["depth"]), width_of(match)))


def _name(depth: int | None, width: float | None) -> str:
    return f"resnet{required('depth', depth)}_cifar{ending(width)}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> PreActResNet:
    width = int(64 * width_of(match))
    return PreActResNet(match[0], BLOCKS[int(match["depth"])], width, num_classes, in_channels)


FAMILY = Family(
    form="resnet<18 or 34>_cifar, resnet18_cifar_w<width>",
    pattern=re.compile(rf"resnet(?P<depth>18|34)_cifar{WIDTH}"),
    broken=_broken,
    build=_build,
    examples=tuple(f"resnet{depth}_cifar" for depth in BLOCKS),
    name=_name,
)
