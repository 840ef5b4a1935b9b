"""VID: Variational Information Distillation for Knowledge Transfer (Ahn et al., CVPR 2019, arXiv:1904.05835)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.maps import adapted
from kdtrain.models.outputs import Outputs

FLOOR = 1e-5  # of the variances


class Variational(nn.Module):
    """A Gaussian of the teacher's map given the student's, of one layer.

    mu is a stack of three 1 x 1 convolutions; the variance is one number a channel of the teacher.
    """

    def __init__(self, c_s: int, c_t: int, variance: float) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(c_s, c_t, 1, bias=False), nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False), nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
        )  # fmt: skip
        self.rho = nn.Parameter(torch.full((c_t,), math.log(math.expm1(variance - FLOOR))))

    def variance(self) -> Tensor:
        """sigma^2 = log(1 + e^rho) + 1e-5 of each channel: [C_t]."""
        return F.softplus(self.rho) + FLOOR

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """The mean over all elements of -log N(f_t; mu(f_s), sigma^2), without its constant."""
        f_s, f_t = adapted(f_s, f_t)
        return gaussian_nll(self.regressor(f_s), f_t, self.variance())


def gaussian_nll(mu: Tensor, f_t: Tensor, variance: Tensor) -> Tensor:
    """The mean of ((mu - f_t)^2 / sigma^2 + log sigma^2) / 2; mu, f_t: [B, C, H, W], variance: [C]."""
    error = (mu - f_t).square().mean((0, 2, 3))
    return (error / variance + variance.log()).mean() / 2


class VID(Method):
    """L = CE(z_s, y) + beta sum over the stages of -log q(f_t | f_s), q a trained Gaussian for each stage.

    The variances are trained with the regressors. Stages are paired from the first; those of the longer network that
    are left over take no part. The term can be negative.
    """

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100."""

        beta: float = Field(1.0, ge=0)  # weight of the variational term
        variance: float = Field(5.0, ge=1e-3, le=100)  # sigma^2 at the start

    paper = Paper("Variational Information Distillation for Knowledge Transfer", "Ahn et al.", "CVPR", 2019)
    needs = frozenset({"stages"})
    search_space: ClassVar[Space] = {"beta": Range(0.1, 10)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        pairs = zip(setting.student_shapes.stages, given(setting.teacher_shapes).stages, strict=False)
        self.layers = nn.ModuleList(Variational(f_s.shape[1], f_t.shape[1], config.variance) for f_s, f_t in pairs)

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, vid}."""
        layers = zip(self.layers, student.stages, given(teacher).stages, strict=False)
        vid = sum((layer(f_s, f_t) for layer, f_s, f_t in layers), student.logits.new_zeros(()))
        return {"ce": F.cross_entropy(student.logits, batch.labels), "vid": self.config.beta * vid}
