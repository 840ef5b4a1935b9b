"""CID: Comprehensive Knowledge Distillation with Causal Intervention (Deng and Zhang, NeurIPS 2021).

Where the paper and the authors' code differ, this is the code, which produced the published rows:
the context is not divided by the number of classes, its weights carry no gradient, the class term
looks at the classes with two samples or more in the batch, and the first epochs have no cross-entropy.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import ConfigError, Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Groups, Method, Setting, given
from kdtrain.methods.kd import kd_loss
from kdtrain.models.outputs import Outputs


def nm_mse(a: Tensor, b: Tensor) -> Tensor:
    """Norm-aware MSE: the mean over the batch of ||a - b||^2 / ||b||^2; both [B, D], b without zero rows."""
    return ((a - b).square().sum(1) / b.square().sum(1)).mean()


def class_relation_loss(v_s: Tensor, v_t: Tensor, labels: Tensor) -> Tensor:
    """The mean over classes k with n_k >= 2 samples of ||C_k^s - C_k^t||_F^2 / n_k^2; 0 without such a class.

    C_k holds the cosines between the pooled vectors of class k, the diagonal included.
    v_s: [B, D_s], v_t: [B, D_t], labels: [B]. Without unit.
    """
    n_s, n_t = F.normalize(v_s, dim=1), F.normalize(v_t, dim=1)
    same = labels[:, None] == labels[None, :]
    count = same.sum(1)  # n of each sample's class
    # Row i belongs to class y_i alone, so a row's weight 1/n^2 sums to the class's term.
    difference = ((n_s @ n_s.T - n_t @ n_t.T).square() * same).sum(1) / count.square()
    several = count >= 2
    classes = (several / count).sum()
    return (difference * several).sum() / classes.clamp(min=1)


def weighted_sums(v: Tensor, z: Tensor, labels: Tensor, tau: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """What one batch adds to the class centres: sum of w_i v_i, and of w_i, for each class.

    w_i = softmax(z_i / tau)[y_i]. v: [B, D], z: [B, K]. Returns [K, D] and [K].
    """
    w = F.softmax(z / tau, dim=1).gather(1, labels[:, None])
    sums = v.new_zeros(num_classes, v.shape[1]).index_add_(0, labels, w * v)
    return sums, v.new_zeros(num_classes).index_add_(0, labels, w[:, 0])


def centres_of(sums: Tensor, weights: Tensor) -> Tensor:
    """M_k = sum w_i v_i / sum w_i: [K, D], [K] -> [K, D]; zero for a class without weight."""
    return torch.where(weights[:, None] > 0, sums / weights[:, None], 0.0)


def context(z: Tensor, centres: Tensor, tau: float) -> Tensor:
    """J = softmax(z / tau) M without gradient to z: [B, K], [K, D] -> [B, D]."""
    return F.softmax(z.detach() / tau, dim=1) @ centres


class CID(Method):
    """L = CE(fc([v_s; J]), y) + KL_tau(z_s, z_t) + alpha SR + beta CR; no CE in the first epochs.

    SR = nm_mse(R(v_s), v_t) with a linear R, CR = class_relation_loss(v_s, v_t). J is the sample's
    class context over the centres M that the last epoch built. Prediction is by fc, the context
    classifier, so accuracy means nothing in the initial epochs, which do not train it.
    """

    class Config(Frozen):
        """The weights of the authors' resnet56 -> resnet20; their other pairs stand in the specs."""

        alpha: float = Field(10.0, ge=0)  # weight of the sample representation (the code's b)
        beta: float = Field(1.0, ge=0)  # weight of the class representation (the code's c)
        tau: float = Field(4.0, gt=0)
        # Epochs without cross-entropy, or their share of all epochs: 20 of 240. None: 0 without `inv`, else that.
        init_epochs: Epochs | None = None
        centre_momentum: float = Field(0.0, ge=0, lt=1)  # M <- u M + (1 - u) M_new
        # Ablations (CID Figure 6)
        sr: bool = True
        cr: bool = True
        inv: bool = True  # False: cross-entropy on the student's own classifier
        # "mse": squared error divided by the mean ||v_t||^2 of the training images, the same scale on average
        sr_loss: Literal["nm_mse", "mse"] = "nm_mse"

    needs = frozenset({"logits", "pooled"})
    nesterov = True

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        d_s = setting.student_shapes.pooled.shape[1]
        d_t = given(setting.teacher_shapes).pooled.shape[1]
        share = config.init_epochs if config.init_epochs is not None else (20 / 240 if config.inv else 0)
        self.init_epochs = part_of(share, setting.epochs)
        if self.init_epochs >= setting.epochs:
            raise ConfigError(
                f"cid needs an epoch after its {self.init_epochs} of init_epochs, but got epochs = {setting.epochs}."
            )
        self.regressor = nn.Linear(d_s, d_t) if config.sr else None
        self.classifier = nn.Linear(2 * d_s, setting.num_classes) if config.inv else None
        self.centres: Tensor  # M, used by the epoch under way
        self.register_buffer("centres", torch.zeros(setting.num_classes, d_s))
        self.sums: Tensor  # sum of w_i v_i of the epoch under way
        self.register_buffer("sums", torch.zeros(setting.num_classes, d_s))
        self.weights: Tensor  # sum of w_i
        self.register_buffer("weights", torch.zeros(setting.num_classes))
        self.mean_square: Tensor  # the mean of ||v_t||^2 over the training images, for sr_loss = "mse"
        self.register_buffer("mean_square", torch.ones(()))

    def param_groups(self) -> Groups:
        """The context classifier with the student's settings, R without weight decay."""
        groups: Groups = []
        if self.classifier is not None:
            groups.append({"params": list(self.classifier.parameters())})
        if self.regressor is not None:
            groups.append({"params": list(self.regressor.parameters()), "weight_decay": 0.0})
        return groups

    def prepare(self, batches: Iterable[tuple[Batch, Outputs | None]]) -> None:
        """Measure the mean ||v_t||^2 if the plain squared error needs it."""
        if self.config.sr and self.config.sr_loss == "mse":
            squares = torch.cat([given(teacher).pooled.square().sum(1) for _, teacher in batches])
            self.mean_square.copy_(squares.mean())

    def start_epoch(self, epoch: int) -> None:
        """Take over the centres that the last epoch built; in the initial epochs there are none."""
        first = max(self.init_epochs, 1) + 1  # the first epoch that has centres
        if epoch >= first:
            built = centres_of(self.sums, self.weights)
            u = self.config.centre_momentum if epoch > first else 0.0
            self.centres.copy_(u * self.centres + (1 - u) * built)
        self.sums.zero_()
        self.weights.zero_()

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{kl, sr, cr} in the initial epochs, then {ce, kl, sr, cr}."""
        config, teacher = self.config, given(teacher)
        terms = {"kl": kd_loss(student.logits, teacher.logits, config.tau)}
        if self.regressor is not None:
            terms["sr"] = config.alpha * self._sample_representation(student.pooled, teacher.pooled)
        if config.cr:
            terms["cr"] = config.beta * class_relation_loss(student.pooled, teacher.pooled, batch.labels)
        if batch.epoch > self.init_epochs:
            terms["ce"] = F.cross_entropy(self.predict(student), batch.labels)
        if config.inv:
            with torch.no_grad():
                size = len(self.weights)
                sums, weights = weighted_sums(student.pooled, teacher.logits, batch.labels, config.tau, size)
                self.sums += sums
                self.weights += weights
        return terms

    def predict(self, outputs: Outputs) -> Tensor:
        """The context classifier's logits; without `inv` the student's own."""
        if self.classifier is None:
            return outputs.logits
        j = context(outputs.logits, self.centres, self.config.tau)
        logits: Tensor = self.classifier(torch.cat([outputs.pooled, j], dim=1))
        return logits

    def _sample_representation(self, v_s: Tensor, v_t: Tensor) -> Tensor:
        regressed = self.regressor(v_s) if self.regressor is not None else v_s
        if self.config.sr_loss == "nm_mse":
            return nm_mse(regressed, v_t)
        return (regressed - v_t).square().sum(1).mean() / self.mean_square
