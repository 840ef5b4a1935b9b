"""FSP: A Gift from Knowledge Distillation (Yim et al., CVPR 2017).

This is RepDistiller's code, which produced the published CIFAR-100 rows.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import ConfigError, Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Method, Paper, Pretraining, Range, Setting, Space, given
from kdtrain.methods.maps import adapted
from kdtrain.models.outputs import Outputs


def flow(bottom: Tensor, top: Tensor) -> Tensor:
    """The FSP matrix of two maps of one network: the mean over the pixels of top_c bottom_d.

    bottom: [B, D, H, W], top: [B, C, H', W']; the higher of the two is averaged down to the other. Returns [B, C, D].
    """
    bottom, top = adapted(bottom, top)
    return top.flatten(2) @ bottom.flatten(2).mT / (top.shape[2] * top.shape[3])


def fsp_loss(flows_s: Iterable[Tensor], flows_t: Iterable[Tensor]) -> Tensor:
    """The sum over the layers of the mean squared difference of their FSP matrices, [B, C_i, D_i] of both networks."""
    return torch.stack([F.mse_loss(g_s, g_t) for g_s, g_t in zip(flows_s, flows_t, strict=True)]).sum()


class FSP(Method):
    """First L = beta sum_i mean((G_i^s - G_i^t)^2), then L = CE(z_s, y).

    G_i is the FSP matrix of the maps i and i + 1 of the stem and the stages. The first stage trains the student's stem
    and stages, the second the student.
    """

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100."""

        beta: float = Field(1.0, gt=0)  # weight of the loss of the first stage
        pretrain_epochs: Epochs = Field(0.125, gt=0)  # of the first stage, before the recipe's: 30 of 240

    paper = Paper(
        "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        "Yim et al.", "CVPR", 2017,
    )  # fmt: skip
    needs = frozenset({"digest"})
    search_space: ClassVar[Space] = {"beta": Range(0.1, 10)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        c_s, c_t = (
            [f.shape[1] for f in (shapes.stem, *shapes.stages)]
            for shapes in (setting.student_shapes, given(setting.teacher_shapes))
        )
        if c_s != c_t:
            raise ConfigError(f"fsp needs equal channels of the stem and of every stage, but got {c_s} and {c_t}.")
        self.pretrain_epochs = part_of(config.pretrain_epochs, setting.epochs)
        self.trunk = [module for part in setting.student.trunk for module in part]
        self.layers = len(c_s) - 1

    @classmethod
    def maps(cls, config: Any) -> frozenset[str]:
        """The stages, and the stem."""
        return frozenset({"stages"})

    def digests(self) -> tuple[str, ...]:
        """The teacher's FSP matrices: `fsp:LAYER`."""
        return tuple(f"fsp:{i}" for i in range(self.layers))

    @classmethod
    def digest(cls, name: str, teacher: Outputs) -> Tensor:
        """The FSP matrix [B, C, D] of two maps that follow one another."""
        i = int(name.partition(":")[2])
        return flow(*(teacher.stem, *teacher.stages)[i : i + 2])

    @property
    def teacher_in_loss(self) -> bool:
        """False: the first stage alone looks at the teacher."""
        return False

    def pretraining(self) -> Pretraining:
        """The student's stem and stages."""
        return Pretraining(self.pretrain_epochs, self.trunk)

    def pretrain_loss(self, batch: Batch, student: Outputs | None, teacher: Outputs | None) -> dict[str, Tensor]:
        """{fsp}."""
        flows_s = [self.digest(name, given(student)) for name in self.digests()]
        flows_t = [given(teacher).digests[name] for name in self.digests()]
        return {"fsp": self.config.beta * fsp_loss(flows_s, flows_t)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce}."""
        return {"ce": F.cross_entropy(student.logits, batch.labels)}
