"""NST: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang and Wang, 2017, arXiv:1707.01219).

With the polynomial kernel of degree 2, as in the published CIFAR-100 rows (RepDistiller).
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.methods.maps import adapted
from kdtrain.models.outputs import Outputs


class Gram(torch.autograd.Function):
    """x x^T of x [B, C, N]. Its gradient (g + g^T) x takes one product, where autograd would take two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """[B, C, N] -> [B, C, C]."""
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """[B, C, C] -> [B, C, N]."""
        (x,), (g,) = ctx.saved_tensors, gradients
        product: Tensor = (g + g.mT) @ x
        return product


def mean_kernel(gram: Tensor, inverse_a: Tensor, inverse_b: Tensor) -> Tensor:
    """The mean over the batch and all pairs of channels of k(a_c, b_c') = (a_c . b_c')^2 of channels of unit length.

    gram: [B, C, C'] of the channels as they are, inverse_*: [B, C] and [B, C'], 1 / their squared lengths.
    """
    return (inverse_a * (gram.square() @ inverse_b[:, :, None])[:, :, 0]).sum() / gram.numel()


def inverse(squares: Tensor) -> Tensor:
    """1 / squared lengths; 0 for channels of length 0."""
    return squares.where(squares > 1e-24, math.inf).reciprocal()


def nst_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """The squared discrepancy mean k(t, t) + mean k(s, s) - 2 mean k(s, t) of two sets of channels, of one layer.

    Each channel has unit length over space; k is that of `mean_kernel`. The higher map is pooled to the lower one
    first. f_s: [B, C_s, H, W], f_t: [B, C_t, H', W'].
    """
    s, t = (f.flatten(2) for f in adapted(f_s, f_t))
    if s.shape[2] >= max(s.shape[1], t.shape[1]):
        # The sums of squares are divided by the lengths, not the large maps.
        ss, tt, st = Gram.apply(s), Gram.apply(t), s @ t.mT
        s_, t_ = (inverse(gram.diagonal(dim1=1, dim2=2)) for gram in (ss, tt))
        return mean_kernel(tt, t_, t_) + mean_kernel(ss, s_, s_) - 2 * mean_kernel(st, s_, t_)
    # The sum over all pairs of (a_c . b_c')^2 is the product of A^T A and B^T B, which are smaller here: [B, N, N].
    a, b = (f.mT @ (f * inverse(f.square().sum(2, keepdim=True))) / f.shape[1] for f in (s, t))
    return (a - b).square().sum((1, 2)).mean()


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
