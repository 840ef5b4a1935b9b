"""DGKD: Densely Guided Knowledge Distillation using Multiple Teacher Assistants (Son et al., ICCV 2021).

The authors' code divides the divergence by the number of classes as well (KLDivLoss with reduction "mean") and trains
without cross-entropy; here the sum over the classes is the default, as for all other methods. arXiv:2009.08825.
"""

from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from kdtrain.config import ConfigError, Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.kd import kd_loss
from kdtrain.models.outputs import Outputs


def kept(members: int, drop: int) -> list[int]:
    """The members left in one step, ascending: all but `drop` drawn at random, one at least.

    Drawn by torch's generator of the CPU; nothing is drawn where nothing can be dropped.
    """
    left = max(1, members - drop)
    return sorted(torch.randperm(members)[:left].tolist()) if left < members else list(range(members))


class DGKD(Method):
    """L = (1 - lam) CE(z_s, y) + lam sum_m KL_tau(z_s, z_m), m the teacher and the assistants but `drop` of them.

    Which are dropped is drawn in each step. Each assistant is itself distilled so, by the teacher and the assistants
    before it.
    """

    class Config(Frozen):
        """The authors' values for CIFAR-100, where the plain networks of the paper have 3 assistants."""

        assistants: tuple[str, ...] = ()  # architectures between teacher and student, largest first
        pupil: bool = False  # whether the student is the first assistant, which has none before it
        lam: float = Field(1.0, ge=0, le=1)  # weight of the distillation; 1: no cross-entropy
        tau: float = Field(5.0, gt=0)
        drop: int = Field(1, ge=0)  # members left out of each step, never all of them
        reduction: Literal["batchmean", "mean"] = "batchmean"  # "mean": divided by the number of classes, too

        @model_validator(mode="after")
        def _assistants_are_clear(self) -> Self:
            if len(set(self.assistants)) < len(self.assistants):
                raise ValueError("assistants must name each architecture once")
            if self.pupil and self.assistants:
                raise ValueError("pupil must be false where assistants are named")
            return self

    paper = Paper("Densely Guided Knowledge Distillation using Multiple Teacher Assistants", "Son et al.", "ICCV", 2021)
    needs = frozenset({"logits"})
    search_space: ClassVar[Space] = {"lam": Range(0.1, 1), "tau": Range(1, 20)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if not config.assistants and not config.pupil:
            raise ConfigError(
                "dgkd.assistants must name at least one architecture between teacher and student, largest first, "
                "e.g. ['resnet44', 'resnet32'], but got none."
            )

    @classmethod
    def assistants(cls, config: Any) -> tuple[str, ...]:
        """Those that the Config names."""
        names: tuple[str, ...] = config.assistants
        return names

    @classmethod
    def assistant_params(cls, config: Any, place: int) -> dict[str, Any]:
        """The assistants before that one; the first is the teacher's own pupil."""
        return {"assistants": list(config.assistants[:place]), "pupil": place == 0}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{dgkd}, with lam below 1 {ce, dgkd}."""
        config, z_s = self.config, student.logits
        members = [given(teacher).logits, *(outputs.logits for outputs in batch.assistants)]
        losses = [kd_loss(z_s, members[i], config.tau) for i in kept(len(members), config.drop)]
        dgkd = torch.stack(losses).sum() / (z_s.shape[1] if config.reduction == "mean" else 1)
        terms = {"dgkd": config.lam * dgkd}
        if config.lam < 1:
            terms["ce"] = (1 - config.lam) * F.cross_entropy(z_s, batch.labels)
        return terms
