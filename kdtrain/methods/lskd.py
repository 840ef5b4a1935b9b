"""LSKD: Logit Standardization in Knowledge Distillation (Sun et al., CVPR 2024, arXiv:2403.01427)."""

from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Plugin, Range, Space, given
from kdtrain.methods.kd import kd_loss
from kdtrain.models.outputs import Outputs

FLOOR = 1e-7  # added to the standard deviation


def z_scores(z: Tensor) -> Tensor:
    """(z - mean) / (std + 1e-7) over the classes of each sample, std of the sample (K - 1): [B, K] -> [B, K]."""
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + FLOOR)


class LSKD(Method):
    """L = gamma CE(z_s, y) + alpha KL_tau(z_scores(z_s), z_scores(z_t)); gradients pass through mean and std."""

    class Config(Frozen):
        """The authors' values for CIFAR-100, where some pairs have tau 3 or 4 and alpha 1 to 18; ImageNet: gamma 1."""

        gamma: float = Field(0.1, ge=0)  # weight of the cross-entropy
        alpha: float = Field(9.0, ge=0)  # weight of the distillation term
        tau: float = Field(2.0, gt=0)

    paper = Paper("Logit Standardization in Knowledge Distillation", "Sun et al.", "CVPR", 2024)
    needs = frozenset({"logits"})
    search_space: ClassVar[Space] = {"alpha": Range(0.9, 90), "tau": Range(1, 20)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, lskd}."""
        kd = kd_loss(z_scores(student.logits), z_scores(given(teacher).logits), self.config.tau)
        ce = F.cross_entropy(student.logits, batch.labels)
        return {"ce": self.config.gamma * ce, "lskd": self.config.alpha * kd}


class LSKDPlugin(Plugin):
    """The host's terms on standardised logits, its cross-entropy on the logits as they are; `kd+lskd` is `lskd`."""

    paper = LSKD.paper
    hosts: ClassVar[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
        "kd": ({"gamma": 0.1, "alpha": 9.0, "tau": 2.0}, {}),
        "dkd": ({"alpha": 9.0, "beta": 72.0, "tau": 2.0}, {}),
    }

    def change(self, host: Method, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """The host's terms."""
        scored = (outputs._replace(logits=z_scores(outputs.logits)) for outputs in (student, given(teacher)))
        return {**host.loss(batch, *scored), "ce": host.loss(batch, student, teacher)["ce"]}
