"""FitNet: Hints for Thin Deep Nets (Romero et al., ICLR 2015, arXiv:1412.6550).

The published CIFAR-100 rows come from RepDistiller's variant ("code", the default), which adds the hint loss to the
cross-entropy for the whole run; the paper trains the hint alone first ("paper").
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import ConfigError, Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Groups, Method, Paper, Pretraining, Range, Setting, Space, given
from kdtrain.models.outputs import Outputs


def conv_regressor(
    student: tuple[int, int], teacher: tuple[int, int], method: str = "fitnet", relu: bool = True
) -> nn.Sequential:
    """A convolution from the student's map to the shape of the teacher's, then BN and, with `relu`, ReLU.

    student, teacher: (channels, height). Raises ConfigError, which names `method`, where no single convolution fits:
    a student map smaller than the teacher's by another factor than 2.
    """
    (c_s, s), (c_t, t) = student, teacher
    conv: nn.Module
    if s == 2 * t:
        conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
    elif 2 * s == t:
        conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
    elif s >= t:
        conv = nn.Conv2d(c_s, c_t, 1 + s - t)
    else:
        raise ConfigError(f"{method} needs a student map at least half as high as the teacher's, but got {s} and {t}.")
    return nn.Sequential(conv, nn.BatchNorm2d(c_t), *([nn.ReLU()] if relu else []))


def hint_loss(regressed: Tensor, f_t: Tensor) -> Tensor:
    """The mean over all elements of (r(f_s) - f_t)^2; both [B, C, H, W]."""
    return F.mse_loss(regressed, f_t)


class FitNet(Method):
    """L = CE(z_s, y) + beta mean((r(f_s) - f_t)^2), f the maps of one stage, r a trained regressor.

    In the paper's variant the second term alone trains r and the student up to that stage first, then CE alone the
    student.
    """

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100."""

        beta: float = Field(100.0, ge=0)  # weight of the hint term
        hint: int = Field(2, ge=1)  # stage, 1-based
        variant: Literal["code", "paper"] = "code"
        pretrain_epochs: Epochs = Field(0.125, gt=0)  # of the paper's first stage, before the recipe's: 30 of 240

    paper = Paper("FitNets: Hints for Thin Deep Nets", "Romero et al.", "ICLR", 2015)
    needs = frozenset({"stages"})
    search_space: ClassVar[Space] = {"beta": Range(10, 1000)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        maps = setting.student_shapes.stages, given(setting.teacher_shapes).stages
        if config.hint > min(map(len, maps)):
            raise ConfigError(
                f"fitnet.hint must be a stage of both networks, but got {config.hint} of {min(map(len, maps))}."
            )
        f_s, f_t = (stages[config.hint - 1] for stages in maps)
        self.regressor = conv_regressor((f_s.shape[1], f_s.shape[2]), (f_t.shape[1], f_t.shape[2]))
        self.pretrain_epochs = part_of(config.pretrain_epochs, setting.epochs)
        self.guided = [module for part in setting.student.trunk[: config.hint + 1] for module in part]  # up to the hint

    def param_groups(self) -> Groups:
        """The regressor; in the paper's variant nothing, for it is trained in the first stage alone."""
        return [] if self.config.variant == "paper" else super().param_groups()

    @property
    def teacher_in_loss(self) -> bool:
        """Whether the hint is part of the loss."""
        return bool(self.config.variant == "code")

    def pretraining(self) -> Pretraining | None:
        """The paper's first stage: the regressor and the student up to the hint."""
        if self.config.variant != "paper":
            return None
        return Pretraining(self.pretrain_epochs, [self.regressor, *self.guided])

    def pretrain_loss(self, batch: Batch, student: Outputs | None, teacher: Outputs | None) -> dict[str, Tensor]:
        """{hint}."""
        return {"hint": self._hint(given(student), given(teacher))}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, hint}; in the paper's variant {ce}."""
        ce = F.cross_entropy(student.logits, batch.labels)
        if self.config.variant == "paper":
            return {"ce": ce}
        return {"ce": ce, "hint": self._hint(student, given(teacher))}

    def _hint(self, student: Outputs, teacher: Outputs) -> Tensor:
        """The weighted term."""
        stage = self.config.hint - 1
        weighted: Tensor = self.config.beta * hint_loss(self.regressor(student.stages[stage]), teacher.stages[stage])
        return weighted
