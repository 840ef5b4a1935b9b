"""NKD: From Knowledge Distillation to Self-Knowledge Distillation (Yang et al., ICCV 2023, arXiv:2303.13005).

The published rows come from the authors' code, whose runner probably puts the whole model, the teacher with it,
into train mode: that is the default, and `teacher_bn` keeps the other choice.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.methods.dkd import others_probabilities, relative_to_others
from kdtrain.models.outputs import Outputs


def target_loss(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """The mean over the batch of -p_t[y] log p_s[y], p = softmax(z), in nats; z_s, z_t: [B, K], labels: [B]."""
    p_t = F.softmax(z_t, dim=1).gather(1, labels[:, None])[:, 0]
    return (p_t * F.cross_entropy(z_s, labels, reduction="none")).mean()


def others_loss(z_s: Tensor, z_t: Tensor, labels: Tensor, tau: float) -> Tensor:
    """tau^2 times the mean over the batch of -sum_{c != y} q_t[c] log q_s[c], in nats.

    q is the softmax of z / tau over the classes that are not the label. z_s, z_t: [B, K], labels: [B].
    """
    u_s, u_t = (relative_to_others(z / tau, labels) for z in (z_s, z_t))
    return -(tau**2) * (others_probabilities(u_t, labels) * u_s).sum(1).mean()


class NKD(Method):
    """L = CE(z_s, y) + target_loss(z_s, z_t) + beta others_loss(z_s, z_t)."""

    class Config(Frozen):
        """The authors' values for CIFAR-100 (ResNet-34 -> ResNet-18); ImageNet: beta 1.5, tau 1."""

        beta: float = Field(3.5, ge=0)  # weight of the classes that are not the label (the paper's gamma)
        tau: float = Field(3.0, gt=0)  # of the classes that are not the label
        teacher_bn: Literal["eval", "train"] = "train"

    paper = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        "Yang et al.",
        "ICCV",
        2023,
    )
    needs = frozenset({"logits"})
    search_space: ClassVar[Space] = {"beta": Range(0.35, 35), "tau": Range(1, 20)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, nkd_target, nkd_others}."""
        z_s, z_t, labels = student.logits, given(teacher).logits, batch.labels
        return {
            "ce": F.cross_entropy(z_s, labels),
            "nkd_target": target_loss(z_s, z_t, labels),
            "nkd_others": self.config.beta * others_loss(z_s, z_t, labels, self.config.tau),
        }
