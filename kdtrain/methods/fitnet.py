"""FitNet: Hints for Thin Deep Nets (Romero et al., ICLR 2015, arXiv:1412.6550), in one stage.

The published CIFAR-100 rows come from RepDistiller's variant, which adds the hint loss to the
cross-entropy for the whole run where the paper trains the hint first; this is that variant.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import ConfigError, Frozen
from kdtrain.methods.base import Batch, Method, Setting, given
from kdtrain.models.outputs import Outputs


def conv_regressor(student: tuple[int, int], teacher: tuple[int, int]) -> nn.Sequential:
    """A convolution from the student's map to the shape of the teacher's, then BN and ReLU.

    student, teacher: (channels, height). Raises ConfigError where no single convolution fits:
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
        raise ConfigError(f"fitnet needs a student map at least half as high as the teacher's, but got {s} and {t}.")
    return nn.Sequential(conv, nn.BatchNorm2d(c_t), nn.ReLU())


def hint_loss(regressed: Tensor, f_t: Tensor) -> Tensor:
    """The mean over all elements of (r(f_s) - f_t)^2; both [B, C, H, W]."""
    return F.mse_loss(regressed, f_t)


class FitNet(Method):
    """L = CE(z_s, y) + beta mean((r(f_s) - f_t)^2), f the maps of one stage, r a trained regressor."""

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100."""

        beta: float = Field(100.0, ge=0)  # weight of the hint term
        hint: int = Field(2, ge=1)  # stage, 1-based

    needs = frozenset({"stages"})

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        maps = setting.student_shapes.stages, given(setting.teacher_shapes).stages
        if config.hint > min(map(len, maps)):
            raise ConfigError(
                f"fitnet.hint must be a stage of both networks, but got {config.hint} of {min(map(len, maps))}."
            )
        f_s, f_t = (stages[config.hint - 1] for stages in maps)
        self.regressor = conv_regressor((f_s.shape[1], f_s.shape[2]), (f_t.shape[1], f_t.shape[2]))

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, hint}."""
        stage = self.config.hint - 1
        hint = hint_loss(self.regressor(student.stages[stage]), given(teacher).stages[stage])
        return {"ce": F.cross_entropy(student.logits, batch.labels), "hint": self.config.beta * hint}
