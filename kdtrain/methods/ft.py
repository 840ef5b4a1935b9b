"""FT: Network Compression via Factor Transfer (Kim et al., NeurIPS 2018, arXiv:1802.04977).

The published CIFAR-100 rows come from RepDistiller's variant ("code", the default), which compares the mean over the
channels of the squared factors; the paper compares the factors themselves ("paper").
"""

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Groups, Method, Paper, Pretraining, Range, Setting, Space, given
from kdtrain.methods.maps import adapted
from kdtrain.models.outputs import Outputs
from kdtrain.models.resnet import ResNet
from kdtrain.models.wrn import WideResNet

RESNET_LR = 0.01  # of the first stage in RepDistiller if the student is a ResNet or a wide one


def factor_loss(f_s: Tensor, f_t: Tensor, variant: str = "code") -> Tensor:
    """The mean absolute difference of q(f_s) and q(f_t), after the higher map was averaged down to the other.

    q is the map flattened and divided by its norm, image by image; for "code" of the mean over the channels of f^2.
    f_s: [B, C, H, W], f_t: [B, C', H', W'] with C = C' for "paper". Returns a scalar without unit.
    """
    maps = adapted(f_s, f_t)
    if variant == "code":
        maps = maps[0].square().mean(1), maps[1].square().mean(1)
    q_s, q_t = (F.normalize(f.flatten(1), dim=1) for f in maps)
    return F.l1_loss(q_s, q_t)


class Paraphraser(nn.Module):
    """An autoencoder of maps with C channels; its code, of C' channels, are the teacher's factors."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factors, norm=False)
        layers: list[nn.Module] = []
        for c_in, c_out in ((factors, factors), (factors, channels), (channels, channels)):
            layers += [nn.ConvTranspose2d(c_in, c_out, 3, padding=1), nn.LeakyReLU(0.1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, f: Tensor) -> Tensor:
        """The reconstruction; [B, C, H, W] -> [B, C, H, W]."""
        reconstructed: Tensor = self.decoder(self.encoder(f))
        return reconstructed


class FT(Method):
    """First L = mean((P(f_t) - f_t)^2), then L = CE(z_s, y) + beta mean |q(T(f_s)) - q(E(f_t))|.

    f are the last maps, P the paraphraser, E its encoder, T the translator, q that of `factor_loss`. The first stage
    trains P, the second T and the student.
    """

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100."""

        beta: float = Field(200.0, ge=0)  # weight of the factor term
        rate: float = Field(0.5, gt=0)  # channels of the factors relative to those of the teacher's map
        variant: Literal["code", "paper"] = "code"  # what is compared, see factor_loss
        pretrain_epochs: Epochs = Field(0.125, gt=0)  # of the first stage, before the recipe's: 30 of 240
        # Learning rate of the first stage. None: 0.01 if the student is a ResNet or a wide one, else the recipe's
        pretrain_lr: float | None = Field(None, gt=0)

    paper = Paper(
        "Paraphrasing Complex Network: Network Compression via Factor Transfer", "Kim et al.", "NeurIPS", 2018
    )
    needs = frozenset({"stages"})
    search_space: ClassVar[Space] = {"beta": Range(20, 2000)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        c_s, c_t = setting.student_shapes.stages[-1].shape[1], given(setting.teacher_shapes).stages[-1].shape[1]
        factors = max(1, int(config.rate * c_t))
        self.paraphraser = Paraphraser(c_t, factors)
        self.translator = _encoder(c_s, factors, norm=True)
        self.pretrain_epochs = part_of(config.pretrain_epochs, setting.epochs)
        self.lr = config.pretrain_lr
        if self.lr is None and isinstance(setting.student, ResNet | WideResNet):
            self.lr = RESNET_LR

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the paraphraser is in train mode in the first stage only, whose loop sets it for it."""
        super().train(mode)
        self.paraphraser.eval()
        return self

    def param_groups(self) -> Groups:
        """The translator; the paraphraser is trained in the first stage alone."""
        return [{"params": list(self.translator.parameters())}]

    def pretraining(self) -> Pretraining:
        """The paraphraser, on the teacher's maps."""
        return Pretraining(self.pretrain_epochs, [self.paraphraser], self.lr, student=False)

    def pretrain_loss(self, batch: Batch, student: Outputs | None, teacher: Outputs | None) -> dict[str, Tensor]:
        """{reconstruction}."""
        f_t = given(teacher).stages[-1]
        return {"reconstruction": F.mse_loss(self.paraphraser(f_t), f_t)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, ft}."""
        with torch.no_grad():
            factors = self.paraphraser.encoder(given(teacher).stages[-1])
        ft = factor_loss(self.translator(student.stages[-1]), factors, self.config.variant)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "ft": self.config.beta * ft}


def _encoder(c_in: int, c_out: int, norm: bool) -> nn.Sequential:
    """Three 3 x 3 convolutions, c_in -> c_in -> c_out -> c_out, each with leaky ReLU, with `norm` after BatchNorm."""
    layers: list[nn.Module] = []
    for sizes in ((c_in, c_in), (c_in, c_out), (c_out, c_out)):
        layers.append(nn.Conv2d(*sizes, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(sizes[1]))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)
