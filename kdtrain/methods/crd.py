"""CRD: Contrastive Representation Distillation (Tian, Krishnan and Isola, ICLR 2020, arXiv:1910.10699).

This is the authors' code (RepDistiller), which produced the published rows: the normalising constants are those of
the first batch, and negatives are images of other classes. Scores are taken of whole memories and then picked, where
the code gathers [B, K + 1, dim] from them: the same numbers with less traffic.
"""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdtrain.config import ConfigError, Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Setting, Space, given
from kdtrain.models.outputs import Outputs

FLOOR = 1e-7  # the code's, added to the denominators
MARGIN = 4.0  # above the square root of k, and again; that of a Poisson number deviates by 1/2


def sum_log1p(x: Tensor) -> Tensor:
    """sum_k log(1 + x_bk), exact for many x close to 0: [B, m], x >= 0 -> [B], float64."""
    # One logarithm for 8 factors: as many finite float32 have a product in float64's range.
    first, *others = x.chunk(8, dim=1)
    products = 1 + first.double()
    for other in others:
        products[:, : other.shape[1]] *= 1 + other.double()
    return products.log().sum(1)


class _NCE(torch.autograd.Function):
    """`nce_loss`, whose gradient is taken in the forward pass: the memory may change before the backward pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, memory: Tensor, drawn: Tensor, z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        n, m = len(memory), drawn.shape[1] - 1
        scores = (h / tau) @ memory.T
        x = scores.gather(1, drawn).exp_()
        z = torch.where(z > 0, z, x.mean() * n)
        ratio = x.div_(z * (m / n + FLOOR))  # o / c
        losses = torch.log1p(1 / ratio[:, 0]) + sum_log1p(ratio[:, 1:]) + m * math.log1p(FLOOR * n / m)
        of_positive = -1 / (1 + ratio[:, 0])
        slope = ratio.div_(1 + ratio)  # of each term by log o
        slope[:, 0] = of_positive
        # A dense product is faster than a sum over the rows drawn, which are not in the cache.
        slopes = scores.zero_().scatter_add_(1, drawn, slope)
        ctx.save_for_backward((slopes @ memory).div_(len(h) * tau))
        ctx.mark_non_differentiable(z)
        return losses.mean().to(h.dtype), z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, of_z: Tensor) -> tuple[Tensor | None, ...]:
        return of_loss * ctx.saved_tensors[0], None, None, None, None


def nce_loss(h: Tensor, memory: Tensor, drawn: Tensor, z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Noise-contrastive loss of anchors: -(1/B) sum_b [log o_b0 / (o_b0 + c) + sum_k log (m/n) / (o_bk + c)], and z.

    o = exp(M h / tau) / z of the images drawn for each anchor, the first the positive one; c = m/n + 1e-7.
    h: [B, D], memory M: [n, D], both rows of length 1; drawn: [B, m + 1] rows of M. z: scalar; if it is 0, the mean
    of exp(M h / tau) times n takes its place. Returns two scalars, in nats and without unit; only h has a gradient.
    """
    value, constant = _NCE.apply(h, memory, drawn, z, tau)
    return value, constant


def crd_loss(
    h_s: Tensor, h_t: Tensor, m_s: Tensor, m_t: Tensor, drawn: Tensor, z: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """`nce_loss` of the student's h_s in the teacher's memory m_t plus that of h_t in m_s; and z: [2]."""
    of_student, z_s = nce_loss(h_s, m_t, drawn, z[0], tau)
    of_teacher, z_t = nce_loss(h_t, m_s, drawn, z[1], tau)
    return of_student + of_teacher, torch.stack([z_s, z_t])


def distinct_negatives(labels: Tensor, counts: Tensor, n: int, k: int) -> Tensor:
    """Rows of other classes, none twice, all sets equally likely: labels [B] -> rows [B, k].

    The n rows are in order of their classes, counts: [classes] rows of each. A row is taken with a probability that
    gives somewhat more than k, by the geometric steps from one to the next; which k of these stay is drawn as by
    reservoir sampling. So only about k numbers are drawn for a sample, not n, and the result is almost in order.
    The rows taken are fewer than k, or more than there is room for, in less than one of 10^10 samples (one of 10^22 at
    the published size), whose last rows are then amiss.
    """
    own, start = counts[labels, None], counts.cumsum(0)[labels, None]
    most = min(n, math.ceil((math.sqrt(k) + 2 * MARGIN) ** 2))  # that are taken
    rate = ((math.sqrt(k) + MARGIN) ** 2 / (n - own)).clamp_(max=1)
    steps = 1 - torch.rand(len(labels), most, device=labels.device)
    at = steps.log_().div_(torch.log1p(-rate)).add_(1).int()
    at[:, :1] += start - 1
    at = at.cumsum_(1)  # from the row after the own class on, and round
    # The i-th one, i >= k, takes the place of one of the first k with probability k / (i + 1). Of those that take the
    # same place the last one stays, which is the largest.
    ranks = torch.arange(k + 1, most + 1, device=labels.device)
    place = torch.rand(len(labels), most - k, dtype=torch.float64, device=labels.device).mul_(ranks).long()
    later = at[:, k:]
    at.scatter_reduce_(1, place, torch.where(later < start - own + n, later, 0), "amax")
    at = at[:, :k] - n
    return at.add_((at >> 31).bitwise_and_(n))  # the remainder by n: n again where it is below 0, without a division


def repeated_negatives(labels: Tensor, counts: Tensor, n: int, k: int) -> Tensor:
    """Rows of other classes, drawn with replacement; arguments and result as those of `distinct_negatives`."""
    at = torch.randint(2**62, (len(labels), k), device=labels.device) % (n - counts[labels, None])
    return (at + counts.cumsum(0)[labels, None]) % n  # from the row after the own class on, and round


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

    version = 2  # 1 drew its negatives by other random numbers
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
        # By `allocate`, for the n training images, each a row of the memories; the rows are in order of their classes.
        self.memory_s: Tensor  # [n, dim]
        self.memory_t: Tensor
        self.indices: Tensor  # [n] places in the full training set, ascending
        self.rows: Tensor  # [n] the row of each of them
        self.counts: Tensor  # [classes] images of each

    def allocate(self, indices: Tensor, labels: Tensor) -> None:
        """Make the memories, with random rows, and what negatives are drawn by."""
        counts = torch.bincount(labels, minlength=self.num_classes)
        others = len(labels) - int(counts.max())  # of the largest class
        if others == 0:
            raise ConfigError(f"crd needs training images of two classes or more, but got {len(labels)} of one.")
        self.repeats = self.config.replacement or self.config.negatives > others
        rows = labels.argsort(stable=True).argsort()
        for name, tensor in {"indices": indices, "rows": rows, "counts": counts}.items():
            self.register_buffer(name, tensor, persistent=False)
        weight, bound = self.embed_s.weight, (3 / self.config.dim) ** 0.5
        for name in ("memory_s", "memory_t"):
            # Drawn on the CPU whatever the device, as weights are.
            memory = torch.empty(len(labels), self.config.dim, dtype=weight.dtype).uniform_(-bound, bound)
            self.register_buffer(name, memory.to(labels.device))

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce, crd}."""
        h_s, h_t = F.normalize(self.embed_s(student.pooled)), F.normalize(self.embed_t(given(teacher).pooled))
        rows = self.rows[torch.searchsorted(self.indices, batch.indices)]
        drawn = self._drawn(rows, batch.labels)
        crd, z = crd_loss(h_s, h_t, self.memory_s, self.memory_t, drawn, self.z, self.config.tau)
        self.z.copy_(z)
        with torch.no_grad():
            for memory, h in ((self.memory_s, h_s), (self.memory_t, h_t)):
                memory[rows] = F.normalize(torch.lerp(h, memory[rows], self.config.momentum))
        return {"ce": F.cross_entropy(student.logits, batch.labels), "crd": self.config.beta * crd}

    def _drawn(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The rows of the positive image and of the negative ones of each sample: [B, negatives + 1]."""
        counts, draw = self.counts, repeated_negatives if self.repeats else distinct_negatives
        negatives = draw(labels, counts, len(self.rows), self.config.negatives)
        if self.config.positives == "relax":
            first = (counts.cumsum(0) - counts)[labels]
            rows = first + torch.randint(2**62, labels.shape, device=labels.device) % counts[labels]
        return torch.cat([rows[:, None], negatives], dim=1)
