"""SRRL: Knowledge Distillation via Softmax Regression Representation Learning (Yang et al., ICLR 2021).

The authors' released code (ImageNet) connects the last map of the student: on = "map". Their CIFAR-100 code is not
public; the known CIFAR-100 rows in RepDistiller's frame (CTKD's) connect the pooled vector: on = "pooled", the default.
What the connected features are compared with is the same in both: the teacher's pooled vector and its logits.
"""

import math
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.maps import Norm
from kdtrain.models.outputs import Outputs


class Connector(nn.Module):
    """A 1 x 1 convolution without bias, then BatchNorm: [B, c_in, H, W] -> [B, c_out, H, W]."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm = Norm(c_out)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / c_out))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, c_in, H, W]."""
        normed: Tensor = self.norm(self.conv(x))
        return normed


def feature_matching(v: Tensor, v_t: Tensor) -> Tensor:
    """mean_b mean_c (v - v_t)^2 of the maps' means over space; both [B, C]. Without unit."""
    return F.mse_loss(v, v_t)


def softmax_regression(z: Tensor, z_t: Tensor) -> Tensor:
    """mean_b mean_c (z - z_t)^2, where z are the teacher's classifier's logits of the student's features; [B, K]."""
    return F.mse_loss(z, z_t)


class SRRL(Method):
    """L = gamma CE(z_s, y) + alpha_fm mean((g - v_t)^2) + beta_sr mean((fc_t(g) - z_t)^2).

    g is the mean over space of relu(bn(conv(f_s))), f_s the student's last map or its pooled vector as a 1 x 1 map;
    fc_t the teacher's frozen classifier, v_t the pooled vector that it takes.
    """

    class Config(Frozen):
        """The authors' weights for ImageNet; CTKD's CIFAR-100 rows are gamma 0.1 with 0.9 KD, and 1 and 1."""

        on: Literal["map", "pooled"] = "pooled"  # what the connector takes of the student
        gamma: float = Field(1.0, ge=0)  # weight of the cross-entropy
        alpha_fm: float = Field(1.0, ge=0)  # weight of the feature matching
        beta_sr: float = Field(1.0, ge=0)  # weight of the softmax regression

    paper = Paper("Knowledge Distillation via Softmax Regression Representation Learning", "Yang et al.", "ICLR", 2021)
    needs = frozenset({"logits", "pooled"})
    search_space: ClassVar[Space] = {"alpha_fm": Range(0.1, 10), "beta_sr": Range(0.1, 10)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        shapes = setting.student_shapes
        c_s = (shapes.stages[-1] if config.on == "map" else shapes.pooled).shape[1]
        teacher = given(setting.teacher)
        self.connector = Connector(c_s, given(setting.teacher_shapes).pooled.shape[1])
        self.classifier = [teacher.head]  # in a list: a reference, not a submodule

    @classmethod
    def maps(cls, config: Any) -> frozenset[str]:
        """The stages where the last map is connected."""
        return frozenset({"stages"}) if config.on == "map" else frozenset()

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, srrl_fm, srrl_sr}."""
        config, teacher = self.config, given(teacher)
        f_s = student.stages[-1] if config.on == "map" else student.pooled[:, :, None, None]
        v = F.relu(self.connector(f_s)).mean((2, 3))
        return {
            "ce": config.gamma * F.cross_entropy(student.logits, batch.labels),
            "srrl_fm": config.alpha_fm * feature_matching(v, teacher.pooled),
            "srrl_sr": config.beta_sr * softmax_regression(self.classifier[0](v), teacher.logits),
        }
