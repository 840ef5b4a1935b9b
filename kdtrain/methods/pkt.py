"""PKT: Probabilistic Knowledge Transfer (Passalis and Tefas, ECCV 2018, arXiv:1803.10837)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, linalg

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.models.outputs import Outputs

EPS = 1e-7


def affinities(v: Tensor) -> Tensor:
    """(1 + cos(v_i, v_j)) / 2 of all pairs, the diagonal included, each row divided by its sum: [B, D] -> [B, B]."""
    lengths: Tensor = linalg.vector_norm(v, dim=1, keepdim=True)
    unit = v / (lengths + EPS)
    p = (unit @ unit.T + 1) / 2
    return p / p.sum(1, keepdim=True)


def pkt_loss(v_s: Tensor, v_t: Tensor) -> Tensor:
    """The mean over B^2 of P_t log(P_t / P_s), P the affinities; [B, D_s], [B, D_t], in nats.

    1e-7 is added to both in the logarithm.
    """
    p_s, p_t = affinities(v_s), affinities(v_t)
    return (p_t * ((p_t + EPS).log() - (p_s + EPS).log())).mean()


class PKT(Method):
    """L = CE(z_s, y) + beta PKT(v_s, v_t), v the pooled vectors."""

    class Config(Frozen):
        """RepDistiller's value for CIFAR-100."""

        beta: float = Field(30_000.0, ge=0)  # weight of the divergence

    paper = Paper(
        "Learning Deep Representations with Probabilistic Knowledge Transfer", "Passalis and Tefas", "ECCV", 2018
    )
    needs = frozenset({"pooled"})
    min_batch = 2
    search_space: ClassVar[Space] = {"beta": Range(3000, 300_000)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, pkt}."""
        pkt = pkt_loss(student.pooled, given(teacher).pooled)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "pkt": self.config.beta * pkt}
