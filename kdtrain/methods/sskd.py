"""SSKD: Knowledge Distillation Meets Self-Supervision (Xu et al., ECCV 2020, arXiv:2006.07114).

This is the authors' code, which turns images by 90, 180 and 270 degrees and trains the teacher's projection without
temperature; the paper names three more transformations.
"""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Groups, Method, Paper, Pretraining, Range, Setting, Space, given
from kdtrain.methods.kd import kl_per_sample
from kdtrain.models.outputs import Outputs

TURNS = 3


def similarities(projected: Tensor, n: int) -> Tensor:
    """Cosines of the turned images with the upright ones, which are the first n rows: [4n, D] -> [3n, n]."""
    unit = F.normalize(projected, dim=1)
    return unit[n:] @ unit[:n].T


def ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """How many entries of each row exceed the target's: [R, K], [R] -> [R]; 0 where the target is on top."""
    return (scores > scores.gather(1, targets[:, None])).sum(1)


def selected(rank: Tensor, ratio: float) -> Tensor:
    """A mask [R] of the rows with rank 0 and of int(ratio W) others out of W, those of lowest rank.

    Of equal ranks the earlier rows are chosen.
    """
    wrong = (rank > 0).sum()
    kept = len(rank) - wrong + (ratio * wrong.double()).long()
    return rank.argsort(stable=True).argsort() < kept


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the values [R] that the mask [R] chooses; 0 if it chooses none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def projection(width: int) -> nn.Sequential:
    """The head on pooled features [B, width] whose outputs are compared."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class SSKD(Method):
    """L = gamma CE + alpha KL_tau on upright images, alpha_turned KL_tau on turned ones, beta KL of similarities.

    Similarities are those of turned images with the upright ones of the batch, after a projection. The last two
    terms are means over rows that the teacher gets right and the least wrong others, see `selected`. The teacher's
    projection is trained first, to tell for each turned image which upright one it is.
    """

    class Config(Frozen):
        """The authors' values for CIFAR-100."""

        gamma: float = Field(0.1, ge=0)  # weight of the cross-entropy
        alpha: float = Field(0.9, ge=0)  # weight of the logits of upright images
        alpha_turned: float = Field(2.7, ge=0)  # weight of the logits of turned images
        beta: float = Field(10.0, ge=0)  # weight of the similarities
        tau: float = Field(4.0, gt=0)
        tau_similarity: float = Field(0.5, gt=0)
        keep_turned: float = Field(1.0, ge=0, le=1)  # share of the wrong rows that count, of logits
        keep_similarity: float = Field(0.75, ge=0, le=1)  # and of similarities
        # The stage of the teacher's projection: epochs, or their ratio to all epochs (60 beside 240).
        pretrain_epochs: Annotated[Epochs, Field(gt=0)] = 0.25
        pretrain_lr: float = Field(0.05, gt=0)

    paper = Paper("Knowledge Distillation Meets Self-Supervision", "Xu et al.", "ECCV", 2020)
    needs = frozenset({"logits", "pooled"})
    min_batch = 2
    rotated = True
    search_space: ClassVar[Space] = {
        "alpha": Range(0.09, 9), "alpha_turned": Range(0.27, 27), "beta": Range(1, 100), "tau": Range(1, 20)
    }  # fmt: skip

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.epochs = part_of(config.pretrain_epochs, setting.epochs)
        self.projection_s = projection(setting.student_shapes.pooled.shape[1])
        self.projection_t = projection(given(setting.teacher_shapes).pooled.shape[1])

    def param_groups(self) -> Groups:
        """The student's projection."""
        return [{"params": list(self.projection_s.parameters())}]

    def pretraining(self) -> Pretraining:
        """The stage that trains the teacher's projection: the learning rate falls after half and 3/4 of it."""
        milestones = part_of(0.5, self.epochs), part_of(0.75, self.epochs)
        return Pretraining(self.epochs, [self.projection_t], self.config.pretrain_lr, milestones, student=False)

    def pretrain_loss(self, batch: Batch, student: Outputs | None, teacher: Outputs | None) -> dict[str, Tensor]:
        """{projection}: the cross-entropy of the similarities to the upright image of each turned one."""
        n = len(batch.labels)
        scores = similarities(self.projection_t(given(teacher).pooled), n)
        return {"projection": F.cross_entropy(scores, _origins(batch))}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, upright, turned, similarity}."""
        config, n = self.config, len(batch.labels)
        return {
            "ce": config.gamma * F.cross_entropy(student.logits[:n], batch.labels),
            **{name: term.mean() for name, term in self.per_sample(batch, student, teacher).items()},
            "similarity": config.beta * self._similarity(batch, student, given(teacher)),
        }

    def per_sample(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{upright, turned}; of the turned images those not selected are 0, and the mean is over the others."""
        config, n, z_t = self.config, len(batch.labels), given(teacher).logits
        kl = kl_per_sample(student.logits, z_t, config.tau)
        chosen = selected(ranks(z_t[n:], batch.labels.repeat(TURNS)), config.keep_turned)
        share = chosen.sum().clamp(min=1) / len(chosen)
        return {"upright": config.alpha * kl[:n], "turned": config.alpha_turned * kl[n:] * chosen / share}

    def _similarity(self, batch: Batch, student: Outputs, teacher: Outputs) -> Tensor:
        n = len(batch.labels)
        of_student = similarities(self.projection_s(student.pooled), n)
        with torch.no_grad():
            of_teacher = similarities(self.projection_t(teacher.pooled), n)
        chosen = selected(ranks(of_teacher, _origins(batch)), self.config.keep_similarity)
        return mean_of(kl_per_sample(of_student, of_teacher, self.config.tau_similarity), chosen)


def _origins(batch: Batch) -> Tensor:
    """For each turned image the place of its upright one in the batch: [3B]."""
    return torch.arange(len(batch.labels), device=batch.labels.device).repeat(TURNS)
