"""AT: Paying More Attention to Attention (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928).

The authors' code and RepDistiller, which made the published CIFAR-100 rows, compare the attention maps by their mean
squared difference; that is the default. The paper's equation 2 has the Euclidean norm of each sample's difference.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, linalg

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space, given
from kdtrain.methods.maps import adapted
from kdtrain.models.outputs import Outputs


def attention(f: Tensor) -> Tensor:
    """The mean over the channels of f^2, flattened to unit length: [B, C, H, W] -> [B, HW].

    The paper's sum over the channels gives the same after the normalisation.
    """
    return F.normalize(f.square().mean(1).flatten(1), dim=1)


def at_loss(f_s: Tensor, f_t: Tensor, variant: Literal["code", "paper"] = "code") -> Tensor:
    """The difference d [B, HW] of the attention maps of one layer; the higher map is pooled to the lower one first.

    "code": the mean of d^2 over B and HW. "paper": the sum over the batch of ||d_b||_2 divided by 2 B HW, which is
    equation 2 with its factor 1/2 and its weight, 10^3 over the number of elements, left to beta.
    f_s: [B, C_s, H, W], f_t: [B, C_t, H', W'].
    """
    a_s, a_t = (attention(f) for f in adapted(f_s, f_t))
    if variant == "code":
        return F.mse_loss(a_s, a_t)
    norms: Tensor = linalg.vector_norm(a_s - a_t, dim=1)
    return norms.sum() / (2 * a_s.numel())


class AT(Method):
    """L = CE(z_s, y) + beta sum over the stages of at_loss(f_s, f_t).

    Stages are paired from the first; those of the longer network that are left over take no part.
    """

    class Config(Frozen):
        """RepDistiller's value for CIFAR-100; the paper's beta is the same."""

        beta: float = Field(1000.0, ge=0)  # weight of the attention term
        variant: Literal["code", "paper"] = "code"  # squared difference, or its norm of each sample

    paper = Paper(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention "
        "Transfer", "Zagoruyko and Komodakis", "ICLR", 2017,
    )  # fmt: skip
    needs = frozenset({"stages"})
    search_space: ClassVar[Space] = {"beta": Range(100, 10_000)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, at}."""
        layers = zip(student.stages, given(teacher).stages, strict=False)
        at = sum((at_loss(f_s, f_t, self.config.variant) for f_s, f_t in layers), student.logits.new_zeros(()))
        return {"ce": F.cross_entropy(student.logits, batch.labels), "at": self.config.beta * at}
