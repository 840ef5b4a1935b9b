"""IPWD: Respecting Transfer Gap in Knowledge Distillation (Niu et al., NeurIPS 2022).

No code was published. Where the paper leaves a choice, the default is the reading that reduces
exactly to KD for equal weights, and the other readings are fields of the Config.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Groups, Method, Setting, given
from kdtrain.methods.kd import kl_per_sample
from kdtrain.models.outputs import Outputs


def ipw_weights(h_kd: Tensor, h_cls: Tensor, floor: float = 1e-7) -> Tensor:
    """The weights w = 1 / P(x | machine) = 1 + H_kd / (H_cls + floor), above 1; [B], [B] -> [B].

    H_kd, H_cls: cross-entropy of each sample to its label, of the distilled and of the CLS head.
    """
    return 1 + h_kd / (h_cls + floor)


def standardised(z: Tensor, correction: int = 1) -> Tensor:
    """Logits [B, K] divided by their standard deviation over the classes, sample by sample."""
    return z / z.std(dim=1, correction=correction, keepdim=True)


class IPWD(Method):
    """L = CE(z_s, y) + CE(z_c, y) + alpha (1/B) sum_b w_b tau^2 KL(p_t || p_s)_b; w by `ipw_weights`.

    z_c comes from the CLS head, a linear layer on the student's pooled features that is used for the
    weights only. All H are taken of logits divided by their standard deviation.
    """

    class Config(Frozen):
        """The paper's CIFAR-100 values; ImageNet: alpha 2.5, tau 2, w_max 20."""

        alpha: float = Field(5.0, ge=0)  # weight of the distillation term
        tau: float = Field(10.0, gt=0)
        # Ablations (IPWD Table 5) and the control: every weight replaced by its mean over the batch
        cls_head: bool = True  # False: H_cls of the teacher's logits
        norm: Literal["sample", "batch", "running", "none"] = "sample"  # std over what: "batch" all B x K logits
        weights: Literal["sample", "batch_mean"] = "sample"
        # Readings of the paper: A (the default), B joint, C not main_ce and joint
        main_ce: bool = True  # cross-entropy on the main head
        joint: bool = False  # the CLS head's cross-entropy trains the backbone, too
        # Details that the paper leaves open
        correction: Literal[0, 1] = 1  # of the standard deviation
        detach: bool = True  # no gradient through the weights
        floor: float = Field(1e-7, ge=0)  # added to H_cls
        w_max: float | None = Field(None, gt=1)  # cap of the weights
        power: float = Field(1.0, ge=0)  # w^power
        unit_mean: bool = False  # weights divided by their mean over the batch
        tau_h: float = Field(1.0, gt=0)  # temperature in H, after normalisation
        start_epoch: int = Field(1, ge=1)  # weights are 1 before
        ema: float = Field(0.0, ge=0, lt=1)  # decay of averaged heads for H; 0: the heads as they are
        cls_lr_scale: float = Field(1.0, gt=0)  # learning rate of the CLS head relative to the student's
        cls_weight_decay: float | None = Field(None, ge=0)  # None: the student's
        teacher_bn: Literal["eval", "train"] = "eval"  # "train" as in the WSLD code base

        @model_validator(mode="after")
        def _trains_something(self) -> Self:
            if not self.main_ce and not (self.joint and self.cls_head):
                raise ValueError("without main_ce, cls_head and joint must be true: else no label trains the student")
            return self

    needs = frozenset({"logits"})

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        width = setting.student_shapes.pooled.shape[1]
        self.head = nn.Linear(width, setting.num_classes) if config.cls_head else None
        self.main = [setting.student.head]  # in a list: a reference, not a submodule
        self.sigmas: Tensor  # running standard deviations of z_s and z_c; 0 before the first batch
        self.register_buffer("sigmas", torch.zeros(2))
        self.averaged = nn.ModuleList()  # main and CLS head
        if config.ema:
            heads = [setting.student.head] + ([self.head] if self.head is not None else [])
            self.averaged = nn.ModuleList(nn.Linear(width, setting.num_classes) for _ in heads)
            for average, head in zip(self.averaged, heads, strict=True):
                average.load_state_dict(head.state_dict())
                average.requires_grad_(False)

    @property
    def teacher_trains(self) -> bool:
        """Whether the teacher runs with batch statistics."""
        return bool(self.config.teacher_bn == "train")

    def param_groups(self) -> Groups:
        """The CLS head."""
        if self.head is None:
            return []
        group = {"params": list(self.head.parameters()), "lr_scale": self.config.cls_lr_scale}
        if self.config.cls_weight_decay is not None:
            group["weight_decay"] = self.config.cls_weight_decay
        return [group]

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, cls, ipwd}, without ce or cls where the Config says so."""
        config, z_t = self.config, given(teacher).logits
        terms = {}
        if config.main_ce:
            terms["ce"] = F.cross_entropy(student.logits, batch.labels)
        z_c = z_t
        if self.head is not None:
            z_c = self.head(student.pooled if config.joint else student.pooled.detach())
            terms["cls"] = F.cross_entropy(z_c, batch.labels)
        w = self._weights(student, z_c, batch)
        terms["ipwd"] = config.alpha * (w * kl_per_sample(student.logits, z_t, config.tau)).mean()
        return terms

    def _weights(self, student: Outputs, z_c: Tensor, batch: Batch) -> Tensor:
        config, z_s = self.config, student.logits
        if config.ema:
            z_s, z_c = self._averaged_logits(student.pooled, z_c)
        if batch.epoch < config.start_epoch:
            return torch.ones_like(z_s[:, 0])
        h_kd, h_cls = (
            F.cross_entropy(self._normalised(z, i) / config.tau_h, batch.labels, reduction="none")
            for i, z in enumerate((z_s, z_c))
        )
        w = ipw_weights(h_kd, h_cls, config.floor) ** config.power
        if config.w_max is not None:
            w = w.clamp(max=config.w_max)
        if config.weights == "batch_mean":
            w = w.mean().expand_as(w)
        if config.unit_mean:
            w = w / w.mean()
        weights: Tensor = w.detach() if config.detach else w
        return weights

    def _normalised(self, z: Tensor, i: int) -> Tensor:
        """Logits divided by their standard deviation; `i` is 0 for the main and 1 for the CLS head."""
        config = self.config
        if config.norm == "none":
            return z
        if config.norm == "sample":
            return standardised(z, config.correction)
        sigma = z.std(correction=config.correction)
        if config.norm == "running":
            with torch.no_grad():  # 0.1 of the new value, as BatchNorm's running statistics
                self.sigmas[i] = torch.where(self.sigmas[i] > 0, torch.lerp(self.sigmas[i], sigma, 0.1), sigma)
            sigma = self.sigmas[i].clone()
        return z / sigma

    @torch.no_grad()
    def _averaged_logits(self, pooled: Tensor, z_c: Tensor) -> tuple[Tensor, Tensor]:
        """Move the averaged heads towards the present ones; their logits (z_c as it is without a CLS head)."""
        present = [self.main[0]] + ([self.head] if self.head is not None else [])
        for average, head in zip(self.averaged, present, strict=True):
            for a, p in zip(average.parameters(), head.parameters(), strict=True):
                a.lerp_(p, 1 - self.config.ema)
        logits = [average(pooled) for average in self.averaged]
        return logits[0], logits[1] if self.head is not None else z_c
