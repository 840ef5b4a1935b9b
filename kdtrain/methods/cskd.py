"""CSKD: Improving Knowledge Distillation via Category Structure (Chen et al., ECCV 2020).

The loss is that of the authors' code, which divides means once more by the number of what it averaged. Its 1 x 1
convolutions bring both networks to a common width, the teacher's trained with the teacher; here one brings the student
to the width of the teacher, whose map is taken as it is. The weights are the code's; what the published CIFAR-100 rows
in RepDistiller's frame used is not known.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.maps import adapted
from kdtrain.models.outputs import Outputs


def same_class(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """[B] -> [B, B]: 1 where two samples have one label, else 0."""
    return (labels[:, None] == labels[None, :]).to(dtype)


def class_means(f: Tensor, same: Tensor) -> Tensor:
    """The mean of each sample's class: f [B, D], `same_class` [B, B] -> [B, D]."""
    return (same / same.sum(1, keepdim=True)) @ f


def filtered_means(f: Tensor, z: Tensor, labels: Tensor, same: Tensor) -> Tensor:
    """`class_means` over the samples that z [B, K] classifies right; without such a sample the feature itself."""
    right = (z.argmax(1) == labels).to(f.dtype)
    weights = same * right
    count = weights.sum(1, keepdim=True)
    return torch.where(count > 0, (weights / count.clamp(min=1)) @ f, f)


def residual_loss(f_s: Tensor, f_t: Tensor, m_s: Tensor, m_t: Tensor) -> Tensor:
    """MSE((f_t - m_t), (f_s - m_s)) / D, the mean over B and D divided by D once more; gradient to f_s alone.

    f_*: [B, D] features, m_*: [B, D] the means of their classes. Without unit.
    """
    return F.mse_loss(f_s - m_s.detach(), (f_t - m_t).detach()) / f_s.shape[1]


def relation_loss(c_s: Tensor, c_t: Tensor, same: Tensor) -> Tensor:
    """MSE(R(c_t), R(c_s)) / n, R the [n, n] cosines between the centres of the n classes of the batch.

    c_s: [B, D_s], c_t: [B, D_t]: `class_means`, the centre of each sample's class; same: [B, B]. Without unit.
    """
    r_s, r_t = (n @ n.T for n in (F.normalize(c_s, dim=1), F.normalize(c_t.detach(), dim=1)))
    share = 1 / same.sum(1)  # 1 / samples of the class: a class's rows sum to 1
    return share @ (r_t - r_s).square() @ share / share.sum() ** 3


class CSKD(Method):
    """L = gamma CE(z_s, y) + intra + inter + beta_logit MSE(z_s, z_t).

    intra = beta_intra [residual_loss of the last maps + that of the logits] + beta_compact MSE(z_s, means of z_s),
    inter = beta_inter [relation_loss of the last maps + that of the logits]. The means in the residuals of the maps
    are over the samples that the same network classifies right.
    """

    class Config(Frozen):
        """The weights of the authors' code."""

        gamma: float = Field(0.9, ge=0)  # weight of the cross-entropy
        beta_intra: float = Field(0.002, ge=0)  # weight of the residuals within classes
        beta_compact: float = Field(0.1, ge=0)  # weight of the distance of the student's logits to their class's mean
        beta_inter: float = Field(0.04, ge=0)  # weight of the relations between classes
        beta_logit: float = Field(1e-6, ge=0)  # weight of the squared difference of the logits

    paper = Paper("Improving Knowledge Distillation via Category Structure", "Chen et al.", "ECCV", 2020)
    needs = frozenset({"logits", "stages"})
    min_batch = 2
    search_space: ClassVar[Space] = {
        "beta_intra": Range(2e-4, 2e-2),
        "beta_compact": Range(0.01, 1),
        "beta_inter": Range(4e-3, 0.4),
    }

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        f_s, f_t = setting.student_shapes.stages[-1], given(setting.teacher_shapes).stages[-1]
        self.projection = nn.Conv2d(f_s.shape[1], f_t.shape[1], 1, bias=False)

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, cskd_intra, cskd_inter, cskd_logit}."""
        config, y, teacher = self.config, batch.labels, given(teacher)
        z_s, z_t = student.logits, teacher.logits
        map_s, map_t = adapted(student.stages[-1], teacher.stages[-1])
        f_s, f_t = self.projection(map_s).flatten(1), map_t.flatten(1)
        same = same_class(y, z_s.dtype)
        m_s, m_t = class_means(z_s, same), class_means(z_t, same)
        filtered = filtered_means(f_s.detach(), z_s, y, same), filtered_means(f_t, z_t, y, same)
        residuals = residual_loss(f_s, f_t, *filtered) + residual_loss(z_s, z_t, m_s, m_t)
        relations = relation_loss(class_means(f_s, same), class_means(f_t, same), same) + relation_loss(m_s, m_t, same)
        compact = F.mse_loss(z_s, m_s.detach())
        return {
            "ce": config.gamma * F.cross_entropy(z_s, y),
            "cskd_intra": config.beta_intra * residuals + config.beta_compact * compact,
            "cskd_inter": config.beta_inter * relations,
            "cskd_logit": config.beta_logit * F.mse_loss(z_s, z_t),
        }
