"""KD: Distilling the Knowledge in a Neural Network (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.models.outputs import Outputs


def kl_per_sample(z_s: Tensor, z_t: Tensor, tau: float) -> Tensor:
    """tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau)) of each sample: [B, K], [B, K] -> [B], in nats."""
    log_p_s, log_p_t = F.log_softmax(z_s / tau, dim=1), F.log_softmax(z_t / tau, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(1) * tau**2


def kd_loss(z_s: Tensor, z_t: Tensor, tau: float) -> Tensor:
    """The mean of `kl_per_sample` over the batch ("batchmean" times tau^2)."""
    return kl_per_sample(z_s, z_t, tau).mean()


class KD(Method):
    """L = gamma CE(z_s, y) + alpha KL_tau(z_s, z_t)."""

    class Config(Frozen):
        """RepDistiller's values; when KD is added to another method, alpha = 1 as in its CRD+KD command."""

        gamma: float = Field(0.1, ge=0)  # weight of the cross-entropy
        alpha: float = Field(0.9, ge=0)  # weight of the distillation term
        tau: float = Field(4.0, gt=0)

    paper = Paper("Distilling the Knowledge in a Neural Network", "Hinton et al.", "arXiv", 2015)
    needs = frozenset({"logits"})
    composed: ClassVar[dict[str, float]] = {"alpha": 1.0}
    search_space: ClassVar[Space] = {"alpha": Range(0.1, 10), "tau": Range(1, 20)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, kd}."""
        z_s, z_t = student.logits, given(teacher).logits
        ce = F.cross_entropy(z_s, batch.labels)
        return {"ce": self.config.gamma * ce, "kd": self.config.alpha * kd_loss(z_s, z_t, self.config.tau)}
