"""RKD: Relational Knowledge Distillation (Park et al., CVPR 2019, arXiv:1904.05068)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.models.outputs import Outputs


def distances(e: Tensor) -> Tensor:
    """||e_i - e_j|| of all pairs: [B, D] -> [B, B]; exactly 0 and without gradient on the diagonal.

    Squares are at least 1e-12 elsewhere, so that the root has a gradient for equal vectors, too.
    """
    centred = e - e.mean(0).detach()  # changes no distance, and the squares lose fewer digits
    gram = centred @ centred.T
    norms = gram.diagonal()
    squares = (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=1e-12)
    own = torch.eye(len(e), dtype=torch.bool, device=e.device)
    return squares.sqrt().masked_fill(own, 0)


def scaled(d: Tensor) -> Tensor:
    """Distances [B, B] divided by their mean over the pairs of different samples; 0 for one sample."""
    pairs = max(len(d) * (len(d) - 1), 1)
    return d / (d.sum() / pairs).clamp(min=1e-12)


def angles(d: Tensor) -> Tensor:
    """The cosine of the angle at i between j and k, from distances by the law of cosines: [B, B] -> [B, B, B].

    (d_ij^2 + d_ik^2 - d_jk^2) / (2 d_ij d_ik); 0 where i is j or k, or equal to one of them.
    """
    squares = d.square()
    apart = d > 1e-6  # the least distance of different samples: those are equal
    inverse = d.where(apart, 1).reciprocal().where(apart, 0)
    dots = (squares[:, :, None] + squares[:, None, :] - squares) / 2
    return dots * inverse[:, :, None] * inverse[:, None, :]


def distance_loss(d_s: Tensor, d_t: Tensor) -> Tensor:
    """The mean over B^2 of the smooth L1 distance of the scaled distances; both [B, B]."""
    return F.smooth_l1_loss(scaled(d_s), scaled(d_t))


def angle_loss(d_s: Tensor, d_t: Tensor) -> Tensor:
    """The mean over B^3 of the smooth L1 distance of the angles' cosines; both [B, B] distances."""
    return F.smooth_l1_loss(angles(d_s), angles(d_t))


class RKD(Method):
    """L = CE(z_s, y) + beta (distance L_d + angle L_a), L_d and L_a of the distances between pooled vectors."""

    class Config(Frozen):
        """The authors' values, also RepDistiller's for CIFAR-100."""

        beta: float = Field(1.0, ge=0)  # weight of both terms
        distance: float = Field(25.0, ge=0)  # weight of the distances within
        angle: float = Field(50.0, ge=0)  # weight of the angles within

    paper = Paper("Relational Knowledge Distillation", "Park et al.", "CVPR", 2019)
    needs = frozenset({"pooled"})
    min_batch = 2
    search_space: ClassVar[Space] = {"beta": Range(0.1, 10)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, rkd_distance, rkd_angle}."""
        config, d_s, d_t = self.config, distances(student.pooled), distances(given(teacher).pooled.detach())
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "rkd_distance": config.beta * config.distance * distance_loss(d_s, d_t),
            "rkd_angle": config.beta * config.angle * angle_loss(d_s, d_t),
        }
