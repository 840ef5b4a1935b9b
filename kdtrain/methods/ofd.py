"""OFD: A Comprehensive Overhaul of Feature Distillation (Heo et al., ICCV 2019, arXiv:1904.01866).

As in the authors' code the teacher's BatchNorm is in train mode and levels before the last weigh less. Networks with
other numbers of levels or other heights of maps are treated as in mdistiller.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.srrl import Connector
from kdtrain.models.outputs import Outputs


@torch.no_grad()
def margins(gamma: Tensor, beta: Tensor) -> Tensor:
    """E[x | x < 0] for x ~ N(beta, s^2), s = |gamma|, and -3 s where P(x < 0) <= 0.001; never positive.

    gamma, beta: [C], scale and shift of the BatchNorm before a ReLU. Returns [C].
    """
    s = gamma.abs()
    ratio = beta / s
    below = torch.special.ndtr(-ratio)
    mean = beta - s * torch.exp(-(ratio**2) / 2) / (math.sqrt(2 * math.pi) * below)
    return torch.where(below > 0.001, mean, -3 * s)


def partial_l2(f_s: Tensor, f_t: Tensor, margin: Tensor) -> Tensor:
    """The sum over all elements of (f_s - t)^2 [f_s > t or f_t > 0], t = max(f_t, margin). Without unit.

    f_s, f_t: [B, C, H, W] before the ReLU, margin: [1, C, 1, 1], not positive. Where the teacher's ReLU gives 0, the
    student has to come below t alone.
    """
    d = f_s - torch.maximum(f_t, margin)
    return torch.where(f_t > 0, d, d.relu()).square().sum()


class Level(nn.Module):
    """The connector of one level, and the margins of the teacher's map."""

    def __init__(self, c_s: int, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.connector = Connector(c_s, norm.num_features)
        self.margin: Tensor  # [1, C_t, 1, 1]
        self.register_buffer("margin", margins(norm.weight, norm.bias)[None, :, None, None])

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """`partial_l2` of one level, summed; the teacher's map is brought to the size of the student's by pooling."""
        if f_s.shape[2:] != f_t.shape[2:]:
            f_t = F.adaptive_avg_pool2d(f_t, (f_s.shape[2], f_s.shape[3]))
        return partial_l2(self.connector(f_s), f_t, self.margin)


class OFD(Method):
    """L = CE(z_s, y) + beta (1/B) sum_i 2^-(n-i-1) partial_l2(bn(conv(f_s^i)), f_t^i), f^i maps before the ReLU.

    The n levels, i = 0 to n-1, are the last stages of both networks, as many as both have.
    """

    class Config(Frozen):
        """The authors' values for CIFAR-100; ImageNet: beta 1e-4, for MobileNetV2 they advise 1e-5."""

        beta: float = Field(1e-3, ge=0)  # weight of the feature term
        teacher_bn: Literal["train", "eval"] = "train"  # "eval" as in most other code bases

    paper = Paper("A Comprehensive Overhaul of Feature Distillation", "Heo et al.", "ICCV", 2019)
    needs = frozenset({"preact"})
    nesterov = True
    search_space: ClassVar[Space] = {"beta": Range(1e-4, 1e-2)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        maps_s, norms = setting.student_shapes.preact, given(setting.teacher).preact_norms
        n = min(len(maps_s), len(norms))
        self.levels = nn.ModuleList(
            Level(f_s.shape[1], norm) for f_s, norm in zip(maps_s[-n:], norms[-n:], strict=True)
        )

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, ofd}."""
        n = len(self.levels)
        maps = zip(self.levels, student.preact[-n:], given(teacher).preact[-n:], strict=True)
        losses = [level(f_s, f_t) / 2 ** (n - i - 1) for i, (level, f_s, f_t) in enumerate(maps)]
        ofd = torch.stack(losses).sum() / len(student.logits)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "ofd": self.config.beta * ofd}
