"""ReviewKD: Distilling Knowledge via Knowledge Review (Chen et al., CVPR 2021, arXiv:2104.09044).

The published CIFAR-100 rows come from the authors' code, which never puts the teacher into eval mode and counts
the epochs of the warm-up from 0, so that the first has the weight 0; this is that code. `teacher_bn` keeps the
other choice.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.dkd import ramp
from kdtrain.methods.maps import Norm
from kdtrain.models.outputs import Outputs


def hcl(f_s: Tensor, f_t: Tensor) -> Tensor:
    """The hierarchical context loss: the weighted mean of the squared errors of the maps and of pooled ones.

    Weight 1 for the maps, then 1/2, 1/4, 1/8 for both averaged (adaptive pooling) to 4 x 4, 2 x 2 and 1 x 1, of these
    only the sizes below the height. f_s, f_t: [B, C, H, W]; a scalar in the features' unit squared.
    """
    difference = pooled = f_s - f_t  # pooling is linear, so the difference of pooled maps is the pooled difference
    nested = f_s.shape[2] % 4 == f_s.shape[3] % 4 == 0  # then each size is pooled from the one before
    total, weights, weight = difference.square().mean(), 1.0, 1.0
    for size in (4, 2, 1):
        if size < f_s.shape[2]:
            pooled = F.adaptive_avg_pool2d(pooled if nested else difference, size)
            weight /= 2
            weights += weight
            total = total + weight * pooled.square().mean()
    return total / weights


def levels(stages: tuple[Tensor, ...], pooled: Tensor) -> list[Tensor]:
    """The maps [B, C, H, W] from deep to shallow; the deepest is the pooled vector as 1 x 1."""
    return [pooled[:, :, None, None], *reversed(stages)]


class Fusion(nn.Module):
    """One level of the student: its map, with gates fused with what the deeper level hands up, to the teacher's shape.

    x = BN(conv1x1(f)); with a deeper level x <- g_0 x + g_1 up(deeper), g = sigmoid(conv1x1([x; up(deeper)])) of two
    channels; resized to the teacher's map x is handed up, and BN(conv3x3(x)) is compared. All resizing is nearest.
    """

    def __init__(self, c_s: int, mid: int, c_t: int, deepest: bool) -> None:
        super().__init__()
        inward, outward = nn.Conv2d(c_s, mid, 1, bias=False), nn.Conv2d(mid, c_t, 3, padding=1, bias=False)
        for conv in (inward, outward):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.inward = nn.Sequential(inward, Norm(mid))
        self.outward = nn.Sequential(outward, Norm(c_t))
        self.gate = None if deepest else nn.Conv2d(2 * mid, 2, 1)

    def forward(self, f_s: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher's map [B, C_t, H, W] of `size` (H, W), and what is handed up."""
        x: Tensor = self.inward(f_s)
        if self.gate is not None and deeper is not None:
            # A 1 x 1 convolution of [x; up(deeper)], without the copies: it may be taken before the resizing.
            to_x, to_deeper = self.gate.weight.chunk(2, dim=1)
            deeper_part = F.conv2d(deeper, to_deeper, self.gate.bias)
            g = torch.sigmoid(F.conv2d(x, to_x) + F.interpolate(deeper_part, x.shape[2:]))
            x = torch.addcmul(x * g[:, :1], F.interpolate(deeper, x.shape[2:]), g[:, 1:])
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.outward(x), x


class ReviewKD(Method):
    """L = CE(z_s, y) + beta min((epoch - 1) / warmup, 1) sum over levels of hcl(Fusion(f_s), f_t).

    Levels are the stages, the teacher's before their last ReLU, and the pooled vector, paired from the deepest;
    shallow levels that only one network has are left out.
    """

    class Config(Frozen):
        """The authors' values for CIFAR-100.

        beta is 0.6 for resnet56 -> resnet20, 1 for resnet110 -> resnet32, 8 for resnet32x4 -> ShuffleV2 and 5 for
        resnet32x4 -> resnet8x4 and ShuffleV1, wrn_40_2 -> wrn_16_2, wrn_40_1 and ShuffleV1.
        """

        beta: float = Field(5.0, ge=0)  # weight of the review (the authors' lambda)
        warmup: Epochs = 20 / 240  # epochs in which the weight grows, or their share of all epochs
        teacher_bn: Literal["eval", "train"] = "train"

    paper = Paper("Distilling Knowledge via Knowledge Review", "Chen et al.", "CVPR", 2021)
    needs = frozenset({"stages", "preact", "pooled"})
    nesterov = True
    search_space: ClassVar[Space] = {"beta": Range(0.5, 50)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.warmup = part_of(config.warmup, setting.epochs)
        student, teacher = setting.student_shapes, given(setting.teacher_shapes)
        widths = [f.shape[1] for f in levels(student.stages, student.pooled)]
        widths_t = [f.shape[1] for f in levels(teacher.preact, teacher.pooled)]
        mid = min(512, widths[0])
        self.fusions = nn.ModuleList(
            Fusion(c_s, mid, c_t, deepest=level == 0)
            for level, (c_s, c_t) in enumerate(zip(widths, widths_t, strict=False))
        )

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, hcl}."""
        teacher = given(teacher)
        pairs = zip(levels(student.stages, student.pooled), levels(teacher.preact, teacher.pooled), strict=False)
        review, handed = student.pooled.new_zeros(()), None
        for fusion, (f_s, f_t) in zip(self.fusions, pairs, strict=True):
            reviewed, handed = fusion(f_s, handed, f_t.shape[2:])
            review = review + hcl(reviewed, f_t)
        factor = self.config.beta * ramp(batch.epoch - 1, self.warmup)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "hcl": factor * review}
