"""DIST: Knowledge Distillation from A Stronger Teacher (Huang et al., NeurIPS 2022, arXiv:2205.10536)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.models.outputs import Outputs

FLOOR = 1e-8  # added to the product of the norms


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of a and b along `dim`, which is dropped; 0 where either is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim) / (norms + FLOOR)


def relation_losses(z_s: Tensor, z_t: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """tau^2 (1 - mean correlation of p_s and p_t), p = softmax(z / tau): of the rows, of the columns.

    Rows (inter-class) are the B samples, columns (intra-class) the K classes. z_s, z_t: [B, K]. Without unit.
    """
    p_s, p_t = F.softmax(z_s / tau, dim=1), F.softmax(z_t / tau, dim=1)
    inter, intra = (1 - pearson(p_s, p_t, dim).mean() for dim in (1, 0))
    return tau**2 * inter, tau**2 * intra


class DIST(Method):
    """L = CE(z_s, y) + inter L_inter(z_s, z_t) + intra L_intra(z_s, z_t), see `relation_losses`."""

    class Config(Frozen):
        """The authors' values for CIFAR-100; ImageNet: tau 1. Both weights hold the code's factor 2."""

        inter: float = Field(2.0, ge=0)  # weight of the relations of the classes within each sample (the paper's beta)
        intra: float = Field(2.0, ge=0)  # weight of the relations of the samples within each class (its gamma)
        tau: float = Field(4.0, gt=0)

    paper = Paper("Knowledge Distillation from A Stronger Teacher", "Huang et al.", "NeurIPS", 2022)
    needs = frozenset({"logits"})
    min_batch = 2
    search_space: ClassVar[Space] = {"inter": Range(0.2, 20), "intra": Range(0.2, 20), "tau": Range(1, 20)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, inter_class, intra_class}."""
        config = self.config
        inter, intra = relation_losses(student.logits, given(teacher).logits, config.tau)
        ce = F.cross_entropy(student.logits, batch.labels)
        return {"ce": ce, "inter_class": config.inter * inter, "intra_class": config.intra * intra}
