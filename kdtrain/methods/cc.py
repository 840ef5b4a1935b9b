"""CC: Correlation Congruence for Knowledge Distillation (Peng et al., ICCV 2019, arXiv:1904.01802).

The published CIFAR-100 rows come from RepDistiller's variant, the default, which compares neighbours in the batch. The
paper compares the matrices of a kernel over all pairs: `variant = "paper"`, with torchdistill's reduction and weight.
In both, both networks are seen through a trained linear layer, and nothing keeps the embeddings from collapsing.
They are not normalised.
"""

import math
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, linalg, nn

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.models.outputs import Outputs


def neighbour_loss(e_s: Tensor, e_t: Tensor) -> Tensor:
    """The mean over i of delta_i . delta_{i+1}, delta = |e_s - e_t|, of samples next to each other in the batch.

    e_s, e_t: [B, D]. 0 for one sample.
    """
    delta = (e_s - e_t).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


def taylor_kernel(e: Tensor, gamma_rbf: float) -> Tensor:
    """exp(-2 gamma) sum_{p=0..2} (2 gamma e_i . e_j)^p / p!: [B, D] -> [B, B].

    For vectors of length 1 it is the Gaussian kernel exp(-gamma ||e_i - e_j||^2) to second order.
    """
    x = 2 * gamma_rbf * (e @ e.T)
    return math.exp(-2 * gamma_rbf) * (1 + x + x.square() / 2)


def kernel_loss(e_s: Tensor, e_t: Tensor, gamma_rbf: float) -> Tensor:
    """||K_s - K_t||_F / B^2 of the kernels' matrices, the norm not squared; both [B, D]."""
    difference = taylor_kernel(e_s, gamma_rbf) - taylor_kernel(e_t, gamma_rbf)
    norm: Tensor = linalg.matrix_norm(difference)
    return norm / difference.numel()


class CC(Method):
    """L = CE(z_s, y) + beta CC(E_s(v_s), E_t(v_t)), E trained linear layers on the pooled vectors v.

    CC is `neighbour_loss`, for the variant "paper" `kernel_loss`.
    """

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100, and torchdistill's for ImageNet where the variant is the paper's."""

        beta: float = Field(0.02, ge=0)  # weight of the correlation term; for "paper" 0.003 unless it is given
        variant: Literal["code", "paper"] = "code"
        dimension: int = Field(128, ge=1)  # width of the embeddings
        gamma_rbf: float = Field(0.4, gt=0)  # of the Gaussian kernel; "paper" only

        @model_validator(mode="before")
        @classmethod
        def _weigh_by_variant(cls, data: dict[str, Any]) -> dict[str, Any]:
            return {"beta": 0.003, **data} if data.get("variant") == "paper" else data

    paper = Paper("Correlation Congruence for Knowledge Distillation", "Peng et al.", "ICCV", 2019)
    needs = frozenset({"pooled"})
    min_batch = 2
    search_space: ClassVar[Space] = {"beta": Range(0.002, 0.2)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.embed_s = nn.Linear(setting.student_shapes.pooled.shape[1], config.dimension)
        self.embed_t = nn.Linear(given(setting.teacher_shapes).pooled.shape[1], config.dimension)

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, cc}."""
        config, e_s, e_t = self.config, self.embed_s(student.pooled), self.embed_t(given(teacher).pooled)
        cc = neighbour_loss(e_s, e_t) if config.variant == "code" else kernel_loss(e_s, e_t, config.gamma_rbf)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "cc": config.beta * cc}
