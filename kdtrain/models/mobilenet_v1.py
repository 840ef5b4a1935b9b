"""MobileNet (Howard et al., 2017, arXiv:1704.04861, table 1), with the features and keys of OFD.

`mobilenet_v1_w{width}` has `width` times the channels. The weights start as torch draws them.
Source: https://github.com/clovaai/overhaul-distillation/blob/master/ImageNet/models/MobileNet.py. It pools 7 x 7
windows; here the pooling is global, which is the same at 224 x 224 and lets other image sizes work.
"""

import re
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from kdtrain.models.common import through_stages
from kdtrain.models.family import Family
from kdtrain.models.naming import WIDTH, broken_width, ending, misspelt, superfluous, width_of
from kdtrain.models.outputs import Model, Outputs

# (channels, stride) of the units after the first convolution, for width 1
UNITS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2), (1024, 1))
ENDS = (3, 5, 11, 13)  # the last unit of each stage, as in OFD; the first convolution is number 0


class MobileNetV1(Model):
    """relu(bn(conv(x))), then 13 units relu(bn(1 x 1 conv(relu(bn(depthwise conv(x)))))). All features are >= 0.

    `preact` are the maps before the last ReLU of the stages.
    """

    multiple: ClassVar[int] = 32
    least: ClassVar[int] = 64

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        widths = [round(width * channels) for channels in (32, *(channels for channels, _ in UNITS))]
        first = nn.Sequential(*_conv(in_channels, widths[0], stride=2))
        units = (
            _unit(c_in, c_out, stride) for c_in, c_out, (_, stride) in zip(widths[:-1], widths[1:], UNITS, strict=True)
        )
        self.model = nn.Sequential(first, *units)
        self.fc = nn.Linear(widths[-1], num_classes)

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised; the stem has H/2 rows, the stages H/4, H/8, H/16 and H/32."""
        starts = (1, *(end + 1 for end in ENDS[:-1]))
        stages = [partial(self._preact, start, end) for start, end in zip(starts, ENDS, strict=True)]
        return through_stages(self.model[0](x), stages, self.fc)

    def _preact(self, start: int, end: int, x: Tensor) -> Tensor:
        """The stage of the units start..end before its last ReLU."""
        preact: Tensor = _unit_at(self.model, end)[:-1](self.model[start:end](x))
        return preact

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        return self.fc

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The first convolution, then the units of each stage."""
        starts = (0, 1, *(end + 1 for end in ENDS[:-1]))
        return tuple(tuple(self.model[start : end + 1]) for start, end in zip(starts, (0, *ENDS), strict=True))

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The last BatchNorm of each stage."""
        return tuple(_norm(_unit_at(self.model, end)) for end in ENDS)


def _conv(c_in: int, c_out: int, stride: int, kernel: int = 3, groups: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(c_out), nn.ReLU()


def _unit(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_conv(c_in, c_in, stride, groups=c_in), *_conv(c_in, c_out, stride=1, kernel=1))


def _unit_at(model: nn.Sequential, place: int) -> nn.Sequential:
    unit = model[place]
    assert isinstance(unit, nn.Sequential)
    return unit


def _norm(unit: nn.Sequential) -> nn.BatchNorm2d:
    norm = unit[-2]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _broken(match: re.Match[str]) -> str | None:
    return broken_width(match, 32) or misspelt(match, _name(None, width_of(match)))


def _name(depth: int | None, width: float | None) -> str:
    superfluous("depth", depth)
    return f"mobilenet_v1{ending(width)}"


def _build(match: re.Match[str], num_classes: int, in_channels: int) -> MobileNetV1:
    return MobileNetV1(width_of(match), num_classes, in_channels)


FAMILY = Family(
    form="mobilenet_v1, mobilenet_v1_w<width>",
    pattern=re.compile(r"mobilenet_v1" + WIDTH),
    broken=_broken,
    build=_build,
    examples=("mobilenet_v1", "mobilenet_v1_w0.25", "mobilenet_v1_w0.5", "mobilenet_v1_w0.75"),
    name=_name,
)
