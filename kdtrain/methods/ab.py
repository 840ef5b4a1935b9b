"""AB: Knowledge Transfer via Distillation of Activation Boundaries (Heo et al., AAAI 2019, arXiv:1811.03233).

This is RepDistiller's code, which produced the published CIFAR-100 rows. It differs in one thing: for the maps of a
wide ResNet before their ReLU, RepDistiller calls the BatchNorm after each stage a second time, so that in train mode
its running statistics move twice a step; here they move once (see kdtrain.models.wrn).
"""

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import ConfigError, Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Groups, Method, Paper, Pretraining, Range, Setting, Space, given
from kdtrain.methods.fitnet import conv_regressor
from kdtrain.models.outputs import Outputs


def boundary_loss(s: Tensor, t: Tensor, margin: float = 1.0) -> Tensor:
    """The squared hinge that pushes s beyond the margin on the side of zero on which t is, summed over all elements.

    (s + margin)^2 where t <= 0 and s > -margin, (margin - s)^2 where t > 0 and s <= margin, else 0. s, t: of one
    shape. Returns a scalar in squared units of s.
    """
    return F.relu(torch.where(t > 0, -s, s) + margin).square().sum()


class AB(Method):
    """First L = beta (1/B) sum_i 2^(i-n) l(r_i(f_s), f_t), then L = CE(z_s, y).

    f is the map of stage i of n before its last ReLU, l the `boundary_loss`, r_i a convolution with BN where the maps
    differ in shape. The first stage trains the r_i and the student's stem and stages, the second the student.
    """

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100."""

        beta: float = Field(0.003, gt=0)  # weight of the loss of the first stage
        margin: float = Field(1.0, gt=0)
        pretrain_epochs: Epochs = Field(0.125, gt=0)  # of the first stage, before the recipe's: 30 of 240

    paper = Paper(
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        "Heo et al.", "AAAI", 2019,
    )  # fmt: skip
    needs = frozenset({"preact"})
    search_space: ClassVar[Space] = {"beta": Range(0.0003, 0.03)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        maps_s, maps_t = setting.student_shapes.preact, given(setting.teacher_shapes).preact
        if len(maps_s) != len(maps_t):
            raise ConfigError(
                f"ab needs networks with equal numbers of stages, but got {len(maps_s)} and {len(maps_t)}."
            )
        self.connectors = nn.ModuleList(_connector(s, t) for s, t in zip(maps_s, maps_t, strict=True))
        self.pretrain_epochs = part_of(config.pretrain_epochs, setting.epochs)
        self.trunk = [module for part in setting.student.trunk for module in part]

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the connectors are in train mode in the first stage only, whose loop sets it for them."""
        super().train(mode)
        self.connectors.eval()
        return self

    def param_groups(self) -> Groups:
        """Nothing: the connectors are trained in the first stage alone."""
        return []

    @property
    def teacher_in_loss(self) -> bool:
        """False: the first stage alone looks at the teacher."""
        return False

    def pretraining(self) -> Pretraining:
        """The connectors, the student's stem and its stages."""
        return Pretraining(self.pretrain_epochs, [*self.connectors, *self.trunk])

    def pretrain_loss(self, batch: Batch, student: Outputs | None, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ab}."""
        maps_s, maps_t = given(student).preact, given(teacher).preact
        losses = [
            2.0 ** (i - len(maps_s)) * boundary_loss(connector(s), t, self.config.margin)
            for i, (connector, s, t) in enumerate(zip(self.connectors, maps_s, maps_t, strict=True), 1)
        ]
        return {"ab": self.config.beta * torch.stack(losses).sum() / len(batch.labels)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce}."""
        return {"ce": F.cross_entropy(student.logits, batch.labels)}


def _connector(s: Tensor, t: Tensor) -> nn.Module:
    """From the student's map to the shape of the teacher's."""
    (c_s, h_s), (c_t, h_t) = s.shape[1:3], t.shape[1:3]
    if (c_s, h_s) == (c_t, h_t):
        return nn.Identity()
    return conv_regressor((c_s, h_s), (c_t, h_t), "ab", relu=False)
