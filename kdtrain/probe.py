"""The linear probe: how well a linear classifier on a frozen student's features tells the classes of other images.

CID Table 5 publishes accuracies, but neither the optimiser nor the learning rate. So here the rate is chosen, for each
student from the same few, on held-out images of the target. The student's BatchNorm stays in eval mode, as in
https://github.com/megvii-research/mdistiller; its features are computed once, without augmentation.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtrain import data, metrics, models, subset, weights
from kdtrain.batches import Batches
from kdtrain.config import ConfigError, Probe, Recipe, TrialConfig, Where
from kdtrain.device import set_up
from kdtrain.draws import Stream, permutation
from kdtrain.loop import lr_at
from kdtrain.models.outputs import Model
from kdtrain.record import DivergedError, EpochRecord, TrialResult

KEY = "probe.source"  # what gives the file of weights, in messages


class Features(NamedTuple):
    """The student's pooled features of N images."""

    values: Tensor  # [N, D] float32
    labels: Tensor  # [N] int64


class Step(NamedTuple):
    """An epoch of a linear classifier, of its N images in the order in which they were seen."""

    epoch: int
    lr: float
    logits: Tensor  # [N, K], each before the step that its image took part in
    labels: Tensor  # [N]


class Choice(NamedTuple):
    """A learning rate, and the accuracy on the held-out images that it was chosen for, in percent."""

    lr: float
    val_acc: float


class Probed(NamedTuple):
    """What a probe gives: the epochs and the result of the final classifier, and its learning rate."""

    records: list[EpochRecord]
    result: TrialResult
    lr: float


def classifier(width: int, num_classes: int, seed: int) -> nn.Linear:
    """A linear layer with torch's default weights, drawn on the CPU from `seed` alone."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return nn.Linear(width, num_classes)


def fit(linear: nn.Linear, train: Features, recipe: Recipe, seed: int) -> Iterator[Step]:
    """Train `linear` by SGD on the cross-entropy, epoch by epoch; the order of the images depends on the seed alone.

    The last batch of an epoch may be smaller.
    """
    optimizer = torch.optim.SGD(
        linear.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=bool(recipe.nesterov) and recipe.momentum > 0,
    )  # fmt: skip
    for epoch in range(1, recipe.epochs + 1):
        lr = optimizer.param_groups[0]["lr"] = lr_at(recipe, epoch)
        order = torch.from_numpy(permutation(seed, Stream.ORDER, epoch, len(train.labels))).to(train.labels.device)
        values, labels = train.values[order], train.labels[order]
        seen = []
        for x, y in zip(values.split(recipe.batch_size), labels.split(recipe.batch_size), strict=True):
            logits = linear(x)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            seen.append(logits.detach())
        yield Step(epoch, lr, torch.cat(seen), labels)


def choose(train: Features, trial: TrialConfig, num_classes: int) -> Choice:
    """The learning rate of `probe.lrs` with the highest accuracy on held-out images; the smallest of equal ones.

    A stratified share `probe.holdout` of the images is held out, drawn by `data.subset_seed`. DivergedError if all
    rates diverge.
    """
    probe, recipe, best = _given(trial.probe), trial.train, None
    size = round(probe.holdout * len(train.labels))
    if not size:
        raise ConfigError(f"probe.holdout must hold an image out, but got {probe.holdout} of {len(train.labels)}.")
    split = subset.split(train.labels, 1.0, size, trial.data.subset_seed)
    fitted, held = (Features(train.values[part], train.labels[part]) for part in split)
    for lr in sorted(probe.lrs):
        linear = classifier(train.values.shape[1], num_classes, trial.seed).to(train.values)
        for _ in fit(linear, fitted, recipe.model_copy(update={"lr": lr}), trial.seed):
            pass
        logits = _logits(linear, held)
        acc = metrics.top1(logits, held.labels)
        if torch.isfinite(logits).all() and (best is None or acc > best.val_acc):
            best = Choice(lr, acc)
    if best is None:
        raise DivergedError(f"the linear classifier diverged at each learning rate of {list(probe.lrs)}.")
    return best


class Probing:
    """The linear probe of a trial that has `probe`. `path`: the file of its weights.

    ConfigError if the file is another trial's or does not fit, also because the target's images have other channels
    than those that it was trained on, and for settings of the trial that have no effect in a probe.
    """

    def __init__(self, trial: TrialConfig, where: Where, path: str) -> None:
        _check(trial)
        self.trial, self.probe = trial, _given(trial.probe)
        self.device = set_up(where)
        images = data.load(trial.data, where, self.device)
        self.num_classes = images.info.num_classes
        self.batches = Batches(images, trial)
        self.student = self._student(path, images.info.in_channels)

    def features(self, split: str) -> Features:
        """The features of the images of "train" or "test", not augmented, the student in eval mode."""
        self.student.eval()
        values, labels = [], []
        with torch.no_grad():  # not inference_mode, whose tensors a classifier cannot be trained on
            for batch in self.batches.plain(split):
                values.append(self.student(batch.images).pooled)
                labels.append(batch.labels)
        return Features(torch.cat(values), torch.cat(labels))

    def run(self) -> Probed:
        """Choose the learning rate, then train on all training images; DivergedError if the classifier breaks."""
        train, test = self.features("train"), self.features("test")
        lr, val_acc = choose(train, self.trial, self.num_classes)
        linear = classifier(train.values.shape[1], self.num_classes, self.trial.seed).to(self.device)
        records, start = [], time.perf_counter()
        for step in fit(linear, train, self.trial.train.model_copy(update={"lr": lr}), self.trial.seed):
            ce = F.cross_entropy(step.logits, step.labels).item()
            if not math.isfinite(ce):
                raise DivergedError(f"the loss term 'ce' became {ce} in epoch {step.epoch}.")
            now = time.perf_counter()
            records.append(EpochRecord(
                stage="train", epoch=step.epoch, lr=step.lr, terms={"ce": ce},
                train_acc=metrics.top1(step.logits, step.labels), val_acc=None,
                test_acc=metrics.top1(_logits(linear, test), test.labels), seconds=now - start,
            ))  # fmt: skip
            start = now
        return Probed(records, self._result(records, _logits(linear, test), test.labels, val_acc), lr)

    def _student(self, path: str, in_channels: int) -> Model:
        """The student of the trial probed, frozen."""
        if (found := weights.identity(path, KEY)) != self.probe.source:
            raise ConfigError(f"{KEY} must be a file of {self.probe.source}, but {path} holds {found}.")
        with torch.random.fork_rng(devices=[]):
            student = models.build(self.trial.student, self.probe.num_classes, in_channels)
        student.load_state_dict(weights.fit(student, weights.read(path, KEY), path, KEY, self.trial.student))
        student.requires_grad_(False)
        return student.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _result(self, records: list[EpochRecord], logits: Tensor, labels: Tensor, val_acc: float) -> TrialResult:
        if not torch.isfinite(logits).all():
            raise DivergedError(f"the linear classifier's predictions became NaN or infinite at lr {records[0].lr}.")
        final = metrics.evaluate(logits, labels)
        accs = [record.test_acc for record in records if record.test_acc is not None]
        return TrialResult(
            test_top1=final.top1, test_top5=final.top5, test_nll=final.nll, test_ece=final.ece,
            test_aurc=final.aurc, test_eaurc=final.eaurc, class_recall=final.class_recall,
            val_acc=val_acc, best_epoch=accs.index(max(accs)) + 1, best_acc=max(accs), best_split="test",
            n_train=len(self.batches.train), student_params=sum(p.numel() for p in self.student.parameters()),
            train_seconds=sum(record.seconds for record in records),
        )  # fmt: skip


def _check(trial: TrialConfig) -> None:
    """Raise ConfigError for settings that a probe would silently not follow."""
    settings = [
        (f"train.{key}", getattr(trial.train, key), getattr(Recipe(augment=False), key))
        for key in ("augment", "precision", "warmup_epochs", "drop_last")
    ]
    for key, value, wanted in [*settings, ("data.val_size", trial.data.val_size, 0)]:
        if value != wanted:
            raise ConfigError(f"{key} must be {wanted} in a linear probe, but got {value}.")


def _logits(linear: nn.Linear, features: Features) -> Tensor:
    with torch.no_grad():
        logits: Tensor = linear(features.values)
    return logits


def _given(probe: Probe | None) -> Probe:
    assert probe is not None, "the trial is a linear probe"
    return probe
