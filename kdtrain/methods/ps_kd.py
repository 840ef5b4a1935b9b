"""PS-KD: Self-Knowledge Distillation with Progressive Refinement of Targets (Kim et al., ICCV 2021, arXiv:2006.12000).

The student is its own teacher: each image learns the prediction that the student made for it in the last epoch.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space
from kdtrain.models.outputs import Outputs


def softened(p: Tensor, tau: float) -> Tensor:
    """softmax(log(p) / tau), the probabilities p at another temperature: [B, K] -> [B, K]; a one-hot p stays."""
    return F.softmax(p.log() / tau, dim=1)


class PSKD(Method):
    """L = (1 - a) CE(z, y) + a tau^2 CE(z / tau, P), a = alpha epoch / epochs.

    P is the prediction for the same image in the last epoch, of its augmented view in train mode, softened by tau;
    in the first epoch the label.
    """

    class Config(Frozen):
        """The authors' values."""

        alpha: float = Field(0.8, ge=0, le=1)  # weight of the past predictions in the last epoch
        tau: float = Field(1.0, gt=0)  # the authors have none

    paper = Paper("Self-Knowledge Distillation with Progressive Refinement of Targets", "Kim et al.", "ICCV", 2021)
    nesterov = True
    search_space: ClassVar[Space] = {"alpha": Range(0.1, 1, log=False)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.epochs = setting.epochs
        self.indices: Tensor  # [n], ascending: whose predictions `past` holds; `allocate` makes both
        self.register_buffer("indices", torch.empty(0, dtype=torch.int64), persistent=False)
        self.past: Tensor  # [n, K], the last predictions
        self.register_buffer("past", torch.empty(0, setting.num_classes))

    def allocate(self, indices: Tensor, labels: Tensor) -> None:
        """The labels stand for the predictions before the first epoch."""
        self.indices, self.past = indices, F.one_hot(labels, self.past.shape[1]).to(self.past)

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, past}; from then on the batch's predictions are the last ones."""
        z, tau, a = student.logits, self.config.tau, self._share(batch)
        past = F.cross_entropy(z / tau, softened(self.past[self._rows(batch)], tau)) * tau**2
        self.past.index_copy_(0, self._rows(batch), F.softmax(z.detach(), dim=1))
        return {"ce": (1 - a) * F.cross_entropy(z, batch.labels), "past": a * past}

    def per_sample(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{past}, as a tau^2 KL(P || softmax(z / tau)), which has the same gradient; stores nothing."""
        tau = self.config.tau
        p = softened(self.past[self._rows(batch)], tau)
        kl = F.kl_div(F.log_softmax(student.logits / tau, dim=1), p, reduction="none").sum(1)
        return {"past": self._share(batch) * tau**2 * kl}

    def _share(self, batch: Batch) -> float:
        """The weight of the past predictions in this epoch."""
        return float(self.config.alpha * batch.epoch / self.epochs)

    def _rows(self, batch: Batch) -> Tensor:
        """Where the batch's images stand in `past`."""
        return torch.searchsorted(self.indices, batch.indices)
