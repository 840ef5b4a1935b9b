"""IPWD: Respecting Transfer Gap in Knowledge Distillation (Niu et al., NeurIPS 2022).

No code was published. Where the paper leaves a choice, the default is the reading that reduces
exactly to KD for equal weights, and the other readings are fields of the Config. As a plug-in the weights
multiply the distillation of logits of another method and change nothing else of it (IPWD Tables 3, 6 and 7).
"""

from copy import deepcopy
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdtrain.config import ConfigError, Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Groups, Method, Paper, Plugin, Range, Setting, Space, first_rows, given
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


class WeightConfig(Frozen):
    """How the weights are made; defaults are the paper's where it says, else what reduces to KD."""

    # Ablations (IPWD Table 5) and the control: every weight replaced by its mean over the batch
    cls_head: bool = True  # False: H_cls of the teacher's logits
    norm: Literal["sample", "batch", "running", "none"] = "sample"  # std over what: "batch" all B x K logits
    weights: Literal["sample", "batch_mean"] = "sample"
    joint: bool = False  # the CLS head's cross-entropy trains the backbone, too
    # Details that the paper leaves open
    correction: Literal[0, 1] = 1  # of the standard deviation
    detach: bool = True  # no gradient through the weights
    floor: float = Field(1e-7, ge=0)  # added to H_cls
    w_max: float | None = Field(None, gt=1)  # cap of the weights
    power: float = Field(1.0, ge=0)  # w^power
    unit_mean: bool = False  # weights divided by their mean over the batch
    tau_h: float = Field(1.0, gt=0)  # temperature in H, after normalisation
    start: Epochs = 0  # weights are 1 for so many epochs, or for this share of all
    ema: float = Field(0.0, ge=0, lt=1)  # decay of averaged heads for H; 0: the heads as they are
    cls_lr_scale: float = Field(1.0, gt=0)  # learning rate of the CLS head relative to the student's
    cls_weight_decay: float | None = Field(None, ge=0)  # None: the student's


class Weights(nn.Module):
    """The CLS head, a linear layer on the student's pooled features, and the weights that it and the main head give.

    All H are taken of logits divided by their standard deviation.
    """

    def __init__(self, config: WeightConfig, setting: Setting) -> None:
        super().__init__()
        self.config = config
        width = setting.student_shapes.pooled.shape[1]
        self.start = part_of(config.start, setting.epochs)
        self.head = nn.Linear(width, setting.num_classes) if config.cls_head else None
        self.main = [setting.student.head]  # in a list: a reference, not a submodule
        self.sigmas: Tensor  # running standard deviations of z_s and z_c; 0 before the first batch
        self.register_buffer("sigmas", torch.zeros(2))
        averaged = (deepcopy(head).requires_grad_(False) for head in self._heads) if config.ema else ()
        self.averaged = nn.ModuleList(averaged)

    @property
    def _heads(self) -> list[nn.Linear]:
        """The main head and, if there is one, the CLS head."""
        return self.main + ([self.head] if self.head is not None else [])

    def param_groups(self) -> Groups:
        """The CLS head."""
        if self.head is None:
            return []
        group = {"params": list(self.head.parameters()), "lr_scale": self.config.cls_lr_scale}
        if self.config.cls_weight_decay is not None:
            group["weight_decay"] = self.config.cls_weight_decay
        return [group]

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weights of the outputs' rows and {cls}, the loss of the CLS head; without that head {}.

        The outputs have B rows, or 4B with those of turned images; the CLS head learns the upright ones.
        """
        if self.head is None:
            return self._weights(student, given(teacher).logits, batch), {}
        z_c = self.head(student.pooled if self.config.joint else student.pooled.detach())
        cls = F.cross_entropy(z_c[: len(batch.labels)], batch.labels)
        return self._weights(student, z_c, batch), {"cls": cls}

    def _weights(self, student: Outputs, z_c: Tensor, batch: Batch) -> Tensor:
        config, z_s = self.config, student.logits
        if config.ema:
            z_s, z_c = self._averaged_logits(student.pooled, z_c)
        if batch.epoch <= self.start:
            return torch.ones_like(z_s[:, 0])
        labels = batch.labels.repeat(len(z_s) // len(batch.labels))
        h_kd, h_cls = (
            F.cross_entropy(self._normalised(z, i) / config.tau_h, labels, reduction="none")
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
        for average, head in zip(self.averaged, self._heads, strict=True):
            for a, p in zip(average.parameters(), head.parameters(), strict=True):
                a.lerp_(p, 1 - self.config.ema)
        logits = [average(pooled) for average in self.averaged]
        return logits[0], logits[1] if self.head is not None else z_c


class IPWD(Method):
    """L = CE(z_s, y) + CE(z_c, y) + alpha (1/B) sum_b w_b tau^2 KL(p_t || p_s)_b; w and z_c by `Weights`."""

    class Config(WeightConfig):
        """The paper's CIFAR-100 values; ImageNet: alpha 2.5, tau 2, w_max 20."""

        alpha: float = Field(5.0, ge=0)  # weight of the distillation term
        tau: float = Field(10.0, gt=0)
        # Readings of the paper: A (the default), B joint, C not main_ce and joint
        main_ce: bool = True  # cross-entropy on the main head
        teacher_bn: Literal["eval", "train"] = "eval"  # "train" as in the WSLD code base

        @model_validator(mode="after")
        def _trains_something(self) -> Self:
            if not self.main_ce and not (self.joint and self.cls_head):
                raise ValueError("without main_ce, cls_head and joint must be true: else no label trains the student")
            return self

    paper = Paper("Respecting Transfer Gap in Knowledge Distillation", "Niu et al.", "NeurIPS", 2022)
    needs = frozenset({"logits"})
    search_space: ClassVar[Space] = {"alpha": Range(0.5, 20), "tau": Range(1, 20)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.weights = Weights(config, setting)

    def param_groups(self) -> Groups:
        """The CLS head."""
        return self.weights.param_groups()

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, cls, ipwd}, without ce or cls where the Config says so."""
        config, z_t = self.config, given(teacher).logits
        terms = {"ce": F.cross_entropy(student.logits, batch.labels)} if config.main_ce else {}
        w, cls = self.weights(batch, student, teacher)
        kl = kl_per_sample(student.logits, z_t, config.tau)
        return {**terms, **cls, "ipwd": config.alpha * (w * kl).mean()}


class IPWDPlugin(Plugin):
    """The host's distillation of logits with the weights: SSKD's on the upright images, PS-KD's of past predictions.

    For PS-KD the weights start after 225 of 300 epochs, as in the paper; `start = 0` is its "early" (Table 7).
    """

    class Config(WeightConfig):
        """The fields of the weights; the host has the temperature and the weight of the term."""

        turned: bool = False  # of SSKD, weight the logits of the turned images, too: each by its own outputs

    paper = IPWD.paper
    hosts: ClassVar[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
        "sskd": ({}, {}),
        "ps_kd": ({}, {"start": 0.75}),
    }

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if setting.teacher is None and not config.cls_head:
            raise ConfigError("ipwd.cls_head must be true where there is no teacher, but got False.")
        self.weights = Weights(config, setting)

    def param_groups(self) -> Groups:
        """The CLS head."""
        return self.weights.param_groups()

    def change(self, host: Method, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """The host's terms, that of its logits weighted, and {cls}."""
        n = None if self.config.turned else len(batch.labels)
        w, cls = self.weights(batch, first_rows(student, n), teacher and first_rows(teacher, n))
        weighted = {}
        for name, term in host.per_sample(batch, student, teacher).items():
            if len(w):
                weighted[name] = (w[: len(term)] * term).mean()
            w = w[len(term) :]
        return {**host.loss(batch, student, teacher), **weighted, **cls}

    @property
    def teacher_in_loss(self) -> bool:
        """Whether the teacher stands in for the CLS head."""
        return not self.config.cls_head
