"""DKD: Decoupled Knowledge Distillation (Zhao et al., CVPR 2022, arXiv:2203.08679)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.models.outputs import Outputs


def ramp(epoch: int, epochs: int) -> float:
    """min(epoch / epochs, 1): the factor of a term that grows linearly for so many epochs; 1 for none."""
    return min(epoch / epochs, 1.0) if epochs else 1.0


def relative_to_others(z: Tensor, labels: Tensor) -> Tensor:
    """Logits relative to those of the other classes, u = z - logsumexp_{c != y} z: [B, K], [B] -> [B, K].

    u_y is the log-odds of the label, log p_y - log(1 - p_y); every other u_c is the logarithm of the
    probability of c among the classes that are not the label. Finite however sure z is.
    """
    others = z.scatter(1, labels[:, None], -math.inf)
    return z - others.logsumexp(1, keepdim=True)


def others_probabilities(u: Tensor, labels: Tensor) -> Tensor:
    """The probabilities among the classes that are not the label, 0 for the label; of `relative_to_others`."""
    return u.scatter(1, labels[:, None], -math.inf).exp()


def decoupled_losses(z_s: Tensor, z_t: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, tau^2 times the batch's mean of two KL divergences, teacher || student, in nats.

    TCKD is between the pairs (p_y, 1 - p_y), NCKD between the probabilities among the other classes;
    p = softmax(z / tau). z_s, z_t: [B, K], labels: [B].
    """
    u_s, u_t = (relative_to_others(z / tau, labels) for z in (z_s, z_t))
    odds_s, odds_t = (u.gather(1, labels[:, None]) for u in (u_s, u_t))
    log_b_s, log_b_t = (F.logsigmoid(torch.cat([odds, -odds], dim=1)) for odds in (odds_s, odds_t))
    tckd = F.kl_div(log_b_s, log_b_t, reduction="batchmean", log_target=True)
    nckd = (others_probabilities(u_t, labels) * (u_t - u_s)).sum(1).mean()
    return tau**2 * tckd, tau**2 * nckd


class DKD(Method):
    """L = gamma CE(z_s, y) + min(epoch / warmup, 1) (alpha TCKD(z_s, z_t) + beta NCKD(z_s, z_t))."""

    class Config(Frozen):
        """The authors' values for CIFAR-100 and most pairs.

        beta is 6 for vgg13 -> vgg8 and MobileNetV2, wrn_40_2 -> wrn_16_2 and wrn_40_1; 2 for resnet56 -> resnet20
        and resnet110 -> resnet32. ImageNet: tau 1, warmup 1, beta 0.5 (ResNet-34 -> 18) or 2 (ResNet-50 -> MobileNet).
        """

        gamma: float = Field(1.0, ge=0)  # weight of the cross-entropy
        alpha: float = Field(1.0, ge=0)  # weight of the target class
        beta: float = Field(8.0, ge=0)  # weight of the other classes
        tau: float = Field(4.0, gt=0)
        warmup: Epochs = 20 / 240  # epochs in which both weights grow, or their share of all epochs

    paper = Paper("Decoupled Knowledge Distillation", "Zhao et al.", "CVPR", 2022)
    needs = frozenset({"logits"})
    search_space: ClassVar[Space] = {"alpha": Range(0.1, 10), "beta": Range(0.8, 80), "tau": Range(1, 20)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.warmup = part_of(config.warmup, setting.epochs)

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, tckd, nckd}."""
        config, factor = self.config, ramp(batch.epoch, self.warmup)
        tckd, nckd = decoupled_losses(student.logits, given(teacher).logits, batch.labels, config.tau)
        return {
            "ce": config.gamma * F.cross_entropy(student.logits, batch.labels),
            "tckd": factor * config.alpha * tckd,
            "nckd": factor * config.beta * nckd,
        }
