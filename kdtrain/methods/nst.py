"""NST: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang and Wang, 2017, arXiv:1707.01219).

With the polynomial kernel of degree 2, as in the published CIFAR-100 rows (RepDistiller).
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.methods.maps import adapted
from kdtrain.models.outputs import Outputs


def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The mean over the batch and all pairs of channels of k(a_c, b_c') = (a_c . b_c')^2; [B, C, N], [B, C', N]."""
    return (a @ b.mT).square().mean()


def nst_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """The squared discrepancy mean k(t, t) + mean k(s, s) - 2 mean k(s, t) of two sets of channels, of one layer.

    Each channel has unit length over space; k is that of `mean_kernel`. The higher map is pooled to the lower one
    first. f_s: [B, C_s, H, W], f_t: [B, C_t, H', W'].
    """
    s, t = (F.normalize(f.flatten(2), dim=2) for f in adapted(f_s, f_t))
    if s.shape[2] >= max(s.shape[1], t.shape[1]):
        return mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
    # The sum over all pairs of (a_c . b_c')^2 is the product of A^T A and B^T B, which are smaller here: [B, N, N].
    difference = s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]
    return difference.square().sum((1, 2)).mean()


class NST(Method):
    """L = CE(z_s, y) + beta sum over the stages of nst_loss(f_s, f_t).

    Stages are paired from the first; those of the longer network that are left over take no part.
    """

    class Config(Frozen):
        """RepDistiller's value for CIFAR-100."""

        beta: float = Field(50.0, ge=0)  # weight of the selectivity term

    paper = Paper(
        "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", "Huang and Wang", "arXiv", 2017
    )
    needs = frozenset({"stages"})
    search_space: ClassVar[Space] = {"beta": Range(5, 500)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, nst}."""
        layers = zip(student.stages, given(teacher).stages, strict=False)
        nst = sum((nst_loss(f_s, f_t) for f_s, f_t in layers), student.logits.new_zeros(()))
        return {"ce": F.cross_entropy(student.logits, batch.labels), "nst": self.config.beta * nst}
