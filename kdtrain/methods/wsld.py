"""WSLD: Rethinking Soft Labels for Knowledge Distillation (Zhou et al., ICLR 2021, arXiv:2102.00650).

The CIFAR-100 code is not public: alpha and tau are the values that the authors gave in an issue. Their ImageNet code
(alpha 2.5, tau 2) leaves the teacher in train mode, which is the default here.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.models.outputs import Outputs


def soft_label_weights(h_s: Tensor, h_t: Tensor) -> Tensor:
    """The weights 1 - exp(-max(h_s / (h_t + 1e-7), 0)), from 0 to 1; [B], [B] -> [B], without gradient.

    h_s, h_t: cross-entropy of each sample to its label, of the student and of the teacher, in nats.
    """
    ratio = h_s.detach() / (h_t.detach() + 1e-7)
    return -torch.expm1(-ratio.clamp(min=0))


def soft_cross_entropy(z_s: Tensor, z_t: Tensor, tau: float) -> Tensor:
    """-tau^2 sum_c softmax(z_t / tau)_c log softmax(z_s / tau)_c of each sample: [B, K], [B, K] -> [B], in nats.

    It exceeds tau^2 KL by the entropy of the teacher, so its gradient is that of KD.
    """
    return -(F.softmax(z_t / tau, dim=1) * F.log_softmax(z_s / tau, dim=1)).sum(1) * tau**2


class WSLD(Method):
    """L = CE(z_s, y) + alpha (1/B) sum_b w_b H_tau(z_t, z_s)_b, H the soft cross-entropy times tau^2.

    w = `soft_label_weights` of the cross-entropies at temperature 1.
    """

    class Config(Frozen):
        """The authors' values for CIFAR-100; ImageNet: alpha 2.5, tau 2."""

        alpha: float = Field(2.25, ge=0)  # weight of the distillation term
        tau: float = Field(4.0, gt=0)
        teacher_bn: Literal["train", "eval"] = "train"  # "eval" as in most other code bases

    paper = Paper(
        "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
        "Zhou et al.",
        "ICLR",
        2021,
    )
    needs = frozenset({"logits"})
    nesterov = True
    search_space: ClassVar[Space] = {"alpha": Range(0.225, 22.5), "tau": Range(1, 20)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, wsld}."""
        z_s, z_t, config = student.logits, given(teacher).logits, self.config
        h_s, h_t = (F.cross_entropy(z, batch.labels, reduction="none") for z in (z_s, z_t))
        soft = soft_label_weights(h_s, h_t) * soft_cross_entropy(z_s, z_t, config.tau)
        return {"ce": h_s.mean(), "wsld": config.alpha * soft.mean()}
