"""Metrics of a classifier on a full data set.

Calibration and selective risk are as in PS-KD's code (https://github.com/lgcnsai/PS-KD-Pytorch): float64 sums of
float32 probabilities. N images, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All metrics of one evaluation."""

    top1: float  # percent
    top5: float  # percent; with K < 5 classes, top-K
    nll: float  # nats
    ece: float  # percent
    aurc: float  # x 1000
    eaurc: float  # x 1000
    class_recall: tuple[float, ...]  # percent, one for each class; nan for a class without images


def evaluate(logits: Tensor, labels: Tensor) -> Metrics:
    """All metrics of `logits` [N, K] against `labels` [N], computed on the CPU."""
    logits, labels = logits.detach().cpu().float(), labels.cpu()
    if not len(labels):
        raise ValueError("evaluate needs at least one image, but got none.")
    log_probs = F.log_softmax(logits, dim=1)
    probs = log_probs.exp().double()
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return Metrics(
        top1=top1(logits, labels),
        top5=_percent((top5 == labels[:, None]).any(dim=1)),
        nll=F.nll_loss(log_probs.double(), labels).item(),
        ece=ece(probs, labels),
        aurc=aurc(probs, labels),
        eaurc=eaurc(probs, labels),
        class_recall=class_recall(logits.argmax(1), labels, logits.shape[1]),
    )


def top1(logits: Tensor, labels: Tensor) -> float:
    """The share of images, in percent, whose largest logit is the label's; of equal logits the first counts.

    (The order of equal logits in topk differs, and bfloat16 logits are equal often.) `logits`: [N, K]; `labels`: [N].
    """
    return _percent(logits.argmax(1) == labels)


def ece(probs: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error in percent: 100 sum_m n_m / N |accuracy_m - confidence_m|.

    Bin m holds the images whose largest probability is in (m/bins, (m+1)/bins]. `probs`: [N, K]; `labels`: [N].
    """
    confidence, correct = _judged(probs, labels)
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, torch.bucketize(confidence, edges), correct - confidence)
    return 100 * gaps.abs().sum().item() / len(labels)


def aurc(probs: Tensor, labels: Tensor) -> float:
    """Area under the risk-coverage curve, x 1000: mean over k of the error rate of the k most confident images.

    `probs`: [N, K]; `labels`: [N]. Images of equal confidence keep their order (in PS-KD's code it is undefined).
    """
    confidence, correct = _judged(probs, labels)
    order = confidence.argsort(descending=True, stable=True)
    errors = (1 - correct[order]).cumsum(0)
    return 1000 * (errors / torch.arange(1, len(labels) + 1, device=errors.device)).mean().item()


def eaurc(probs: Tensor, labels: Tensor) -> float:
    """AURC less that of the best order, x 1000: (1/N) sum_{j=1..e} j / (N - e + j) is subtracted for e errors."""
    _, correct = _judged(probs, labels)
    n, e = len(labels), round((1 - correct).sum().item())
    j = torch.arange(1, e + 1, dtype=torch.float64)
    return aurc(probs, labels) - 1000 * (j / (n - e + j)).sum().item() / n


def class_recall(predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[float, ...]:
    """Percent of the images of each class that are predicted as it; nan for a class without images. Both [N]."""
    total = labels.bincount(minlength=num_classes)
    right = labels[predicted == labels].bincount(minlength=num_classes)
    return tuple((100 * right.double() / total).tolist())


def _judged(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and correctness (0 or 1) of the most probable class, both [N] float64."""
    confidence, predicted = probs.double().max(dim=1)
    return confidence, (predicted == labels).double()


def _percent(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()
