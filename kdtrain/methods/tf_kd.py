"""TF-KD: Revisiting KD via Label Smoothing Regularization (Yuan et al., CVPR 2020, arXiv:1909.11723).

This is the authors' code, in which the softmax of the virtual teacher is taken of its probabilities. The
code divides the KL by the number of classes, too, and multiplies it with a constant of each model; by
default the two cancel here.
"""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.kd import kd_loss
from kdtrain.models.outputs import Outputs

CORRECT = 0.99  # the virtual teacher's probability of the true class


def virtual_loss(z: Tensor, labels: Tensor, tau: float) -> Tensor:
    """(1/B) sum_b KL(softmax(u_b / tau) || softmax(z_b)), the virtual teacher's.

    u is 0.99 at the true class and 0.01 / (K - 1) elsewhere. z: [B, K], labels: [B]. In nats.
    """
    u = z.new_full(z.shape, (1 - CORRECT) / (z.shape[1] - 1)).scatter_(1, labels[:, None], CORRECT)
    return F.kl_div(F.log_softmax(z, dim=1), F.softmax(u / tau, dim=1), reduction="batchmean")


class TFKD(Method):
    """L = (1 - alpha) CE(z, y) + alpha (multiplier / K) KL for K classes.

    KL is "self": KL_tau(z, z_t) with a trained teacher of the student's own architecture; "reg": `virtual_loss`.
    """

    class Config(Frozen):
        """The authors' values for ResNet18."""

        variant: Literal["self", "reg"] = "self"
        alpha: float = Field(0.95, ge=0, le=1)  # weight of the distillation term; for "reg" 0.1 unless it is given
        tau: float = Field(6.0, gt=0)  # for "reg" 20 unless it is given
        multiplier: float | None = Field(None, ge=0)  # None: K; the authors' 50 (self), 100 (reg) of 100 classes

        @model_validator(mode="before")
        @classmethod
        def _choose_by_variant(cls, data: dict[str, Any]) -> dict[str, Any]:
            return {"alpha": 0.1, "tau": 20.0, **data} if data.get("variant") == "reg" else data

    paper = Paper("Revisiting Knowledge Distillation via Label Smoothing Regularization", "Yuan et al.", "CVPR", 2020)
    needs = frozenset({"logits"})
    search_space: ClassVar[Space] = {"alpha": Range(0.05, 1, log=False), "tau": Range(1, 20)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.scale = 1.0 if config.multiplier is None else config.multiplier / setting.num_classes

    @classmethod
    def needs_with(cls, config: Any) -> frozenset[str]:
        """A teacher's logits for "self"."""
        return cls.needs if config.variant == "self" else frozenset()

    @classmethod
    def self_taught(cls, config: Any) -> bool:
        """True for "self"."""
        return bool(config.variant == "self")

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, tf_kd}."""
        z, config = student.logits, self.config
        if config.variant == "self":
            kl = kd_loss(z, given(teacher).logits, config.tau)
        else:
            kl = virtual_loss(z, batch.labels, config.tau)
        ce = F.cross_entropy(z, batch.labels)
        return {"ce": (1 - config.alpha) * ce, "tf_kd": config.alpha * self.scale * kl}
