"""ShuffleNetV2 for small images (Ma et al., ECCV 2018, arXiv:1807.11164), with RepDistiller's features and keys.

`shufflenet_v2` is the paper's 1x network, `shufflenet_v2_w{w}` the one of w times its size.
Source: https://github.com/HobbitLong/RepDistiller/blob/master/models/ShuffleNetv2.py. As there, the stem is a 1 x 1
convolution without pooling; its 2x has 224 channels first, where the paper (Table 5) and ours have 244. It pools 4 x 4
windows; here the pooling is global, which is the same at 32 x 32 and lets other image sizes work.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.config import ConfigError
from kdtrain.models.family import Family
from kdtrain.models.naming import WIDTH, ending, misspelt, superfluous, width_of
from kdtrain.models.outputs import Model, Outputs
from kdtrain.models.shufflenet_v1 import shuffled

STEM = 24
WIDTHS = {  # of the three stages and of the last convolution
    0.5: (48, 96, 192, 1024),
    1: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2: (244, 488, 976, 2048),
}
BLOCKS = (4, 8, 4)


class BasicBlock(nn.Module):
    """shuffled([x1, relu(bn(conv1x1(bn(dw3x3(relu(bn(conv1x1(x2))))))))]), where x1 and x2 are the halves of x >= 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, C, H, W], not negative; the result too."""
        return activated(self.preact(x))

    def preact(self, x: Tensor) -> Tensor:
        """[the untouched half, the other half before its last ReLU], not shuffled."""
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return torch.cat((kept, self.bn3(self.conv3(out))), 1)


class DownBlock(nn.Module):
    """shuffled([left, right]), which both halve the map.

    left = relu(bn(conv1x1(bn(dw3x3(x))))), right = relu(bn(conv1x1(bn(dw3x3(relu(bn(conv1x1(x)))))))).
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        self.conv1 = nn.Conv2d(c_in, c_in, 3, stride=2, padding=1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = nn.Conv2d(c_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(c_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]; returns [B, c_out, H/2, W/2], not negative."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return activated(torch.cat((left, right), 1))


class ShuffleNetV2(Model):
    """Three stages of 4, 8 and 4 blocks; the first of each halves the map. All features are >= 0.

    The stages are shuffled, `preact` are not. `widths`: channels of the stages and of the pooled features.
    """

    def __init__(self, widths: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (
            _stage(*sizes) for sizes in zip(BLOCKS, (STEM, *widths[:2]), widths[:3], strict=True)
        )
        self.conv2 = nn.Conv2d(widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H/2, H/4 and H/8 rows, rounded up."""
        f = stem = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = [], []
        for layer in (self.layer1, self.layer2, self.layer3):
            preact = _last(layer).preact(layer[:-1](f))
            f = activated(preact)
            stages.append(f)
            preacts.append(preact)
        pooled = F.adaptive_avg_pool2d(F.relu(self.bn2(self.conv2(f))), 1).flatten(1)
        return Outputs(self.linear(pooled), pooled, stem, tuple(stages), tuple(preacts))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.linear

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage; the last convolution and its BatchNorm are in none."""
        return (self.conv1, self.bn1), (self.layer1,), (self.layer2,), (self.layer3,)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """None: ConfigError, the last BatchNorm of a stage covers half of its channels."""
        raise ConfigError(
            "the last BatchNorm of every stage must cover all of its channels, but that of ShuffleNetV2 covers half."
        )


def activated(preact: Tensor) -> Tensor:
    """What a block makes of [half, half]; the ReLU changes nothing in a half that is not negative."""
    return shuffled(F.relu(preact), 2)


def _stage(n: int, c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(c_in, c_out), *(BasicBlock(c_out) for _ in range(n - 1)))


def _last(stage: nn.Sequential) -> BasicBlock:
    block = stage[-1]
    assert isinstance(block, BasicBlock)
    return block


def _broken(match: re.Match[str]) -> str | None:
    if width_of(match) not in WIDTHS:
        return f"width must be one of {', '.join(map(str, WIDTHS))}"
    return misspelt(match, _name(None, width_of(match)))


def _name(depth: int | None, width: float | None) -> str:
    superfluous("depth", depth)
    return f"shufflenet_v2{ending(width)}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> ShuffleNetV2:
    return ShuffleNetV2(WIDTHS[width_of(match)], num_classes, in_channels)


FAMILY = Family(
    form="shufflenet_v2, shufflenet_v2_w<0.5, 1.5 or 2>",
    pattern=re.compile(r"shufflenet_v2" + WIDTH),
    broken=_broken,
    build=_build,
    examples=("shufflenet_v2", "shufflenet_v2_w0.5", "shufflenet_v2_w1.5", "shufflenet_v2_w2"),
    name=_name,
)
