"""SP: Similarity-Preserving Knowledge Distillation (Tung and Mori, ICCV 2019, arXiv:1907.09682)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.models.outputs import Outputs


def sp_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """||G_t - G_s||_F^2 / B^2, where G is the row-normalised f f^T of shape [B, B].

    f_s, f_t: [B, ...] features, flattened per sample; trailing shapes may differ.
    Returns a scalar without unit. Raises ValueError if the batch sizes differ.
    """
    if len(f_s) != len(f_t):
        raise ValueError(f"sp_loss compares one batch, but got {len(f_s)=}, {len(f_t)=}.")
    g_s, g_t = (F.normalize(f @ f.T, dim=1) for f in (f_s.flatten(1), f_t.flatten(1)))
    return (g_t - g_s).square().sum() / len(f_s) ** 2


class SP(Method):
    """L = CE(z_s, y) + beta SP(last map of the student, last map of the teacher)."""

    class Config(Frozen):
        """RepDistiller's value for CIFAR-100."""

        beta: float = Field(3000.0, ge=0)  # weight of the similarity term

    paper = Paper("Similarity-Preserving Knowledge Distillation", "Tung and Mori", "ICCV", 2019)
    needs = frozenset({"stages"})
    min_batch = 2
    search_space: ClassVar[Space] = {"beta": Range(300, 30000)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, sp}."""
        sp = sp_loss(student.stages[-1], given(teacher).stages[-1])
        return {"ce": F.cross_entropy(student.logits, batch.labels), "sp": self.config.beta * sp}
