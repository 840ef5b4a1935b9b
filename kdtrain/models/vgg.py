"""VGG with BatchNorm for small images (Simonyan and Zisserman, ICLR 2015), with RepDistiller's features and keys.

`vgg{d}` has five blocks of widths 64, 128, 256, 512, 512, max-pooling after the first three (after the fourth too for
images of at least 64 x 64) and one linear layer; `vgg{d}_w{k}` has k times the widths.
Source: https://github.com/HobbitLong/RepDistiller/blob/master/models/vgg.py, which pools a fourth time for images of
64 x 64 only.
"""

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain.models.common import fan_out_normal_, through_stages
from kdtrain.models.family import Family
from kdtrain.models.naming import WIDTH, broken_width, ending, misspelt, required, width_of
from kdtrain.models.outputs import Model, Outputs

WIDTHS = (64, 128, 256, 512, 512)
BLOCKS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Model):
    """Five blocks of 3 x 3 convolutions with bias, each with BatchNorm and ReLU. All features are >= 0.

    The first block is the stem, the others are the stages. `convolutions` and `widths` are of the blocks.
    """

    def __init__(
        self, convolutions: tuple[int, ...], widths: tuple[int, ...], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        inputs = (in_channels, *widths[:-1])
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(*sizes) for sizes in zip(convolutions, inputs, widths, strict=True)
        )
        self.classifier = nn.Linear(widths[-1], num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        fan_out_normal_(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stages have H/2, H/4, H/8 and H/8 rows (H/16 at last if large)."""
        large = min(x.shape[2:]) >= 64
        pooling = [partial(_pooled, block) for block in (self.block1, self.block2, self.block3)]
        last = partial(_pooled, self.block4) if large else self.block4
        return through_stages(F.relu(self.block0(x)), [*pooling, last], self.classifier)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.classifier

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage."""
        return (self.block0,), (self.block1,), (self.block2,), (self.block3,), (self.block4,)

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The last BatchNorm of each stage."""
        return tuple(_norm(block) for block in (self.block1, self.block2, self.block3, self.block4))


def _pooled(block: nn.Sequential, x: Tensor) -> Tensor:
    """A block of max-pooled maps, before its last ReLU."""
    preact: Tensor = block(F.max_pool2d(x, 2))
    return preact


def _block(n: int, c_in: int, c_out: int) -> nn.Sequential:
    """Convolutions, `n` of them, with BatchNorm, ReLU between them; the last ReLU is the caller's."""
    layers: list[nn.Module] = []
    for i in range(n):
        layers += [nn.Conv2d(c_out if i else c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _norm(block: nn.Sequential) -> nn.BatchNorm2d:
    norm = block[-1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _broken(match: re.Match[str]) -> str | None:
    depth = int(match["depth"])
    if depth not in BLOCKS:
        return f"depth must be one of {', '.join(map(str, BLOCKS))}"
    return broken_width(match, WIDTHS[0]) or misspelt(match, _name(depth, width_of(match)))


def _name(depth: int | None, width: float | None) -> str:
    return f"vgg{required('depth', depth)}{ending(width)}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> VGG:
    widths = tuple(int(width_of(match) * width) for width in WIDTHS)
    return VGG(BLOCKS[int(match["depth"])], widths, num_classes, in_channels)


FAMILY = Family(
    form="vgg<8, 11, 13, 16 or 19>, vgg8_w<width>",
    pattern=re.compile(rf"vgg(?P<depth>[0-9]{{1,4}}){WIDTH}"),
    broken=_broken,
    build=_build,
    examples=tuple(f"vgg{depth}" for depth in BLOCKS),
    name=_name,
)
