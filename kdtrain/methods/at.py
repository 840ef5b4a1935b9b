"""AT: Paying More Attention to Attention (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928).

The authors' code and RepDistiller, which made the published CIFAR-100 rows, compare the attention maps by their mean
squared difference; that is the default. The paper's equation 2 has the Euclidean norm of each sample's difference.
"""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, linalg

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.maps import lowered
from kdtrain.models.outputs import Outputs


def attention(f: Tensor, height: int) -> Tensor:
    """The mean over the channels of f^2, flattened to unit length: [B, C, H, W] -> [B, HW].

    A map higher than `height` is first averaged down to it. The paper's sum over the channels gives the same after the
    normalisation.
    """
    return F.normalize(lowered(f, height).square().mean(1).flatten(1), dim=1)


def at_loss(a_s: Tensor, a_t: Tensor, variant: Literal["code", "paper"] = "code") -> Tensor:
    """The difference d of the attention maps of one layer, [B, HW] both.

    "code": the mean of d^2 over B and HW. "paper": the sum over the batch of ||d_b||_2 divided by 2 B HW, which is
    equation 2 with its factor 1/2 and its weight, 10^3 over the number of elements, left to beta.
    """
    if variant == "code":
        return F.mse_loss(a_s, a_t)
    norms: Tensor = linalg.vector_norm(a_s - a_t, dim=1)
    return norms.sum() / (2 * a_s.numel())


class AT(Method):
    """L = CE(z_s, y) + beta sum over the stages of at_loss(attention of f_s, attention of f_t).

    Stages are paired from the first; those of the longer network that are left over take no part. Of two maps the
    higher one is averaged down to the other.
    """

    class Config(Frozen):
        """RepDistiller's value for CIFAR-100; the paper's beta is the same."""

        beta: float = Field(1000.0, ge=0)  # weight of the attention term
        variant: Literal["code", "paper"] = "code"  # squared difference, or its norm of each sample

    paper = Paper(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention "
        "Transfer", "Zagoruyko and Komodakis", "ICLR", 2017,
    )  # fmt: skip
    needs = frozenset({"digest"})
    search_space: ClassVar[Space] = {"beta": Range(100, 10_000)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        stages = zip(setting.student_shapes.stages, given(setting.teacher_shapes).stages, strict=False)
        self.heights = [min(f_s.shape[2], f_t.shape[2]) for f_s, f_t in stages]

    @classmethod
    def maps(cls, config: Any) -> frozenset[str]:
        """The stages."""
        return frozenset({"stages"})

    def digests(self) -> tuple[str, ...]:
        """The teacher's attention maps, each with its stage and height: `at:STAGE:HEIGHT`."""
        return tuple(f"at:{i}:{height}" for i, height in enumerate(self.heights))

    @classmethod
    def digest(cls, name: str, teacher: Outputs) -> Tensor:
        """An attention map [B, HW]."""
        _, stage, height = name.split(":")
        return attention(teacher.stages[int(stage)], int(height))

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, at}."""
        at = student.logits.new_zeros(())
        for name in self.digests():
            at = at + at_loss(self.digest(name, student), given(teacher).digests[name], self.config.variant)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "at": self.config.beta * at}
