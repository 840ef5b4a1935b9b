"""CS-KD: Regularizing Class-wise Predictions via Self-knowledge Distillation (Yun et al., CVPR 2020, arXiv:2003.13964).

The student is its own teacher: each image learns the prediction that the student makes at the same
step for a random image of its class.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.methods.kd import kd_loss
from kdtrain.models.outputs import Outputs


class ClasswiseKD(Method):
    """L = CE(z, y) + alpha KL_tau(z, z'), z' the student's logits for an image of the same label, a constant."""

    class Config(Frozen):
        """The authors' values for CIFAR-100; fine-grained data sets: alpha 3."""

        alpha: float = Field(1.0, ge=0)  # weight of the distillation term
        tau: float = Field(4.0, gt=0)

    paper = Paper("Regularizing Class-wise Predictions via Self-knowledge Distillation", "Yun et al.", "CVPR", 2020)
    partners = True
    search_space: ClassVar[Space] = {"alpha": Range(0.1, 10), "tau": Range(1, 20)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, cs_kd}."""
        ce = F.cross_entropy(student.logits, batch.labels)
        kl = kd_loss(student.logits, given(batch.partner).logits, self.config.tau)
        return {"ce": ce, "cs_kd": self.config.alpha * kl}
