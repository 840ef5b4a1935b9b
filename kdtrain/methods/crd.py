"""CRD: Contrastive Representation Distillation (Tian, Krishnan and Isola, ICLR 2020, arXiv:1910.10699).

This is the authors' code (RepDistiller), which produced the published rows: the normalising constants are those of
the first batch, and negatives are images of other classes. Scores are taken of whole memories and then picked, where
the code gathers [B, K + 1, dim] from them: the same numbers with less traffic.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdtrain.config import ConfigError, Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.models.outputs import Outputs

FLOOR = 1e-7  # the code's, added to the denominators


def nce_loss(h: Tensor, memory: Tensor, drawn: Tensor, z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Noise-contrastive loss of anchors: -(1/B) sum_b [log o_b0 / (o_b0 + c) + sum_k log (m/n) / (o_bk + c)], and z.

    o = exp(M h / tau) / z of the images drawn for each anchor, the first the positive one; c = m/n + 1e-7.
    h: [B, D], memory M: [n, D], both rows of length 1; drawn: [B, m + 1] rows of M. z: scalar; if it is 0, the mean
    of exp(M h / tau) times n takes its place. Returns two scalars, in nats and without unit; z has no gradient.
    """
    n, noise = len(memory), (drawn.shape[1] - 1) / len(memory)
    x = ((h @ memory.T).gather(1, drawn) / tau).exp()
    z = torch.where(z > 0, z, x.detach().mean() * n)
    ratio = x / (z * noise)  # o / (m/n); the logarithms of many numbers close to 1 are then exact in float32
    positive = torch.log1p((1 + FLOOR / noise) / ratio[:, 0])
    negatives = torch.log1p(ratio[:, 1:] + FLOOR / noise).sum(1)
    return (positive + negatives).mean(), z


def crd_loss(
    h_s: Tensor, h_t: Tensor, m_s: Tensor, m_t: Tensor, drawn: Tensor, z: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """`nce_loss` of the student's h_s in the teacher's memory m_t plus that of h_t in m_s; and z: [2]."""
    of_student, z_s = nce_loss(h_s, m_t, drawn, z[0], tau)
    of_teacher, z_t = nce_loss(h_t, m_s, drawn, z[1], tau)
    return of_student + of_teacher, torch.stack([z_s, z_t])


def distinct_negatives(labels: Tensor, all_labels: Tensor, k: int) -> Tensor:
    """Images of other classes, none twice, all sets equally likely: labels [B], all_labels [n] -> places [B, k]."""
    keys = torch.rand(len(labels), len(all_labels), device=labels.device)
    keys.masked_fill_(all_labels == labels[:, None], 2.0)
    return keys.topk(k, largest=False, sorted=False).indices


def repeated_negatives(labels: Tensor, by_class: Tensor, counts: Tensor, k: int) -> Tensor:
    """Images of other classes, drawn with replacement: labels [B] -> places [B, k].

    by_class: [n] the images' places in order of their classes; counts: [classes] images of each.
    """
    own = counts[labels, None]
    first = (counts.cumsum(0) - counts)[labels, None]
    at = torch.randint(2**62, (len(labels), k), device=labels.device) % (len(by_class) - own)
    return by_class[at + own * (at >= first)]  # past the block of the own class


class CRD(Method):
    """L = CE(z_s, y) + beta crd_loss(h_s, h_t), h = normalised linear maps of the pooled features.

    The memories hold each training image's h, averaged over the epochs: M <- normalised(u M + (1 - u) h).
    """

    class Config(Frozen):
        """RepDistiller's values for CIFAR-100; the authors' ImageNet: replacement."""

        beta: float = Field(0.8, ge=0)  # weight of the contrastive term
        negatives: int = Field(16384, ge=1)  # for each image
        dim: int = Field(128, ge=1)  # of h
        tau: float = Field(0.07, gt=0)
        momentum: float = Field(0.5, ge=0, lt=1)  # u, of the memories
        positives: Literal["exact", "relax"] = "exact"  # the image itself, or any of its class
        replacement: bool = False  # negatives may repeat; they do, too, where there are too few images

    paper = Paper("Contrastive Representation Distillation", "Tian et al.", "ICLR", 2020)
    needs = frozenset({"pooled"})
    search_space: ClassVar[Space] = {"beta": Range(0.08, 8), "tau": Range(0.02, 0.3)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.num_classes = setting.num_classes
        self.embed_s = nn.Linear(setting.student_shapes.pooled.shape[1], config.dim)
        self.embed_t = nn.Linear(given(setting.teacher_shapes).pooled.shape[1], config.dim)
        self.z: Tensor  # the constants of the student's and of the teacher's anchors; 0 before the first batch
        self.register_buffer("z", torch.zeros(2))
        # By `allocate`, for the n training images, each a row of the memories.
        self.memory_s: Tensor  # [n, dim]
        self.memory_t: Tensor
        self.indices: Tensor  # [n] places in the full training set, ascending
        self.labels: Tensor  # [n]
        self.by_class: Tensor  # [n] rows in order of their classes
        self.counts: Tensor  # [classes] images of each

    def allocate(self, indices: Tensor, labels: Tensor) -> None:
        """Make the memories, with random rows, and what negatives are drawn by."""
        counts = torch.bincount(labels, minlength=self.num_classes)
        others = len(labels) - int(counts.max())  # of the largest class
        if others == 0:
            raise ConfigError(f"crd needs training images of two classes or more, but got {len(labels)} of one.")
        self.repeats = self.config.replacement or self.config.negatives > others
        for name, tensor in {
            "indices": indices, "labels": labels, "by_class": labels.argsort(stable=True), "counts": counts
        }.items():  # fmt: skip
            self.register_buffer(name, tensor, persistent=False)
        weight, bound = self.embed_s.weight, (3 / self.config.dim) ** 0.5
        for name in ("memory_s", "memory_t"):
            # Drawn on the CPU whatever the device, as weights are.
            rows = torch.empty(len(labels), self.config.dim, dtype=weight.dtype).uniform_(-bound, bound)
            self.register_buffer(name, rows.to(labels.device))

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, crd}."""
        h_s, h_t = F.normalize(self.embed_s(student.pooled)), F.normalize(self.embed_t(given(teacher).pooled))
        places = torch.searchsorted(self.indices, batch.indices)
        crd = self._contrast(h_s, h_t, self._drawn(places, batch.labels))
        with torch.no_grad():
            for memory, h in ((self.memory_s, h_s), (self.memory_t, h_t)):
                memory[places] = F.normalize(torch.lerp(h, memory[places], self.config.momentum))
        return {"ce": F.cross_entropy(student.logits, batch.labels), "crd": self.config.beta * crd}

    def _contrast(self, h_s: Tensor, h_t: Tensor, drawn: Tensor) -> Tensor:
        """`crd_loss`, with its gradient taken at once: the memories change before the backward pass."""
        with torch.enable_grad():
            leaves = [h.detach().requires_grad_() for h in (h_s, h_t)]
            value, z = crd_loss(leaves[0], leaves[1], self.memory_s, self.memory_t, drawn, self.z, self.config.tau)
            gradients = torch.autograd.grad(value, leaves)
        self.z.copy_(z)
        slopes = [(g * (h - h.detach())).sum() for g, h in zip(gradients, (h_s, h_t), strict=True)]
        return value.detach() + slopes[0] + slopes[1]

    def _drawn(self, places: Tensor, labels: Tensor) -> Tensor:
        """The positive image and the negative ones of each sample: [B, negatives + 1]."""
        k, by_class, counts = self.config.negatives, self.by_class, self.counts
        if self.repeats:
            negatives = repeated_negatives(labels, by_class, counts, k)
        else:
            negatives = distinct_negatives(labels, self.labels, k)
        if self.config.positives == "relax":
            first = (counts.cumsum(0) - counts)[labels]
            places = by_class[first + torch.randint(2**62, labels.shape, device=labels.device) % counts[labels]]
        return torch.cat([places[:, None], negatives], dim=1)
